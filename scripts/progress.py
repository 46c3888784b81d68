"""What a person sees of a local run: one line for each step as it ends, and on a terminal one for the step that runs."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from modelyard.scripts.local_run import RunResult, Step

_GREEN, _RED, _YELLOW, _DIM, _BOLD, _RESET = "\033[32m", "\033[31m", "\033[33m", "\033[2m", "\033[1m", "\033[0m"
_CLEAR_LINE = "\r\033[K"


class Progress:
    """Writes a run's progress to a stream.

    Args:
        stream: where to; colours and the running step's line appear only on a terminal, colours not under ``NO_COLOR``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._live and not os.environ.get("NO_COLOR")
        self._running: dict[str, float] = {}
        self._guard = threading.Lock()
        self._ticker: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self, name: str, folder: Path) -> None:
        """Announces a run."""
        self._write(f"{self._paint(name, _BOLD)}  {self._paint(str(folder), _DIM)}\n")
        if self._live:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def step(self, step: Step) -> None:
        """Tells of a step that starts or has ended."""
        with self._guard:
            if step.state == "running":
                self._running[step.name] = time.monotonic()
            elif step.state == "stopping":
                self._clear()
                self._write(f"       …    {self._paint(f'asked {step.name} to stop; interrupt again to kill it', _YELLOW)}\n")
            else:
                self._running.pop(step.name, None)
                colour = {"succeeded": _GREEN, "failed": _RED}.get(step.state, _YELLOW)
                note = "" if step.state == "succeeded" else f"  {step.state}"
                self._clear()
                self._write(f"{step.seconds:8.1f} s  {self._paint(step.name + note, colour)}\n")
            self._show_running()

    def line(self, text: str) -> None:
        """Passes on what a step announces while it runs."""
        with self._guard:
            self._clear()
            self._write(f"       …    {self._paint(text, _DIM)}\n")
            self._show_running()

    def finish(self, result: RunResult) -> None:
        """Tells how a run ended, and where to look."""
        self._ended.set()
        if self._ticker:
            self._ticker.join()
        self._clear()
        if result.skipped:
            self._write(self._paint(f"       –    skipped: {', '.join(result.skipped)}\n", _DIM))
        if result.tail and result.tail not in result.error:
            indented = "\n".join(f"    {line}" for line in result.tail.splitlines())
            self._write(f"\n{self._paint(indented, _DIM)}\n\n")
        colour = {"succeeded": _GREEN, "failed": _RED}.get(result.state, _YELLOW)
        self._write(f"{result.name} {self._paint(result.state, colour)} in {result.seconds:.1f} s\n")
        lines = _outcome(result)
        width = max((len(label) for label, _ in lines), default=0)
        for label, value in lines:
            first, *more = value.splitlines() or [""]
            self._write(f"  {label:<{max(width, 8)}}  {first}\n")
            for line in more:
                self._write(f"  {'':<{max(width, 8)}}  {line}\n")

    def _tick(self) -> None:
        while not self._ended.wait(1.0):
            with self._guard:
                self._clear()
                self._show_running()

    def _show_running(self) -> None:
        if self._live and self._running:
            now = time.monotonic()
            # Two at most: KFP's local runner runs no more at once.
            shown = ", ".join(f"{name} {now - began:.0f} s" for name, began in self._running.items())
            self._write(self._paint(f"       …    {shown}", _DIM))

    def _clear(self) -> None:
        if self._live:
            self._write(_CLEAR_LINE)

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self._coloured else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _outcome(result: RunResult) -> list[tuple[str, str]]:
    """What a run came to, as labelled lines."""
    lines, told = [], {"decision"}
    if result.decision:
        reasons = f": {result.reasons}" if result.reasons and result.decision != "pass" else ""
        lines.append(("decision", result.decision + reasons))
        told |= {"reasons"} if reasons else set()
    if result.error:
        lines.append(("error", result.error))
    # An artifact and its address are one thing to a person.
    outputs = {str(value): name for name, value in result.outputs.items() if name not in told and value != ""}
    reports = {path: step.name for step in result.steps for path in step.reports.values() if path.endswith(".html")}
    lines += [(name, value) for value, name in {**outputs, **reports}.items()]
    if result.state == "failed":
        failed = next((step for step in result.steps if step.state == "failed"), None)
        lines.append(("log", failed.log if failed else str(result.folder / "logs" / "pipeline.log")))
    return lines
