"""How figures, gates and facts look in the pages of this room."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.components.evaluation.bootstrap import Estimate
from modelyard.components.evaluation.gates import FAIL, INCONCLUSIVE, PASS, GateResult
from modelyard.components.evaluation.metrics import METRICS, Terms
from modelyard.components.plots.page import Cell, Table

TONES = {PASS: "good", FAIL: "bad", INCONCLUSIVE: "warn"}
SLICE_METRICS = ("pr_auc", "roc_auc", "recall", "precision")


def metric_title(name: str, terms: Terms) -> str:
    """A metric's name with its parameter."""
    suffix = {"recall_at_precision": f" {terms.precision:g}", "card_precision": f" at {terms.cards_per_day}"}
    return METRICS[name].title + suffix.get(name, "")


def estimate_cell(found: Estimate | None, *, signed: bool = False, tone: str = "") -> Cell:
    """A figure over its interval."""
    form = "+.4f" if signed else ".4f"
    if found is None or found.value is None:
        return Cell("undefined" if found else "–", tone="muted")
    bounds = "no interval" if found.low is None else f"[{found.low:{form}}, {found.high:{form}}]"
    return Cell(f"{found.value:{form}}", bounds, tone)


def gates_table(results: Sequence[GateResult]) -> Table:
    """What each gate said, with the numbers."""
    rows: list[list[Cell | str]] = []
    for result in results:
        decision = result.decision if result.decides else f"{result.decision}, reported only"
        badge = Cell(decision, tone=TONES[result.decision] if result.decides else "muted", badge=True)
        rows.append([badge, Cell(result.name, result.reason.removeprefix(f"{result.name}: "))])
    return Table(("Decision", "Gate"), rows)


def moment(text: str | None) -> str:
    """An ISO timestamp to the minute."""
    return "–" if not text else text[:10] if len(text) < 16 else f"{text[:10]} {text[11:16]} UTC"


def flat(entries: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested entries as labelled texts."""
    items: list[tuple[str, str]] = []
    for key, value in entries.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            items += flat(value, f"{name} · ")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            items.append((name, ", ".join(map(str, value)) or "none"))
        else:
            items.append((name, str(value)))
    return items
