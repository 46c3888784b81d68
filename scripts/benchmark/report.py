"""The figures as JSON and as a Markdown table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelyard.scripts.benchmark.figure import Figure, Row
from modelyard.scripts.benchmark.measuring import Measurement

FORMAT_VERSION = 1
_HEADINGS = ("Work", "modelyard", "Peer", "Peer's figure", "Against the peer", "To reach", "Reached", "Notes")


@dataclass(frozen=True)
class Outcome:
    """What became of one figure.

    Attributes:
        figure: which.
        rows: its comparisons; empty where it could not be measured.
        seconds: how long measuring took.
        skipped: why it was left out; empty if it was not.
        error: what went wrong; empty if nothing did.
    """

    figure: Figure
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    skipped: str = ""
    error: str = ""

    @property
    def sound(self) -> bool:
        """Whether it was measured, or left out for a reason, and all results agree."""
        return not self.error and not any(row.differences for row in self.rows)


def as_json(outcomes: Sequence[Outcome], run: dict[str, Any]) -> dict[str, Any]:
    """The whole report.

    Args:
        outcomes: the figures.
        run: what is known of the run: date, revision, machine, versions, sizes.
    """
    figures = [
        {
            "name": outcome.figure.name,
            "title": outcome.figure.title,
            "seconds": round(outcome.seconds, 1),
            "skipped": outcome.skipped,
            "error": outcome.error,
            "rows": [_row(row) for row in outcome.rows],
        }
        for outcome in outcomes
    ]
    return {"format_version": FORMAT_VERSION, **run, "figures": figures}


def _row(row: Row) -> dict[str, Any]:
    return {
        "work": row.work,
        "unit": row.unit,
        "ours": round(row.ours, 4),
        "peer_name": row.peer_name,
        "peer": None if row.peer is None else round(row.peer, 4),
        "ratio": None if row.ratio is None else round(row.ratio, 4),
        "larger_is_better": row.larger_is_better,
        "target": row.target,
        "reached": row.reached,
        "differences": row.differences,
        "note": row.note,
        "measurements": {name: _measurement(measured) for name, measured in row.measurements.items()},
    }


def _measurement(measured: Measurement) -> dict[str, Any]:
    return {
        "seconds": round(measured.seconds, 4),
        "cpu_seconds": round(measured.cpu_seconds, 4),
        "peak_gib": round(measured.peak_gib, 3),
        "repeats": measured.repeats,
        "facts": measured.facts,
    }


def as_markdown(outcomes: Sequence[Outcome], run: dict[str, Any]) -> str:
    """The table, with a sentence before it that says where the figures are from, and what is missing after it."""
    machine, versions = run["machine"], run["versions"]
    lines = [
        f"Measured on {run['date'][:10]} on {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']:g} GiB, "
        f"Python {versions['python']}, load {machine['load']:g} at the start"
        + (" with small sizes, which say nothing about speed." if run["quick"] else ".")
        + " Each pair was measured in turn, in fresh processes; medians.",
        "",
        _line(_HEADINGS),
        _line(["---"] * len(_HEADINGS)),
    ]
    for outcome in outcomes:
        lines += [_line(_cells(row)) for row in outcome.rows]
    for outcome in outcomes:
        if reason := outcome.skipped or outcome.error:
            lines += ["", f"{outcome.figure.title}: {reason.splitlines()[-1]}"]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    notes = [row.note] if row.note else []
    if row.differences is not None:
        notes.insert(0, f"{row.differences} differences")
    return [
        row.work,
        quantity(row.ours, row.unit),
        row.peer_name or "–",
        "–" if row.peer is None else quantity(row.peer, row.unit),
        against(row),
        row.target or "–",
        {True: "yes", False: "**no**", None: "–"}[row.reached],
        "; ".join(notes),
    ]


def quantity(value: float, unit: str) -> str:
    """A figure with its unit, to three significant digits or whole."""
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return f"{number} {unit}"


def against(row: Row) -> str:
    """How much better or worse than the peer."""
    if not row.ratio or row.unit == "":
        return "–"
    times = row.ratio if row.larger_is_better else 1 / row.ratio
    word, factor = ("faster", times) if times >= 1 else ("slower", 1 / times)
    return f"{factor:,.0f} x {word}" if factor >= 10 else f"{factor:.1f} x {word}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
