"""``modelyard benchmark``: measures the figures, writes them down and prints the table."""

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.signing.provenance import code_revision
from modelyard.components.storage.files import write_text
from modelyard.scripts import cli
from modelyard.scripts.benchmark import demo, machine
from modelyard.scripts.benchmark.figure import Figure, Setting
from modelyard.scripts.benchmark.registry import FIGURES
from modelyard.scripts.benchmark.report import Outcome, as_json, as_markdown

JSON_FILE, TABLE_FILE = "benchmark.json", "benchmark.md"


def build_parser() -> argparse.ArgumentParser:
    """The grammar of ``modelyard benchmark``."""
    parser = argparse.ArgumentParser(
        prog="modelyard benchmark",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures what modelyard does against what one would use otherwise, side by side on this machine.\n"
        f"Writes {JSON_FILE} and {TABLE_FILE} and prints the table. The full run takes about a quarter of an hour, and 5 GB\n"
        "of disk in $TMPDIR and 6 GB of memory for a while.",
        epilog="figures:\n"
        + "\n".join(f"  {figure.name:<10} {figure.title}" for figure in FIGURES)
        + "\n\nexit codes:\n  0  measured, and all results agree (a figure out of reach is shown, and is no error)\n"
        "  1  a figure could not be measured, or two ways to do the same work gave different results",
    )
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="measure this figure only; may be given several times"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: whether everything works, not how fast it is")
    parser.add_argument("--demo", metavar="FILE", type=Path, help="demo.json of a demo on this machine, to show its seconds")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: benchmark/ in $MODELYARD_HOME)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes and prints what the arguments ask for, and returns the exit code.

    Raises:
        InvalidInput: there is no such figure, or ``--demo`` is not what the demo wrote.
    """
    chosen = _choose(arguments.only)
    if arguments.demo:
        # Before anything is measured: a file that cannot be read should not cost a quarter of an hour.
        demo.read_seconds(arguments.demo)
    output = arguments.output or settings.home() / "benchmark"
    description = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": code_revision(),
        "quick": arguments.quick,
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    with _ended_by_sigterm():
        outcomes = [_measure(figure, arguments.quick, arguments.demo) for figure in chosen]
    table = as_markdown(outcomes, description)
    write_text(output / JSON_FILE, json.dumps(as_json(outcomes, description), indent=1, allow_nan=False) + "\n")
    write_text(output / TABLE_FILE, table)
    print(table)
    print(f"{output / JSON_FILE}\n{output / TABLE_FILE}")
    return cli.OK if all(outcome.sound for outcome in outcomes) else cli.FAILED


def _choose(names: Sequence[str]) -> list[Figure]:
    known = [figure.name for figure in FIGURES]
    for name in names:
        if name not in known:
            raise InvalidInput("--only", name, f"choose from {', '.join(known)}")
    return [figure for figure in FIGURES if not names or figure.name in names]


def _measure(figure: Figure, quick: bool, demo: Path | None) -> Outcome:
    if missing := [name for name in figure.needs if importlib.util.find_spec(name) is None]:
        return Outcome(figure, skipped=f"not measured: {', '.join(missing)} must be installed for it")
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{figure.name}: {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="modelyard-benchmark-") as scratch:
        try:
            rows = figure.measure(Setting(Path(scratch), quick=quick, demo=demo, say=say))
        except NotAvailable as error:
            return Outcome(figure, skipped=str(error))
        except ModelyardError as error:
            # The other figures can still be measured.
            print(f"{figure.name}: {error}", file=sys.stderr, flush=True)
            return Outcome(figure, seconds=time.perf_counter() - began, error=str(error))
    return Outcome(figure, rows, time.perf_counter() - began)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as an exception does, so that the process measured and the scratch folder go, too."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
