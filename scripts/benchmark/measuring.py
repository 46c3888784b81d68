"""Runs a piece of work in a process of its own and says what it took.

A piece of work is a module's function that prepares, does ``with clock:`` what is to be timed, and returns facts about the
result. So no import, no cache and no memory of one measurement is another's.
"""

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.components.errors import ModelyardError

_SHOWN_LINES = 15


class Clock:
    """Adds up what its ``with`` blocks take.

    Attributes:
        seconds: wall time.
        cpu_seconds: user and system time of this process and of those that it started and waited for, or of those watched.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._cpu_seconds = _own_cpu_seconds

    def watch(self, processes: Sequence[int]) -> None:
        """Counts the CPU time of these processes and their descendants instead: of servers that do the work that is timed."""
        self._cpu_seconds = lambda: cpu_seconds_of(processes)

    def __enter__(self) -> None:
        self._cpu, self._began = self._cpu_seconds(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu_seconds += self._cpu_seconds() - self._cpu


def _own_cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def cpu_seconds_of(processes: Sequence[int]) -> float:
    """User and system time that processes and all their running descendants have used so far.

    Raises:
        MeasurementFailed: one of them has ended.
    """
    import psutil

    try:
        roots = [psutil.Process(pid) for pid in processes]
        family = {process.pid: process for root in roots for process in (root, *root.children(recursive=True))}
        return sum(_process_cpu_seconds(process) for process in family.values())
    except psutil.NoSuchProcess as error:
        raise MeasurementFailed(f"a process that is measured has ended: {error}") from error


def _process_cpu_seconds(process: Any) -> float:
    # What Linux lists for a process is in ticks of 10 ms; its clock is exact. macOS has no such clock, and lists microseconds.
    library, clock = ctypes.CDLL(None), ctypes.c_int()
    if hasattr(library, "clock_getcpuclockid") and library.clock_getcpuclockid(process.pid, ctypes.byref(clock)) == 0:
        return time.clock_gettime(clock.value)
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        work: function of a module; it gets a ``Clock`` and the arguments, and returns facts about its result (JSON-ready).
        arguments: JSON-ready.
        environment: further variables of the process; its ``MODELYARD_HOME`` is in the scratch folder.
    """

    work: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What a piece of work took; over several repeats, the medians.

    Attributes:
        seconds: wall time of what was timed.
        cpu_seconds: user and system time of what was timed.
        peak_gib: largest resident memory of its process, preparation included.
        repeats: how often it ran.
        facts: what the work returned the last time.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    repeats: int
    facts: dict[str, Any]


class MeasurementFailed(ModelyardError):
    """A piece of work ended with an error, or with another answer than its peers."""


def measure(task: Task, scratch: Path, repeats: int = 1) -> Measurement:
    """Measures one task.

    Raises:
        MeasurementFailed: it ended with an error.
    """
    return measure_in_turn({"": task}, scratch, repeats)[""]


def measure_in_turn(tasks: Mapping[str, Task], scratch: Path, repeats: int = 1) -> dict[str, Measurement]:
    """Measures several tasks in turn, one at a time, so that what else the machine does meets all of them alike.

    Raises:
        MeasurementFailed: one ended with an error.
    """
    runs: dict[str, list[Measurement]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            runs[name].append(_run(task, scratch))
    return {name: median(measured) for name, measured in runs.items()}


def median(runs: Sequence[Measurement]) -> Measurement:
    """The medians of several runs of one task; the facts are the last one's."""
    return Measurement(
        seconds=statistics.median(run.seconds for run in runs),
        cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
        peak_gib=statistics.median(run.peak_gib for run in runs),
        repeats=sum(run.repeats for run in runs),
        facts=runs[-1].facts,
    )


def _run(task: Task, scratch: Path) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="process-", dir=scratch) as folder:
        arguments, answer, log = (Path(folder, file) for file in ("arguments.json", "answer.json", "log"))
        name = f"{task.work.__module__}:{task.work.__qualname__}"
        arguments.write_text(json.dumps(dict(task.arguments)), encoding="utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "modelyard.scripts.benchmark.worker", name, str(arguments), str(answer)],
                # Nothing is written to it: when it ends, the worker knows that this process has.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**clean_environment(scratch), **task.environment},
            )
        _wait(process)
        if process.returncode != 0:
            raise MeasurementFailed(f"{name} ended with status {process.returncode}:\n{end_of(log)}")
        content = json.loads(answer.read_text(encoding="utf-8"))
    return Measurement(content["seconds"], content["cpu_seconds"], content["peak_gib"], 1, content["facts"])


def end_of(log: Path) -> str:
    """The last lines of what a process wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-_SHOWN_LINES:])


def clean_environment(scratch: Path) -> dict[str, str]:
    """This process's environment without its registry, store and keys: nothing that is measured may touch those."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELYARD_", "MLFLOW_"))}
    return {**kept, "MODELYARD_HOME": str(scratch / "home")}


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a process, and ends it where the waiting is broken off."""
    try:
        process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()
