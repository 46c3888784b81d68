"""What a score is worth on labelled rows: ranking, decisions, calibration and cost.

Every function takes labels (0 or 1, shape (rows,)), scores (float64, in [0, 1], shape (rows,)) and optional weights (float64,
non-negative, shape (rows,)); rows with equal scores are never told apart, so the order of the rows does not matter. A
quantity that is not defined on the rows given (no positives, no rows) is NaN, never a flattering number.

The definitions are scikit-learn's where it has one, and those of Le Borgne et al., *Reproducible Machine Learning for Credit
Card Fraud Detection* (2022), for card precision.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

ECE_BINS = 15
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Metric:
    """What a figure means.

    Attributes:
        title: its name for people.
        meaning: one sentence for the report.
        higher_is_better: the direction of improvement.
        reflected: its interval is reflected at the value (see ``bootstrap.interval``), as resampling alone shifts it.
    """

    title: str
    meaning: str
    higher_is_better: bool = True
    reflected: bool = False


METRICS: dict[str, Metric] = {
    "pr_auc": Metric("PR-AUC", "average precision: the mean precision over the positives, in order of their scores"),
    "roc_auc": Metric("ROC-AUC", "chance that a positive scores above a negative"),
    "recall_at_precision": Metric(
        "Recall at precision", "largest share of the positives found while the demanded share of the alerts is right"
    ),
    "card_precision": Metric(
        "Card precision", "share of fraudulent cards among those that can be checked each day, mean over the days"
    ),
    "expected_cost": Metric("Expected cost", "mean cost of a row at the threshold of the model", higher_is_better=False),
    "recall": Metric("Recall", "share of the positives that the threshold of the model finds"),
    "precision": Metric("Precision", "share of the alerts at the threshold of the model that are right"),
    "f1": Metric("F1", "harmonic mean of precision and recall at the threshold of the model"),
    "brier": Metric("Brier score", "mean squared difference between score and label", higher_is_better=False),
    "log_loss": Metric("Log loss", "mean negative log-likelihood of the labels", higher_is_better=False),
    "ece": Metric(
        "Calibration error",
        f"expected calibration error: mean distance of score and frequency over {ECE_BINS} equal bins",
        higher_is_better=False,
        reflected=True,
    ),
}


@dataclass(frozen=True)
class Terms:
    """The terms on which models are compared; the same for the challenger and the champion.

    Attributes:
        precision: demanded precision of ``recall_at_precision``, in (0, 1].
        cards_per_day: cards that can be checked in a day, k of ``card_precision``.
        false_positive_cost: cost of a false alert, in any unit.
        false_negative_cost: cost of a missed positive, in the same unit.
    """

    precision: float = 0.9
    cards_per_day: int = 100
    false_positive_cost: float = 1.0
    false_negative_cost: float = 10.0


@dataclass(frozen=True)
class Curve:
    """True and false positives at every threshold, the highest score first.

    Attributes:
        thresholds: distinct scores, falling, shape (thresholds,).
        true_positives: weight of the positives that score at or above each threshold.
        false_positives: weight of the negatives that do.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def positives(self) -> float:
        return float(self.true_positives[-1]) if len(self.true_positives) else 0.0

    @property
    def negatives(self) -> float:
        return float(self.false_positives[-1]) if len(self.false_positives) else 0.0

    @property
    def precision(self) -> np.ndarray:
        """Precision at each threshold; 0 where nothing has any weight yet."""
        alerts = self.true_positives + self.false_positives
        return np.divide(self.true_positives, alerts, out=np.zeros_like(alerts), where=alerts > 0)

    @property
    def recall(self) -> np.ndarray:
        """Recall at each threshold; NaN without positives."""
        return self.true_positives / self.positives if self.positives else np.full_like(self.true_positives, math.nan)


def curve(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Counts at every distinct score."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) if len(ranked) else np.empty(0, np.int64)
    positive = labels[order].astype(np.float64)
    weight = np.ones(len(ranked)) if weights is None else weights[order].astype(np.float64)
    return Curve(ranked[ends], np.cumsum(weight * positive)[ends], np.cumsum(weight * (1 - positive))[ends])


def average_precision(points: Curve) -> float:
    """Area under the precision-recall curve as a step function, without interpolation."""
    if not points.positives:
        return math.nan
    return float(np.sum(np.diff(points.recall, prepend=0.0) * points.precision))


def roc_auc(points: Curve) -> float:
    """Area under the ROC curve; equal scores count half."""
    if not (points.positives and points.negatives):
        return math.nan
    gained = np.diff(points.true_positives, prepend=0.0)
    middle = points.false_positives - np.diff(points.false_positives, prepend=0.0) / 2
    return float(np.sum(gained * (points.negatives - middle)) / (points.positives * points.negatives))


def recall_at_precision(points: Curve, precision: float) -> float:
    """Largest recall at any threshold whose precision is at least ``precision``; 0 if there is none."""
    if not points.positives:
        return math.nan
    reached = (points.precision >= precision) & (points.true_positives + points.false_positives > 0)
    return float(points.recall[reached].max()) if reached.any() else 0.0


def costs(points: Curve, terms: Terms) -> np.ndarray:
    """Mean cost of a row at each threshold of ``points``, shape (thresholds,)."""
    rows = points.positives + points.negatives
    missed = points.positives - points.true_positives
    return (terms.false_positive_cost * points.false_positives + terms.false_negative_cost * missed) / rows


def cheapest_threshold(points: Curve, terms: Terms) -> tuple[float, float]:
    """The threshold of lowest cost on these rows, and that cost.

    Found on the rows it is judged on, the cost is optimistic: a bound for comparison, not a promise. Where alerting on nothing
    is cheapest, the threshold is infinite.
    """
    rows = points.positives + points.negatives
    if not rows:
        return math.nan, math.nan
    silent = terms.false_negative_cost * points.positives / rows
    at = costs(points, terms)
    best = int(np.argmin(at))
    return (math.inf, silent) if silent <= at[best] else (float(points.thresholds[best]), float(at[best]))


def decisions(
    labels: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """Weights of the true positives, false positives, false negatives and true negatives at ``threshold``."""
    weight = np.ones(len(labels)) if weights is None else weights
    positive, alert = labels.astype(bool), scores >= threshold
    tp, fp = float(weight[positive & alert].sum()), float(weight[~positive & alert].sum())
    fn, tn = float(weight[positive & ~alert].sum()), float(weight[~positive & ~alert].sum())
    return tp, fp, fn, tn


def squared_errors(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each row's part of the Brier score."""
    return (scores - labels) ** 2


def log_losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each row's part of the log loss; scores are kept away from 0 and 1 by one float64 epsilon, as scikit-learn does."""
    clipped = np.clip(scores, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return -np.where(labels.astype(bool), np.log(clipped), np.log1p(-clipped))


def calibration_bins(scores: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """The bin of each score among ``bins`` of equal width on [0, 1], int64."""
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean distance of score and frequency over equal-width bins, weighted by the bins' rows (Guo et al., 2017)."""
    weight = np.ones(len(labels)) if weights is None else weights
    total = weight.sum()
    if not total:
        return math.nan
    gaps = np.bincount(calibration_bins(scores), weight * (labels - scores), ECE_BINS)
    return float(np.abs(gaps).sum() / total)


@dataclass(frozen=True)
class CardDays:
    """Each card's highest score on each of its days, ranked within the day.

    A day's cards are in falling order of score; among equal scores the honest cards come first, so ties never flatter.

    Attributes:
        starts: position of each day's first entry, and one past the last, shape (days + 1,).
        cards: card codes, shape (entries,).
        fraudulent: whether the card had a positive row that day, shape (entries,).
    """

    starts: np.ndarray
    cards: np.ndarray
    fraudulent: np.ndarray


def card_days(labels: np.ndarray, scores: np.ndarray, cards: np.ndarray, days: np.ndarray) -> CardDays:
    """Ranks the cards of each day.

    Args:
        labels: 0 or 1, shape (rows,).
        scores: float64, shape (rows,).
        cards: integer codes, shape (rows,).
        days: integer days, shape (rows,).
    """
    ranked = (
        pl.DataFrame({"day": days, "card": cards, "score": scores, "label": labels.astype(np.int8)})
        .group_by("day", "card")
        .agg(pl.col("score").max(), pl.col("label").max())
        .sort(["day", "score", "label", "card"], descending=[False, True, False, False])
    )
    day = ranked["day"].to_numpy()
    starts = np.append(np.flatnonzero(np.diff(day, prepend=day[:1] - 1)), len(day))
    return CardDays(starts, ranked["card"].to_numpy(), ranked["label"].to_numpy().astype(bool))


def card_precision(ranked: CardDays, cards_per_day: int) -> float:
    """Precision among the ``cards_per_day`` highest-scored cards of each day, mean over the days.

    A fraudulent card that was among them is taken out of the following days, as it would be blocked. On a day with fewer
    cards than can be checked all of them count.
    """
    if len(ranked.starts) < 2:
        return math.nan
    found: set[int] = set()
    precisions = []
    for start, stop in zip(ranked.starts[:-1], ranked.starts[1:]):
        known = np.isin(ranked.cards[start:stop], list(found))
        cards = ranked.cards[start:stop][~known][:cards_per_day]
        hits = ranked.fraudulent[start:stop][~known][:cards_per_day]
        if len(cards):
            precisions.append(hits.mean())
            found.update(cards[hits].tolist())
    return float(np.mean(precisions)) if precisions else math.nan


def measure(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    terms: Terms,
    *,
    weights: np.ndarray | None = None,
    ranked_cards: CardDays | None = None,
) -> dict[str, float]:
    """All of ``METRICS`` that apply: ``card_precision`` needs ``ranked_cards`` and ignores weights."""
    points = curve(labels, scores, weights)
    tp, fp, fn, tn = decisions(labels, scores, threshold, weights)
    weight = np.ones(len(labels)) if weights is None else weights
    total = tp + fp + fn + tn
    cost = terms.false_positive_cost * fp + terms.false_negative_cost * fn
    values = {
        "pr_auc": average_precision(points),
        "roc_auc": roc_auc(points),
        "recall_at_precision": recall_at_precision(points, terms.precision),
        "expected_cost": _ratio(cost, total),
        "recall": _ratio(tp, tp + fn),
        "precision": _ratio(tp, tp + fp),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "brier": _ratio(float(weight @ squared_errors(labels, scores)), total),
        "log_loss": _ratio(float(weight @ log_losses(labels, scores)), total),
        "ece": expected_calibration_error(labels, scores, weights),
    }
    if ranked_cards is not None:
        values["card_precision"] = card_precision(ranked_cards, terms.cards_per_day)
    return {name: values[name] for name in METRICS if name in values}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
