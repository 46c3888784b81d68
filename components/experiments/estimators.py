"""What is estimated in each arm of an experiment, and the influence of every row on it.

A row's influence is the derivative of the estimate by the row's weight (the infinitesimal jackknife). Influences are summed by
key before they are squared, because a customer's rows resemble each other. Where traffic is split by key, a key has rows in one
arm. Where it is split by request, a key may have some in both: then its influences on the difference are summed over the arms,
so that what the customer does to both at once does not count as chance. Summed over all rows, influences are zero.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modelyard.components.serving.buckets import SCORE_EDGES


@dataclass(frozen=True)
class ArmRows:
    """Labelled rows of one arm, the highest score first.

    Attributes:
        scores: falling, shape (rows,).
        labels: bool, shape (rows,).
        decisions: bool, as answered, shape (rows,).
        keys: codes of the keys, not negative, the same for a key in both arms, shape (rows,).
        looks: the first look that sees each row, shape (rows,).
    """

    scores: np.ndarray
    labels: np.ndarray
    decisions: np.ndarray
    keys: np.ndarray
    looks: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.scores)

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def positive_keys(self) -> int:
        """Keys that have a positive row: as many facts there are about the positives."""
        return len(np.unique(self.keys[self.labels]))

    def until(self, look: int) -> "ArmRows":
        """The rows that a look sees."""
        seen = self.looks <= look
        return ArmRows(self.scores[seen], self.labels[seen], self.decisions[seen], self.keys[seen], self.looks[seen])


def ranked_rows(scores: np.ndarray, labels: np.ndarray, decisions: np.ndarray, keys: np.ndarray, looks: np.ndarray) -> ArmRows:
    """An arm's rows from columns in any order."""
    order = np.argsort(-scores, kind="stable")
    return ArmRows(
        scores[order].astype(np.float64),
        labels[order].astype(bool),
        decisions[order].astype(bool),
        keys[order].astype(np.int64),
        looks[order],
    )


@dataclass(frozen=True)
class Estimated:
    """An estimate in one arm, and what each key does to it.

    Attributes:
        value: float, or an array of one shape.
        keys: codes of the arm's keys, rising, shape (keys,).
        influence: summed over the rows of each key, shape (keys, …); with the usual correction for few keys, so that its
            squares sum to the squared standard error.
    """

    value: np.ndarray | np.float64
    keys: np.ndarray
    influence: np.ndarray

    @cached_property
    def variance(self) -> np.ndarray | np.float64:
        """The squared standard error, clustered by key."""
        return np.square(self.influence).sum(axis=0)

    @cached_property
    def fourth(self) -> np.ndarray | np.float64:
        """Sum of the fourth powers of the influences."""
        return np.square(np.square(self.influence)).sum(axis=0)


@dataclass(frozen=True)
class Difference:
    """An estimate's difference between two arms, trial minus control.

    Attributes:
        value: float, or an array of one shape.
        variance: its squared standard error.
        fourth: sum of the fourth powers of the keys' influences, whose squares sum to the squared standard error.
    """

    value: np.ndarray | np.float64
    variance: np.ndarray | np.float64
    fourth: np.ndarray | np.float64

    @property
    def carrying_keys(self) -> float:
        """How many keys the squared standard error rests on, as if these had equal parts in it.

        (Σu²)² / Σu⁴ over the influences u of the keys: their number if all are equal, 1 if a single key has all the influence
        there is, however many others there are. 0 where nothing varies.
        """
        return float(self.variance**2 / self.fourth) if self.fourth else 0.0


def difference(control: Estimated, trial: Estimated) -> Difference:
    """The difference of two arms' estimates; the keys that both arms have count as one unit each."""
    _, at_control, at_trial = np.intersect1d(control.keys, trial.keys, assume_unique=True, return_indices=True)
    one, other = control.influence[at_control], trial.influence[at_trial]
    fourth = np.square(np.square(other - one)) - np.square(np.square(one)) - np.square(np.square(other))
    return Difference(
        trial.value - control.value,
        np.maximum(control.variance + trial.variance - 2 * (one * other).sum(axis=0), 0.0),
        np.maximum(control.fourth + trial.fourth + fourth.sum(axis=0), 0.0),
    )


def pr_auc(arm: ArmRows) -> Estimated:
    """Average precision, as in ``modelyard.components.evaluation.metrics``; NaN without positives."""
    value, influence = average_precision_influence(arm.labels, arm.scores)
    return Estimated(np.float64(value), *_clustered(arm.keys, influence))


def average_precision_influence(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of rows in falling order of score, and each row's influence, shape (rows,).

    With the precision p at a positive's score and the n rows that score at least as much, average precision is the mean of p
    over the positives. A row changes it by being such a positive, and through the p and n of every positive at or below it.
    """
    positives = int(labels.sum())
    if not positives:
        return math.nan, np.full(len(labels), math.nan)
    block = np.cumsum(np.diff(scores, prepend=scores[0]) != 0)
    ends = np.append(np.flatnonzero(np.diff(block)), len(block) - 1)
    found = np.cumsum(labels)[ends].astype(np.float64)
    ranked = ends + 1.0
    precision = found / ranked
    gained = np.diff(found, prepend=0.0)
    value = float(np.sum(gained * precision)) / positives
    below = np.cumsum((gained / ranked)[::-1])[::-1]
    weighted = np.cumsum((gained * precision / ranked)[::-1])[::-1]
    influence = labels * (precision[block] - value + below[block]) - weighted[block]
    return value, influence / positives


def expected_cost(arm: ArmRows, false_positive_cost: float, false_negative_cost: float) -> Estimated:
    """Mean cost of a row at the decisions that were answered."""
    cost = false_positive_cost * (arm.decisions & ~arm.labels) + false_negative_cost * (~arm.decisions & arm.labels)
    value = float(cost.mean())
    return Estimated(np.float64(value), *_clustered(arm.keys, (cost - value) / arm.rows))


def score_shares(arm: ArmRows) -> tuple[Estimated, np.ndarray]:
    """Share of rows that score at most each of ``SCORE_EDGES``, and the keys that it rests on.

    Returns:
        The shares, shape (edges,); and the number of keys that have a row on an edge's emptier side, shape (edges,).
    """
    edges = len(SCORE_EDGES)
    present, codes = np.unique(arm.keys, return_inverse=True)
    cells = codes * (edges + 1) + np.searchsorted(SCORE_EDGES, arm.scores, side="left")
    keys = len(present)
    below = np.cumsum(np.bincount(cells, minlength=keys * (edges + 1)).reshape(keys, edges + 1), axis=1)
    totals = below.sum(axis=0)
    shares = totals[:-1] / arm.rows
    influence = (below[:, :-1] - np.outer(below[:, -1], shares)) / arm.rows
    above = below[:, -1:] - below[:, :-1]
    rests_on = np.minimum((below[:, :-1] > 0).sum(axis=0), (above > 0).sum(axis=0))
    return Estimated(shares, present, influence * _correction(keys)), rests_on


def _clustered(keys: np.ndarray, influence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys, and the sum of each one's influences with the correction."""
    present = np.flatnonzero(np.bincount(keys))
    return present, np.bincount(keys, influence)[present] * _correction(len(present))


def _correction(keys: int) -> float:
    """The usual factor of a standard error that is estimated from few keys."""
    return math.sqrt(keys / max(keys - 1, 1))
