"""Decides whether a model may go on: pass, fail or inconclusive, with the numbers behind it.

Gates come as a dictionary (JSON in the KFP form) of up to five entries; what is left out keeps its default, an empty list turns
a kind of gate off::

    {
      "absolute":    [{"metric": "pr_auc", "min": 0.3}],
      "first_model": [{"metric": "roc_auc", "min": 0.6, "on": "value"}],
      "difference":  [{"metric": "pr_auc", "margin": 0.02},
                      {"metric": "expected_cost", "margin": 0.0, "rule": "superiority"}],
      "slices":      [{"metric": "pr_auc", "margin": 0.1, "columns": ["country"], "too_few": "block"}],
      "min_positives": 30
    }

``absolute``
    ``min`` or ``max`` of a metric. With ``"on": "interval"`` (the default) the whole interval must lie on the right side to
    pass and wholly on the wrong side to fail; with ``"on": "value"`` the figure alone decides. Beside the metrics,
    ``model_bytes`` and ``latency_ms`` (median time to score one row) can be limited with ``max``.
``first_model``
    The same, applied only where no champion exists.
``difference``
    By the interval of the paired difference to the champion. ``non_inferiority`` (the default): passes when the interval
    excludes a worsening of more than ``margin``, fails when it lies wholly beyond. ``superiority``: passes when the interval
    excludes an improvement of ``margin`` or less, fails when it excludes a larger one.
``slices``
    Non-inferiority on every value of the sliced columns (all, or those in ``columns``). All must pass, so no correction for
    their number is needed. A slice with fewer positives or negatives than ``min_positives`` is inconclusive; that is reported
    and, only with ``"too_few": "block"``, decides.
``min_positives``
    With fewer positives or negatives in the test set, no metric is believed and every gate on one is inconclusive.

One failed gate fails the model; otherwise one inconclusive gate makes it inconclusive; a model that no gate was applied to is
inconclusive too.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.bootstrap import Estimate
from modelyard.components.evaluation.metrics import METRICS

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"

COSTS_OF_SCORING = {"model_bytes": "Model size in bytes", "latency_ms": "Latency of one row in ms"}
"""What can be limited beside the metrics."""

DEFAULTS: dict[str, Any] = {
    "absolute": [],
    "first_model": [{"metric": "roc_auc", "min": 0.5, "on": "interval"}],
    "difference": [{"metric": "pr_auc", "margin": 0.02, "rule": "non_inferiority"}],
    "slices": [],
    "min_positives": 30,
}


@dataclass(frozen=True)
class Absolute:
    """A bound on one figure: at least ``bound`` if ``at_least``, else at most."""

    metric: str
    bound: float
    at_least: bool
    on: str = "interval"
    first_model: bool = False


@dataclass(frozen=True)
class Difference:
    """A bound on how much worse (or better) than the champion; ``margin`` is in the metric's unit and not negative."""

    metric: str
    margin: float
    rule: str = "non_inferiority"


@dataclass(frozen=True)
class SliceGate:
    """Non-inferiority on each slice of ``columns`` (empty: of every column that is sliced)."""

    metric: str
    margin: float
    columns: tuple[str, ...] = ()
    too_few: str = "report"


@dataclass(frozen=True)
class Gates:
    """A validated configuration; see the module's description."""

    absolute: tuple[Absolute, ...]
    first_model: tuple[Absolute, ...]
    difference: tuple[Difference, ...]
    slices: tuple[SliceGate, ...]
    min_positives: int

    @property
    def metrics(self) -> set[str]:
        """Names of all figures that some gate looks at."""
        absolute = {gate.metric for gate in (*self.absolute, *self.first_model)}
        return absolute | {gate.metric for gate in self.difference} | {gate.metric for gate in self.slices}


@dataclass(frozen=True)
class Support:
    """How many rows stand behind a figure."""

    rows: int
    positives: int

    def too_few(self, minimum: int) -> str:
        """Why figures on these rows are not to be believed; empty if they are."""
        if not self.rows:
            return "there are no rows"
        for count, kind in ((self.positives, "positives"), (self.rows - self.positives, "negatives")):
            if count < minimum:
                return f"{count} {kind}, fewer than the {minimum} demanded"
        return ""


@dataclass(frozen=True)
class SliceResult:
    """One slice's figures: the rows where ``column`` has ``value``."""

    column: str
    value: str
    support: Support
    metrics: Mapping[str, Estimate]
    difference: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """What one gate said.

    Attributes:
        name: the gate in words.
        kind: ``absolute``, ``difference`` or ``slice``.
        metric: the figure it looks at.
        threshold: its bound or margin.
        value: the figure (or the difference challenger minus champion); None where it is undefined.
        low: lower end of the interval that decided, or None.
        high: upper end.
        decision: pass, fail or inconclusive.
        reason: one sentence with the numbers.
        decides: False for a result that is reported only.
    """

    name: str
    kind: str
    metric: str
    threshold: float
    value: float | None
    low: float | None
    high: float | None
    decision: str
    reason: str
    decides: bool = True


def parse_gates(config: Mapping[str, Any]) -> Gates:
    """Validates a configuration and fills in the defaults.

    Raises:
        InvalidInput: an unknown key, metric or word, or a number that makes no sense; the message names what is allowed.
    """
    if not isinstance(config, Mapping):
        raise InvalidInput("gates", config, f"give an object with some of {', '.join(DEFAULTS)}")
    _only(config, DEFAULTS, "gates")
    merged = {**DEFAULTS, **config}
    return Gates(
        absolute=tuple(_absolute(entry, where, False) for where, entry in _entries(merged, "absolute")),
        first_model=tuple(_absolute(entry, where, True) for where, entry in _entries(merged, "first_model")),
        difference=tuple(_difference(entry, where) for where, entry in _entries(merged, "difference")),
        slices=tuple(_slice_gate(entry, where) for where, entry in _entries(merged, "slices")),
        min_positives=_count(merged["min_positives"], "gates.min_positives"),
    )


def _entries(config: Mapping[str, Any], section: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = config[section]
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise InvalidInput(f"gates.{section}", entries, "give a list of gates, or [] for none")
    named = [(f"gates.{section}[{position}]", entry) for position, entry in enumerate(entries)]
    for where, entry in named:
        if not isinstance(entry, Mapping):
            raise InvalidInput(where, entry, 'give an object such as {"metric": "pr_auc", …}')
    return named


def _only(entry: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    for key in entry:
        if key not in allowed:
            raise InvalidInput(f"{where}.{key}", entry[key], f"no such key; the keys are {', '.join(allowed)}")


def _number(entry: Mapping[str, Any], key: str, where: str, minimum: float = -math.inf) -> float:
    if key not in entry:
        raise InvalidInput(where, dict(entry), f"add {key!r}, a number")
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < minimum:
        at_least = f" of at least {minimum:g}" if math.isfinite(minimum) else ""
        raise InvalidInput(f"{where}.{key}", value, f"give a finite number{at_least}")
    return float(value)


def _count(value: Any, where: str) -> int:
    # KFP hands every number of a dictionary over as a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer() or value < 1:
        raise InvalidInput(where, value, "give a whole number of at least 1")
    return int(value)


def _word(entry: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str) -> str:
    value = entry.get(key, choices[0])
    if value not in choices:
        raise InvalidInput(f"{where}.{key}", value, f"choose from {', '.join(choices)}")
    return str(value)


def _metric(entry: Mapping[str, Any], where: str, allowed: Collection[str]) -> str:
    value = entry.get("metric")
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(f"{where}.metric", value, f"choose from {', '.join(allowed)}")
    return value


def _absolute(entry: Mapping[str, Any], where: str, first_model: bool) -> Absolute:
    _only(entry, ("metric", "min", "max", "on"), where)
    metric = _metric(entry, where, (*METRICS, *COSTS_OF_SCORING))
    if ("min" in entry) == ("max" in entry):
        raise InvalidInput(where, dict(entry), "give either 'min' or 'max'")
    at_least = "min" in entry
    if metric in COSTS_OF_SCORING:
        if at_least or "on" in entry:
            raise InvalidInput(where, dict(entry), f"{metric} takes 'max' only")
        return Absolute(metric, _number(entry, "max", where), False, "value", first_model)
    bound = _number(entry, "min" if at_least else "max", where)
    return Absolute(metric, bound, at_least, _word(entry, "on", ("interval", "value"), where), first_model)


def _difference(entry: Mapping[str, Any], where: str) -> Difference:
    _only(entry, ("metric", "margin", "rule"), where)
    rule = _word(entry, "rule", ("non_inferiority", "superiority"), where)
    return Difference(_metric(entry, where, METRICS), _number(entry, "margin", where, 0.0), rule)


def _slice_gate(entry: Mapping[str, Any], where: str) -> SliceGate:
    _only(entry, ("metric", "margin", "columns", "too_few"), where)
    columns = entry.get("columns", [])
    if isinstance(columns, str) or not isinstance(columns, Sequence) or not all(isinstance(name, str) for name in columns):
        raise InvalidInput(f"{where}.columns", columns, "give a list of column names")
    metric, margin = _metric(entry, where, METRICS), _number(entry, "margin", where, 0.0)
    return SliceGate(metric, margin, tuple(columns), _word(entry, "too_few", ("report", "block"), where))


def apply_gates(
    gates: Gates,
    support: Support,
    metrics: Mapping[str, Estimate],
    *,
    champion: bool,
    difference: Mapping[str, Estimate] | None = None,
    incomparable: str = "",
    slices: Sequence[SliceResult] = (),
    costs_of_scoring: Mapping[str, float] | None = None,
) -> list[GateResult]:
    """What every gate says.

    Args:
        gates: the validated configuration.
        support: rows and positives of the test set.
        metrics: the challenger's figures.
        champion: whether there is a champion to compare with.
        difference: challenger minus champion, paired.
        incomparable: why a champion that exists cannot be compared; makes the gates on differences inconclusive.
        slices: the figures of each slice.
        costs_of_scoring: ``model_bytes`` and ``latency_ms`` where a gate asks for them.
    """
    doubt = support.too_few(gates.min_positives)
    results = [
        _judge_absolute(gate, metrics, costs_of_scoring or {}, doubt)
        for gate in (*gates.absolute, *(() if champion else gates.first_model))
    ]
    if not champion:
        return results
    for gate in gates.difference:
        wish = "better" if gate.rule == "superiority" else "not worse"
        name = f"{gate.metric} {wish} than the champion by more than {gate.margin:g}"
        results.append(_judge_difference(gate, (difference or {}).get(gate.metric), name, incomparable or doubt))
    for slice_gate in gates.slices:
        results.extend(_judge_slices(slice_gate, slices, gates.min_positives, incomparable))
    return results


def decide(results: Sequence[GateResult]) -> tuple[str, list[str]]:
    """The decision over all gates and its reasons, those that decided it first."""
    deciding = [result for result in results if result.decides]
    if not deciding:
        reported = [result.reason for result in results]
        return INCONCLUSIVE, ["no gate was applied, and a model that nothing was asked of does not pass", *reported]
    order = (FAIL, INCONCLUSIVE, PASS)
    decision = next(word for word in order if any(result.decision == word for result in deciding))
    ranked = sorted(results, key=lambda result: (not result.decides, order.index(result.decision)))
    return decision, [result.reason for result in ranked]


def _judge_absolute(
    gate: Absolute, metrics: Mapping[str, Estimate], costs_of_scoring: Mapping[str, float], doubt: str
) -> GateResult:
    word = "at least" if gate.at_least else "at most"
    name = f"{gate.metric} {word} {gate.bound:,.10g}" + (" (first model)" if gate.first_model else "")

    def result(found: Estimate, decision: str, reason: str) -> GateResult:
        return GateResult(
            name, "absolute", gate.metric, gate.bound, found.value, found.low, found.high, decision, f"{name}: {reason}"
        )

    if gate.metric in COSTS_OF_SCORING:
        cost = costs_of_scoring.get(gate.metric)
        if cost is None:
            return result(Estimate(None), INCONCLUSIVE, "it was not measured")
        return result(
            Estimate(cost), PASS if cost <= gate.bound else FAIL, f"it is {cost:,.0f}" if cost >= 1000 else f"it is {cost:.4g}"
        )
    found = metrics.get(gate.metric, Estimate(None))
    if missing := doubt or _missing(found, gate.on == "interval"):
        return result(found, INCONCLUSIVE, missing)
    assert found.value is not None  # noqa: S101
    if gate.on == "value":
        holds = found.value >= gate.bound if gate.at_least else found.value <= gate.bound
        return result(found, PASS if holds else FAIL, f"it is {found.value:.4g}")
    low, high = _bounds(found)
    good, bad = (low >= gate.bound, high < gate.bound) if gate.at_least else (high <= gate.bound, low > gate.bound)
    decision = PASS if good else FAIL if bad else INCONCLUSIVE
    return result(found, decision, f"it is {_shown(found)}{'' if good or bad else ', on both sides of the bound'}")


def _judge_difference(gate: Difference, found: Estimate | None, name: str, doubt: str, kind: str = "difference") -> GateResult:
    found = found or Estimate(None)
    better = METRICS[gate.metric].higher_is_better

    def result(decision: str, reason: str) -> GateResult:
        return GateResult(
            name, kind, gate.metric, gate.margin, found.value, found.low, found.high, decision, f"{name}: {reason}"
        )

    if missing := doubt or _missing(found, True):
        return result(INCONCLUSIVE, missing)
    low, high = _bounds(found)
    # The improvement: what a higher-is-better metric's difference is already.
    worst, best = (low, high) if better else (-high, -low)
    shown = f"the difference is {_shown(found, signed=True)}"
    if gate.rule == "superiority":
        decision = PASS if worst > gate.margin else FAIL if best <= gate.margin else INCONCLUSIVE
    else:
        decision = PASS if worst >= -gate.margin else FAIL if best < -gate.margin else INCONCLUSIVE
    return result(decision, f"{shown}{', which does not settle it' if decision == INCONCLUSIVE else ''}")


def _judge_slices(gate: SliceGate, slices: Sequence[SliceResult], min_positives: int, incomparable: str) -> list[GateResult]:
    wanted = [part for part in slices if not gate.columns or part.column in gate.columns]
    rule = Difference(gate.metric, gate.margin)
    missing = [column for column in gate.columns if column not in {part.column for part in slices}]
    results = [
        _judge_difference(rule, None, f"{gate.metric} by {column}", "the test set has no such slices", "slice")
        for column in missing
    ]
    if not wanted and not missing:
        results.append(_judge_difference(rule, None, f"{gate.metric} by slice", "the test set has no slices", "slice"))
    for part in wanted:
        name = f"{gate.metric} not worse by more than {gate.margin:g} where {part.column} is {part.value}"
        few = part.support.too_few(min_positives)
        judged = _judge_difference(rule, part.difference.get(gate.metric), name, incomparable or few, "slice")
        reports_only = bool(few) and not incomparable and gate.too_few == "report"
        results.append(GateResult(**{**vars(judged), "decides": not reports_only}))
    return results


def _missing(found: Estimate, interval: bool) -> str:
    if found.value is None:
        return "it is not defined on this test set"
    if interval and found.low is None:
        return f"it is {found.value:.4g}, but the test set is too small or has too few clusters for an interval"
    return ""


def _bounds(found: Estimate) -> tuple[float, float]:
    assert found.low is not None  # noqa: S101
    assert found.high is not None  # noqa: S101
    return found.low, found.high


def _shown(found: Estimate, *, signed: bool = False) -> str:
    form = "+.4f" if signed else ".4f"
    low, high = _bounds(found)
    return f"{found.value:{form}} [{low:{form}}, {high:{form}}]"
