"""What is estimated in each arm of an experiment, and the influence of every row on it.

A row's influence is the derivative of the estimate by the row's weight (the infinitesimal jackknife). Influences are summed by
key before they are squared, because a customer's rows resemble each other: the key is what the traffic is split by, so it is
the unit of the experiment. Summed over all rows, influences are zero.
"""

import math
from dataclasses import dataclass

import numpy as np

from modelyard.components.serving.buckets import SCORE_EDGES


@dataclass(frozen=True)
class ArmRows:
    """Labelled rows of one arm, the highest score first.

    Attributes:
        scores: falling, shape (rows,).
        labels: bool, shape (rows,).
        decisions: bool, as answered, shape (rows,).
        keys: codes of the keys from 0, shape (rows,).
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
    """An arm's rows from columns in any order; keys may be of any kind."""
    order = np.argsort(-scores, kind="stable")
    codes = np.unique(keys, return_inverse=True)[1]
    return ArmRows(
        scores[order].astype(np.float64),
        labels[order].astype(bool),
        decisions[order].astype(bool),
        codes[order],
        looks[order],
    )


@dataclass(frozen=True)
class Estimated:
    """An estimate (float, or an array of one shape) and its squared standard error, clustered by key.

    Attributes:
        fourth: sum of the fourth powers of the keys' influences, whose squares sum to the squared standard error.
    """

    value: np.ndarray | np.float64
    variance: np.ndarray | np.float64
    fourth: np.ndarray | np.float64


def carrying_keys(one: Estimated, other: Estimated) -> float:
    """How many keys the squared standard error of a difference rests on, as if these had equal parts in it.

    (Σu²)² / Σu⁴ over the influences u of both arms' keys: their number if all are equal, 1 if a single key has all the
    influence there is, however many others there are. 0 where nothing varies.
    """
    variance, fourth = one.variance + other.variance, one.fourth + other.fourth
    return float(variance**2 / fourth) if fourth else 0.0


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
    codes = np.unique(arm.keys, return_inverse=True)[1]
    cells = codes * (edges + 1) + np.searchsorted(SCORE_EDGES, arm.scores, side="left")
    keys = int(codes.max()) + 1
    below = np.cumsum(np.bincount(cells, minlength=keys * (edges + 1)).reshape(keys, edges + 1), axis=1)
    totals = below.sum(axis=0)
    shares = totals[:-1] / arm.rows
    influence = (below[:, :-1] - np.outer(below[:, -1], shares)) / arm.rows
    above = below[:, -1:] - below[:, :-1]
    rests_on = np.minimum((below[:, :-1] > 0).sum(axis=0), (above > 0).sum(axis=0))
    squares = np.square(influence)
    return Estimated(shares, squares.sum(axis=0) * keys / max(keys - 1, 1), np.square(squares).sum(axis=0)), rests_on


def _clustered(keys: np.ndarray, influence: np.ndarray) -> tuple[np.float64, np.float64]:
    """The squared standard error, key by key, with the usual correction for few keys; and the sum of fourth powers."""
    count = len(np.unique(keys))
    squares = np.square(np.bincount(keys, influence))
    return np.float64(squares.sum() * count / max(count - 1, 1)), np.float64(np.square(squares).sum())
