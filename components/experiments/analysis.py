"""An experiment judged: is the version under trial better than the control, worse, or not different enough to matter?

Two versions shared the traffic, by key or by request; the labels came later. The decision rests on two differences, trial minus
control: in PR-AUC, and in the mean cost of a prediction at the decisions that were answered. Both have intervals that hold at
every look, each with half of ``alpha``. So between equal versions a winner or a loser is declared with probability ``alpha`` at
most, over all looks together (asymptotically; see ``confidence_sequence``).

| decision | when |
|---|---|
| ``winner`` | the interval of PR-AUC lies above 0, and that of the cost below what may be added to the control's |
| ``loser`` | the interval of PR-AUC lies below 0, or that of the cost above what may be added |
| ``futile`` | the interval of PR-AUC lies within the gain that matters on either side, or the samples are used up |
| ``go_on`` | otherwise, and whenever the experiment itself is in doubt: labels missing, traffic not split as asked |
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from modelyard.components.errors import InvalidInput
from modelyard.components.experiments.allocation import Allocation, check_allocation
from modelyard.components.experiments.confidence_sequence import Interval, boundary, interval
from modelyard.components.experiments.estimators import ArmRows, difference, expected_cost, pr_auc, ranked_rows, score_shares
from modelyard.components.experiments.labelled_log import (
    BY_KEY,
    BY_REQUEST,
    MOST_UNLABELLED,
    LabelledLog,
    join_labels,
    read_labels,
)
from modelyard.components.predictions.reader import read_predictions
from modelyard.components.serving.buckets import SCORE_EDGES

WINNER, LOSER, FUTILE, GO_ON = "winner", "loser", "futile", "go_on"
FORMAT_VERSION = 1
# With fewer keys that have a positive, or lie beyond an edge of the scores, a normal limit is no guide.
MIN_KEYS = 30
# Nor is it where fewer keys than this carry a difference, because some send far more requests than others.
MIN_CARRYING_KEYS = 10
# Positives in each arm at which the intervals are tightest, in boundaries; before and after they are wider by little.
TARGET_POSITIVES = 300
_MOST_LOOKS = 60
_FEWEST_LOOKS = 12


@dataclass(frozen=True)
class Terms:
    """On what terms versions are compared.

    Attributes:
        false_positive_cost: cost of a false alert, in any unit.
        false_negative_cost: cost of a missed positive, in the same unit.
        min_pr_auc_gain: difference in PR-AUC that is too small to matter; 0: none is.
        max_cost_increase: share of the control's cost that a winner may add to it.
        share: percent of the keys, or requests, that the trial was to get; 0: not known.
        label_delay_days: days that a label may take.
        max_samples: matured predictions after which the experiment ends undecided; 0: never.
        alpha: probability that equal versions are told apart.
        split_by: what the traffic was split by: ``key``, where a key meets one version, or ``request``.
    """

    false_positive_cost: float = 1.0
    false_negative_cost: float = 10.0
    min_pr_auc_gain: float = 0.01
    max_cost_increase: float = 0.1
    share: float = 0.0
    label_delay_days: float = 0.0
    max_samples: int = 0
    alpha: float = 0.05
    split_by: str = BY_KEY

    def check(self) -> None:
        """Raises ``InvalidInput`` for terms that cannot be meant."""
        for field in ("false_positive_cost", "false_negative_cost", "min_pr_auc_gain", "max_cost_increase", "label_delay_days"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(field, value, "give a number that is not below 0")
        if not self.false_positive_cost + self.false_negative_cost:
            raise InvalidInput("false_positive_cost", 0, "let at least one kind of error cost something")
        if not 0 < self.alpha <= 0.5:
            raise InvalidInput("alpha", self.alpha, "give a probability above 0 and at most 0.5")
        if self.max_samples < 0:
            raise InvalidInput("max_samples", self.max_samples, "give a number of predictions, or 0 for no end")
        if self.split_by not in (BY_KEY, BY_REQUEST):
            raise InvalidInput("split_by", self.split_by, f"give {BY_KEY!r} or {BY_REQUEST!r}")


@dataclass(frozen=True)
class Look:
    """What was known at a moment.

    Attributes:
        at: predictions before this moment were seen.
        rows: labelled predictions of the control and of the trial.
        positives: positives among them.
        pr_auc: average precision of either, NaN without positives.
        cost: mean cost of a prediction of either.
        pr_auc_difference: trial minus control; None while there is too little, few keys carry it, or nothing varies.
        cost_difference: the same of the cost.
    """

    at: datetime
    rows: tuple[int, int]
    positives: tuple[int, int]
    pr_auc: tuple[float, float]
    cost: tuple[float, float]
    pr_auc_difference: Interval | None
    cost_difference: Interval | None


@dataclass(frozen=True)
class ScoreShift:
    """How far the distributions of the scores are apart: the largest difference in the share at or below any edge
    that enough keys lie on either side of.

    Attributes:
        distance: the largest difference found, in [0, 1] (Kolmogorov and Smirnov's, at ``SCORE_EDGES``).
        low: bound that holds at every look with probability 1 - alpha, all edges together.
        high: the other one.
        at: the score where it was found.
    """

    distance: float
    low: float
    high: float
    at: float


@dataclass(frozen=True)
class Analysis:
    """An experiment judged.

    Attributes:
        decision: about the version under trial.
        reasons: one sentence each, the decisive ones first.
        in_doubt: whether the experiment itself cannot be trusted, so that nothing is decided.
        warnings: what was not checked, or left out.
        looks: what was known over time; the decision is that of the last.
        arms: labelled rows of the control and of the trial.
    """

    model_name: str
    versions: tuple[str, str]
    terms: Terms
    decision: str
    reasons: tuple[str, ...]
    in_doubt: bool
    warnings: tuple[str, ...]
    looks: tuple[Look, ...]
    score_shift: ScoreShift | None
    allocation: Allocation
    log: LabelledLog
    arms: tuple[ArmRows, ArmRows]
    start: datetime
    end: datetime

    def content(self) -> dict[str, Any]:
        """JSON-ready, for the steps that follow."""
        last = self.looks[-1] if self.looks else None
        return _finite(
            {
                "format_version": FORMAT_VERSION,
                "model_name": self.model_name,
                "version_a": self.versions[0],
                "version_b": self.versions[1],
                "decision": self.decision,
                "reasons": list(self.reasons),
                "in_doubt": self.in_doubt,
                "warnings": list(self.warnings),
                "from": self.start.isoformat(),
                "to": self.end.isoformat(),
                "terms": asdict(self.terms),
                "last_look": None if last is None else _look_content(last),
                "score_shift": None if self.score_shift is None else asdict(self.score_shift),
                "allocation": asdict(self.allocation),
                "quality": self.log.quality.content(),
                "looks": [_look_content(look) for look in self.looks],
            }
        )


def _look_content(look: Look) -> dict[str, Any]:
    return {**asdict(look), "at": look.at.isoformat()}


def _finite(value: Any) -> Any:
    """The same with None for what is not a finite number."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def analyze(
    *,
    model_name: str,
    predictions_uri: str,
    labels_uri: str,
    version_a: str,
    version_b: str,
    start: datetime | None = None,
    end: datetime | None = None,
    label: str = "label",
    terms: Terms = Terms(),
    now: datetime | None = None,
) -> Analysis:
    """Reads the log and the labels, and judges.

    Args:
        model_name: whose predictions.
        predictions_uri: the prediction log.
        labels_uri: Parquet or CSV file of labels.
        version_a: the control.
        version_b: the version under trial.
        start: when the split began, or its share last changed. None: the first prediction of the trial.
        end: when it ended. None: now.
        label: column of the labels.
        terms: what is compared, and how.
        now: until when labels have arrived; None: until now.

    Raises:
        InvalidInput: parameters, log or labels cannot be used.
        NotAvailable: a store cannot be reached, or does not let us in.
    """
    terms.check()
    if not version_b or version_a == version_b:
        raise InvalidInput("version_b", version_b, f"name another version than version_a, {version_a!r}")
    predictions = read_predictions(
        predictions_uri, model_name, start=start, end=end, versions=(version_a, version_b), features=False
    )
    if start is None:
        began = predictions.filter(pl.col("version") == version_b)["time"].min()
        predictions = predictions if began is None else predictions.filter(pl.col("time") >= began)
    labels, conflicts = read_labels(labels_uri, label)
    log = join_labels(
        predictions,
        labels,
        conflicts,
        control=version_a,
        trial=version_b,
        now=now or datetime.now(UTC),
        delay_days=terms.label_delay_days,
        split_by=terms.split_by,
    )
    return judge(log, terms, model_name=model_name, versions=(version_a, version_b))


def judge(log: LabelledLog, terms: Terms, *, model_name: str, versions: tuple[str, str]) -> Analysis:
    """Judges an experiment whose labels are joined."""
    allocation = check_allocation(log.units["in_trial"].to_numpy(), terms.share)
    moments = _moments(log.rows["time"])
    rows = log.rows.with_columns(pl.col("key").rank("dense"))
    arms = _arm(rows, False, moments), _arm(rows, True, moments)
    looks = tuple(_look(arms, position, moment, terms) for position, moment in enumerate(moments))
    looks = tuple(look for look in looks if min(look.rows))
    decision, reasons = _decide(looks[-1] if looks else None, terms, sum(log.matured))
    warnings = _warnings(log, allocation, terms)
    doubts = _doubts(log, allocation, terms)
    if doubts:
        decision, reasons = GO_ON, (*doubts, *(f"otherwise: {reason}" for reason in reasons))
    start, end = (log.rows["time"].min(), moments[-1]) if moments else (log.until, log.until)
    assert isinstance(start, datetime)  # noqa: S101 - a column of times has a time as its least
    return Analysis(
        model_name=model_name,
        versions=versions,
        terms=terms,
        decision=decision,
        reasons=reasons,
        in_doubt=bool(doubts),
        warnings=warnings,
        looks=looks,
        score_shift=_score_shift(arms, terms) if looks else None,
        allocation=allocation,
        log=log,
        arms=arms,
        start=start,
        end=end,
    )


def _moments(times: pl.Series) -> list[datetime]:
    """The looks: midnights, or fewer where there are many, or moments within days where there are few."""
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return []
    last += timedelta(microseconds=1)
    days = (last - first) / timedelta(days=1)
    if days < _FEWEST_LOOKS:
        return [first + (last - first) * (step + 1) / _FEWEST_LOOKS for step in range(_FEWEST_LOOKS - 1)] + [last]
    stride = timedelta(days=math.ceil(days / _MOST_LOOKS))
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    moments = [midnight + stride * (step + 1) for step in range(_MOST_LOOKS + 1)]
    return [moment for moment in moments if moment < last] + [last]


def _arm(rows: pl.DataFrame, in_trial: bool, moments: Sequence[datetime]) -> ArmRows:
    part = rows.filter(pl.col("in_trial") == in_trial)
    edges = pl.Series(list(moments), dtype=pl.Datetime("us", "UTC")).to_physical().to_numpy()
    looks = np.searchsorted(edges, part["time"].to_physical().to_numpy(), side="right")
    scores, labels, decisions, keys = (part[name].to_numpy() for name in ("score", "label", "decision", "key"))
    return ranked_rows(scores, labels, decisions, keys, looks)


def _look(arms: tuple[ArmRows, ArmRows], position: int, moment: datetime, terms: Terms) -> Look:
    control, trial = (arm.until(position) for arm in arms)
    rows, positives = (control.rows, trial.rows), (control.positives, trial.positives)
    if not min(rows):
        return Look(moment, rows, positives, (math.nan, math.nan), (math.nan, math.nan), None, None)
    ranking = [pr_auc(arm) for arm in (control, trial)]
    costs = [expected_cost(arm, terms.false_positive_cost, terms.false_negative_cost) for arm in (control, trial)]
    differences: list[Interval | None] = [None, None]
    if min(control.positive_keys, trial.positive_keys) >= MIN_KEYS:
        progress = _progress(positives)
        for place, (of_control, of_trial) in enumerate((ranking, costs)):
            found = difference(of_control, of_trial)
            if found.carrying_keys >= MIN_CARRYING_KEYS:
                differences[place] = interval(float(found.value), math.sqrt(found.variance), progress, terms.alpha / 2)
    return Look(
        moment,
        rows,
        positives,
        (float(ranking[0].value), float(ranking[1].value)),
        (float(costs[0].value), float(costs[1].value)),
        *differences,
    )


def _progress(positives: tuple[int, int]) -> float:
    """Positives of an arm, as their harmonic mean, as a share of the target."""
    return 2 / (1 / positives[0] + 1 / positives[1]) / TARGET_POSITIVES


def _score_shift(arms: tuple[ArmRows, ArmRows], terms: Terms) -> ScoreShift | None:
    """By the differences at all edges at once, each with its part of alpha; without those that few keys lie beyond."""
    if not min(arms[0].positives, arms[1].positives):
        return None
    (control, of_control), (trial, of_trial) = (score_shares(arm) for arm in arms)
    carried = np.minimum(of_control, of_trial) >= MIN_KEYS
    if not carried.any():
        return None
    found = difference(control, trial)
    apart = np.where(carried, np.abs(found.value), 0.0)
    width = boundary(_progress((arms[0].positives, arms[1].positives)), terms.alpha / len(SCORE_EDGES))
    half = np.where(carried, width * np.sqrt(found.variance), 0.0)
    at = int(np.argmax(apart))
    low, high = max(float((apart - half).max()), 0.0), min(float((apart + half).max()), 1.0)
    return ScoreShift(float(apart[at]), low, high, SCORE_EDGES[at])


def _decide(look: Look | None, terms: Terms, samples: int) -> tuple[str, tuple[str, ...]]:
    if look is None:
        return GO_ON, ("no label has had time to arrive for both versions yet",)
    ranking, cost = look.pr_auc_difference, look.cost_difference
    used_up = terms.max_samples and samples >= terms.max_samples
    spent = f"{samples:,} of at most {terms.max_samples:,} predictions are used up without a decision"
    if ranking is None or cost is None:
        few = min(look.positives)
        reason = (
            f"too little is known: {MIN_KEYS} keys with a positive are needed for each version, and the smaller has "
            f"{few:,} positives"
            if few < MIN_KEYS
            else f"fewer than {MIN_KEYS} keys of a version have a positive, or the difference rests on fewer than "
            f"{MIN_CARRYING_KEYS} keys that send most of the requests, or the figures do not vary"
        )
        return (FUTILE, (spent, reason)) if used_up else (GO_ON, (reason,))
    allowed = terms.max_cost_increase * look.cost[0]
    said = _in_words("PR-AUC", ranking, "higher", "lower")
    cost_said = _in_words("the cost of a prediction", cost, "higher", "lower")
    margin = terms.min_pr_auc_gain
    if cost.low > allowed:
        return LOSER, (f"{cost_said}: above what may be added, {allowed:.4g}", said)
    if ranking.high < 0 and ranking.low < -margin:
        return LOSER, (said, cost_said)
    if margin and -margin <= ranking.low and ranking.high <= margin:
        return FUTILE, (f"{said}: less than {margin:g} either way, which is too little to matter", cost_said)
    if ranking.low > 0 and cost.high <= allowed:
        return WINNER, (said, f"{cost_said}: below what may be added, {allowed:.4g}")
    if used_up:
        return FUTILE, (spent, said, cost_said)
    if ranking.low > 0:
        return GO_ON, (said, f"{cost_said}: not yet known to stay below what may be added, {allowed:.4g}")
    return GO_ON, (f"{said}: not told from 0 yet", cost_said)


def _in_words(what: str, found: Interval, more: str, less: str) -> str:
    return (
        f"{what} is {abs(found.value):.4f} {more if found.value >= 0 else less}, interval [{found.low:+.4f}, {found.high:+.4f}]"
    )


def _doubts(log: LabelledLog, allocation: Allocation, terms: Terms) -> tuple[str, ...]:
    """What forbids a decision."""
    doubts = []
    if allocation.mismatch and allocation.asked is not None:
        doubts.append(
            f"version_b got {allocation.share:.2f} % of {sum(allocation.units):,} {terms.split_by}s instead of "
            f"{allocation.asked:g} %, which "
            f"is no chance: the versions did not get alike traffic; find what loses or moves {terms.split_by}s"
        )
    if log.quality.unlabelled_share > MOST_UNLABELLED:
        doubts.append(
            f"{log.quality.unlabelled:,} of {log.quality.matured:,} predictions older than the delay have no label: deliver "
            "those that are missing, 0s too, or give a longer delay"
        )
    return tuple(doubts)


def _warnings(log: LabelledLog, allocation: Allocation, terms: Terms) -> tuple[str, ...]:
    found = log.quality
    warnings = []
    if not terms.share:
        warnings.append("The share asked for version_b is not given, so whether traffic was split as asked was not checked.")
    if found.without_key:
        warnings.append(
            f"{found.without_key:,} predictions name no key: such requests count as independent of each other, which makes "
            "the intervals too narrow where customers return."
        )
    if found.crossed_keys and terms.split_by == BY_KEY:
        warnings.append(
            f"{found.crossed_keys:,} keys were answered by both versions; their {found.crossed_rows:,} rows are left out."
        )
    if found.unlabelled:
        warnings.append(f"{found.unlabelled:,} predictions older than the delay have no label and are left out.")
    if found.duplicates:
        warnings.append(f"{found.duplicates:,} rows were logged twice; the first counts.")
    if found.conflicting_labels:
        warnings.append(f"{found.conflicting_labels:,} predictions are labelled both 0 and 1 and are left out.")
    if found.unusable:
        warnings.append(f"{found.unusable:,} rows of the log have no score or decision and are left out.")
    return tuple(warnings)
