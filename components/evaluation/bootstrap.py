"""Intervals by resampling whole clusters, the same draws for every model.

Rows of one customer are alike, so resampling rows makes intervals too narrow; here a draw gives each *cluster* (customer) an
integer weight from the Poisson(1) distribution (Poisson bootstrap: Hanley & MacGibbon, 2006; Chamandy et al., 2012), and every
model is measured under the same weights. The differences between two models then vary far less than the models do.

A draw costs little: scores are sorted once for each model, and of the ranking only the weights between one positive and the
next are needed. Those sums are a sparse matrix (stretches x clusters) times the weights of a block of draws; whatever is a
sum over rows is a small dense matrix times the same weights. Counts are exact: float32 holds integers up to 2^24, and longer
sums are float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.metrics import (
    ECE_BINS,
    METRICS,
    CardDays,
    Terms,
    calibration_bins,
    card_days,
    log_losses,
    measure,
    squared_errors,
)

MIN_CLUSTERS = 10
"""Fewer clusters than this give no interval: their spread cannot be known."""

UNDEFINED_SHARE = 0.05
"""A metric that is undefined in more of the draws than this gets no interval."""

_BLOCK_WEIGHTS = 1 << 24
_PIECE = 256
_DRAWN_AT_ONCE = 1 << 17
_ROW_CHUNK = 1 << 16


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval: ``value`` is None where it is undefined, ``low`` and ``high`` where no interval can be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rows:
    """The test rows that all models are measured on.

    Attributes:
        labels: bool, shape (rows,).
        clusters: codes from 0, int, shape (rows,).
        days: integer days, shape (rows,), if clusters are cards and card precision is wanted; else None.
    """

    labels: np.ndarray
    clusters: np.ndarray
    days: np.ndarray | None = None

    @property
    def cluster_count(self) -> int:
        return int(self.clusters.max()) + 1 if len(self.clusters) else 0

    def subset(self, mask: np.ndarray) -> "Rows":
        """The rows where ``mask`` is true, their clusters numbered anew."""
        _, clusters = np.unique(self.clusters[mask], return_inverse=True)
        return Rows(self.labels[mask], clusters, None if self.days is None else self.days[mask])


@dataclass(frozen=True)
class Scores:
    """One model's answers to the rows: float64 scores in [0, 1], shape (rows,), and the threshold it decides at."""

    values: np.ndarray
    threshold: float


def draw_weights(clusters: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Poisson(1) weights in blocks of draws: float32 arrays of shape (clusters, draws of the block).

    Probabilities are rounded to multiples of 2^-16, with a mean of exactly 1. The blocks depend on the arguments only.
    """
    block = min(draws, max(8, _BLOCK_WEIGHTS // max(clusters, 1)))
    table = _poisson_table()
    bits = np.random.Generator(np.random.SFC64(seed))
    for start in range(0, draws, block):
        weights = np.empty((clusters, min(block, draws - start)), np.float32)
        flat = weights.reshape(-1)
        # In pieces that stay in the cache, as memory is what takes the time.
        for first in range(0, len(flat), _DRAWN_AT_ONCE):
            piece = flat[first : first + _DRAWN_AT_ONCE]
            np.take(table, bits.integers(0, 1 << 16, size=len(piece), dtype=np.uint16), out=piece, mode="clip")
        yield weights


def _poisson_table() -> np.ndarray:
    """The weight for each 16-bit number."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(weight) for weight in range(12)])
    return np.searchsorted(np.round(cumulative * (1 << 16)), np.arange(1 << 16), side="right").astype(np.float32)


def replicates(
    rows: Rows,
    models: Sequence[Scores],
    terms: Terms,
    *,
    draws: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = tuple(METRICS),
) -> list[dict[str, np.ndarray]]:
    """Every metric of every model under the same resampled weights.

    Args:
        rows: the test rows.
        models: answers to exactly those rows.
        terms: what the metrics are measured on.
        draws: number of resamples.
        seed: equal seeds give equal draws.
        metrics: names out of ``METRICS``; fewer are faster. ``card_precision`` is left out where ``rows.days`` is None.

    Returns:
        For each model, float64 arrays of shape (draws,) by metric; NaN where a draw leaves a metric undefined.
    """
    for name in metrics:
        if name not in METRICS:
            raise InvalidInput("metrics", name, f"choose from {', '.join(METRICS)}")
    plans = [_Plan(rows, model, terms, metrics) for model in models]
    blocks: list[list[dict[str, np.ndarray]]] = [[] for _ in models]
    for weights in draw_weights(rows.cluster_count, draws, seed):
        for plan, collected in zip(plans, blocks):
            collected.append(plan.measure(weights))
    return [{name: np.concatenate([block[name] for block in parts]) for name in parts[0]} for parts in blocks]


def interval(
    value: float, replicated: np.ndarray, confidence: float = 0.95, *, reflected: bool = False, non_negative: bool = True
) -> tuple[float, float] | None:
    """A two-sided percentile interval; None where the draws cannot carry one.

    A calibration error is biased upwards by noise, and its resamples once more, so its percentiles can lie wholly above the
    value itself. ``reflected`` mirrors them at the value (the basic bootstrap), which takes the shift out.

    Args:
        value: the metric on the rows as they are.
        replicated: the metric under each draw, shape (draws,); NaN where undefined.
        confidence: probability that the interval is to hold the truth, in (0, 1).
        reflected: mirror the percentiles at ``value``.
        non_negative: a reflected interval stops at 0 (a difference may be negative).
    """
    defined = replicated[np.isfinite(replicated)]
    if not math.isfinite(value) or not len(defined) or len(defined) < (1 - UNDEFINED_SHARE) * len(replicated):
        return None
    tail = (1 - confidence) / 2
    low, high = (float(bound) for bound in np.quantile(defined, [tail, 1 - tail]))
    if reflected:
        low, high = 2 * value - high, 2 * value - low
        if non_negative:
            low, high = max(low, 0.0), max(high, 0.0)
    return low, high


def estimates(
    rows: Rows, models: Sequence[Scores], terms: Terms, *, draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[list[dict[str, Estimate]], dict[str, Estimate]]:
    """Every metric of every model with its interval, and the differences of the first model from the second.

    Args:
        rows: the test rows.
        models: the challenger and, if there is one, the champion.
        terms: what the metrics are measured on.
        draws: number of resamples.
        seed: equal seeds give equal intervals.
        confidence: probability that an interval is to hold the truth.

    Returns:
        The estimates by metric for each model; the estimates of *challenger minus champion*, empty with one model.
    """
    values = [_measured(rows, model, terms) for model in models]
    if rows.cluster_count >= MIN_CLUSTERS:
        drawn = replicates(rows, models, terms, draws=draws, seed=seed)
    else:
        drawn = [{name: np.empty(0) for name in measured} for measured in values]

    def estimate(name: str, value: float, replicated: np.ndarray, non_negative: bool) -> Estimate:
        if not math.isfinite(value):
            return Estimate(None)
        bounds = interval(value, replicated, confidence, reflected=METRICS[name].reflected, non_negative=non_negative)
        return Estimate(value, *(bounds or (None, None)))

    own = [
        {name: estimate(name, value, replicated[name], True) for name, value in measured.items()}
        for measured, replicated in zip(values, drawn)
    ]
    if len(models) < 2:
        return own, {}
    differences = {
        name: estimate(name, value - values[1][name], drawn[0][name] - drawn[1][name], False)
        for name, value in values[0].items()
    }
    return own, differences


def _measured(rows: Rows, model: Scores, terms: Terms) -> dict[str, float]:
    ranked = None if rows.days is None else card_days(rows.labels, model.values, rows.clusters, rows.days)
    return measure(rows.labels, model.values, model.threshold, terms, ranked_cards=ranked)


class _Plan:
    """All of one model's work that does not depend on the draw."""

    def __init__(self, rows: Rows, model: Scores, terms: Terms, metrics: Sequence[str]) -> None:
        self._terms = terms
        self._names = [name for name in METRICS if name in metrics and (name != "card_precision" or rows.days is not None)]
        count = rows.cluster_count
        ranking = {"pr_auc", "roc_auc", "recall_at_precision"} & set(self._names)
        self._ranking = _Ranking(rows, model.values, count) if ranking else None
        self._cards: CardDays | None = None
        if "card_precision" in self._names and rows.days is not None:
            self._cards = card_days(rows.labels, model.values, rows.clusters, rows.days)
        summed = set(self._names) - {"pr_auc", "recall_at_precision", "card_precision"}
        self._sums = _cluster_sums(rows, model, count) if summed else None

    def measure(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            if self._ranking is not None:
                precisions, recalls, misordered = self._ranking.measure(weights, self._terms.precision)
                values.update(pr_auc=precisions, recall_at_precision=recalls)
            if self._sums is not None:
                sums = _weighted(self._sums, weights)
                values.update(self._from_sums(sums))
                if "roc_auc" in self._names:
                    tp, fp, fn, tn = sums[:4]
                    values["roc_auc"] = 1 - misordered / ((tp + fn) * (fp + tn))
            if self._cards is not None:
                values["card_precision"] = _card_precisions(self._cards, weights, self._terms.cards_per_day)
        return {name: values[name] for name in self._names}

    def _from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp, fn, tn, squared, logs = sums[:6]
        total = tp + fp + fn + tn
        return {
            "expected_cost": (self._terms.false_positive_cost * fp + self._terms.false_negative_cost * fn) / total,
            "recall": tp / (tp + fn),
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "brier": squared / total,
            "log_loss": logs / total,
            "ece": np.abs(sums[6:]).sum(axis=0) / total,
        }


class _Ranking:
    """The ranking of one model, cut into stretches of negatives between tie blocks that hold positives."""

    def __init__(self, rows: Rows, scores: np.ndarray, clusters: int) -> None:
        order = np.argsort(-scores)
        ranked, positive = scores[order], rows.labels[order].astype(bool)
        tie = np.cumsum(np.diff(ranked, prepend=ranked[:1]) != 0) if len(ranked) else np.empty(0, np.int64)
        holding = np.unique(tie[positive])
        last = np.searchsorted(tie, holding[-1], side="right") if len(holding) else 0
        order, positive, tie = order[:last], positive[:last], tie[:last]
        # Stretch 2j lies before the j-th tie block with positives, stretch 2j + 1 within it; what follows them never counts.
        block = np.searchsorted(holding, tie)
        within = holding[block] == tie if len(holding) else np.empty(0, bool)
        stretch = 2 * block + within
        blocks = len(holding)
        codes = rows.clusters[order]
        false = _sparse_sums(stretch[~positive], codes[~positive], 2 * blocks, clusters)
        true = _sparse_sums(block[positive], codes[positive], blocks, clusters)
        # Pieces whose sums stay in the processor's cache.
        self._pieces = [
            (true[start : start + _PIECE], false[2 * start : 2 * (start + _PIECE)]) for start in range(0, blocks, _PIECE)
        ]

    def measure(self, weights: np.ndarray, precision: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Average precision, recall at ``precision``, and the weight of the pairs in which the negative scores higher."""
        positives, negatives, area, reached, misordered = np.zeros((5, weights.shape[1]))
        for true_rows, false_rows in self._pieces:
            gained = (true_rows @ weights).astype(np.float64)
            false = np.cumsum(false_rows @ weights, axis=0, dtype=np.float64) + negatives
            before, after = false[0::2], false[1::2]
            true = np.cumsum(gained, axis=0) + positives
            at = np.divide(true, true + after, out=np.zeros_like(true), where=true > 0)
            area += (gained * at).sum(axis=0)
            misordered += (gained * (before + after)).sum(axis=0) / 2
            reached = np.maximum(reached, np.where((at >= precision) & (true > 0), true, 0.0).max(axis=0))
            positives, negatives = true[-1], after[-1]
        return area / positives, reached / positives, misordered


def _sparse_sums(stretches: np.ndarray, codes: np.ndarray, count: int, clusters: int):  # type: ignore[no-untyped-def]
    """A matrix that sums the weights of each stretch's rows; ``stretches`` must be sorted."""
    from scipy.sparse import csr_array

    starts = np.searchsorted(stretches, np.arange(count + 1)).astype(np.int32)
    # Integers beyond 2^24 are not exact in float32, and heavier than one each they might get there.
    kind = np.float32 if len(codes) < 1 << 21 else np.float64
    return csr_array((np.ones(len(codes), kind), codes.astype(np.int32), starts), shape=(count, clusters))


def _cluster_sums(rows: Rows, model: Scores, clusters: int) -> np.ndarray:
    """Per-cluster sums of whatever is a sum over rows, shape (6 + ECE_BINS, clusters)."""
    positive, alert = rows.labels.astype(bool), model.values >= model.threshold
    columns = [
        positive & alert,
        ~positive & alert,
        positive & ~alert,
        ~positive & ~alert,
        squared_errors(rows.labels, model.values),
        log_losses(rows.labels, model.values),
    ]
    sums = [np.bincount(rows.clusters, column, clusters) for column in columns]
    cell = calibration_bins(model.values) * clusters + rows.clusters
    gaps = np.bincount(cell, rows.labels - model.values, ECE_BINS * clusters)
    return np.vstack([*sums, gaps.reshape(ECE_BINS, clusters)])


def _weighted(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sums @ weights`` in float64, converted piece by piece."""
    total = np.zeros((sums.shape[0], weights.shape[1]))
    for start in range(0, sums.shape[1], _ROW_CHUNK):
        piece = slice(start, start + _ROW_CHUNK)
        total += sums[:, piece] @ weights[piece].astype(np.float64)
    return total


def _card_precisions(ranked: CardDays, weights: np.ndarray, cards_per_day: int) -> np.ndarray:
    """``metrics.card_precision`` under each draw: a card of weight w takes w of the day's places."""
    found = np.zeros(weights.shape, bool)
    precisions = np.full((len(ranked.starts) - 1, weights.shape[1]), math.nan)
    for day, (start, stop) in enumerate(zip(ranked.starts[:-1], ranked.starts[1:])):
        length = min(stop - start, 2 * cards_per_day)
        while True:
            cards = ranked.cards[start : start + length]
            present = np.where(found[cards], 0.0, weights[cards].astype(np.float64))
            filled = np.cumsum(present, axis=0)
            if length == stop - start or (filled[-1] >= cards_per_day).all():
                break
            length = min(stop - start, 2 * length)
        taken = np.clip(cards_per_day - (filled - present), 0, present)
        hits = taken * ranked.fraudulent[start : start + length, None]
        precisions[day] = hits.sum(axis=0) / np.minimum(filled[-1], cards_per_day)
        found[cards] |= hits > 0
    counted = np.isfinite(precisions)
    return np.where(counted, precisions, 0).sum(axis=0) / counted.sum(axis=0)
