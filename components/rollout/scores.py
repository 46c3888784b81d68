"""Whether the canary's scores are distributed otherwise than two models' may be: bucket by bucket, tested always-validly."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import xlogy

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.always_valid import AlwaysValidTest, Decision, checked_counts, log_sum, share_reach
from modelyard.components.serving.buckets import SCORE_EDGES

_BUCKETS = len(SCORE_EDGES) + 1
_PRIOR_ROWS = 20.0
_BISECTIONS = 50


def reference_shift(reference_a: Sequence[int], reference_b: Sequence[int]) -> float:
    """Kolmogorov-Smirnov distance between two bucketed score distributions: the largest gap of their cumulative shares.

    Args:
        reference_a: rows by ``SCORE_EDGES``, shape (edges + 1,); at least one.
        reference_b: likewise.
    """
    shares = []
    for name, given in (("reference_a", reference_a), ("reference_b", reference_b)):
        counts = checked_counts(name, given, _BUCKETS)
        if not counts.any():
            raise InvalidInput(name, 0, "give at least one scored row")
        shares.append(np.cumsum(counts) / counts.sum())
    return float(np.abs(shares[0] - shares[1]).max())


class ScoreEvidence(AlwaysValidTest):
    """Evidence that the arms' score distributions differ by more than ``allowed_shift``.

    The null: in every look, and at every edge, the shares of scores up to that edge differ by at most ``allowed_shift``
    between the arms, which is to say that their Kolmogorov-Smirnov distance on the buckets is at most that.

    At each edge a bet is placed on the pair of shares that the looks before showed, against the nearest pair within the null,
    by the Kullback-Leibler divergence weighted with this look's counts. The pairs within the null form a convex set, so the
    likelihood ratio has expectation at most 1 for all of them (Turner & Grünwald, 2023), whatever the shares are and however
    both arms drift together. The e-value is the average over the edges. The first look only teaches what to bet on.

    The distance is that of Kolmogorov and Smirnov because an empty bucket or a narrow one cannot inflate it, unlike the total
    variation, whose estimate grows with the number of buckets, and because it is the same whatever scale scores are shown on.

    Rows of one request are alike, and buckets do not say which belong together. Given the number of requests, each look's
    rows count for no more than that: a likelihood ratio's power 1 / b is an e-value where requests hold b rows each, however
    dependent these are. Where the sizes of requests differ much this is an approximation.

    Args:
        alpha: largest acceptable probability that a canary within the null is ever failed.
        allowed_shift: the distance that is still fine: `reference_shift` of the two models plus a tolerance.
    """

    def __init__(self, alpha: float, allowed_shift: float) -> None:
        super().__init__(alpha)
        if not 0 <= allowed_shift <= 1:
            raise InvalidInput("allowed_shift", allowed_shift, "give a distance between distributions, from 0 to 1")
        self.allowed_shift = float(allowed_shift)
        self.canary, self.stable = np.zeros(_BUCKETS, dtype=np.int64), np.zeros(_BUCKETS, dtype=np.int64)
        # Rows at or below each edge and in all, as far as they count; and gaps weighted by what each look counts for.
        self._canary_below, self._stable_below = np.zeros(_BUCKETS - 1), np.zeros(_BUCKETS - 1)
        self._canary_rows = self._stable_rows = self._weight = 0.0
        self._gaps = np.zeros(_BUCKETS - 1)
        self._log_values = np.zeros(_BUCKETS - 1)

    def look(
        self,
        canary_scores: Sequence[int],
        stable_scores: Sequence[int],
        canary_requests: int | None = None,
        stable_requests: int | None = None,
    ) -> Decision:
        """Takes in what was scored since the look before, and says what follows from all looks so far.

        Args:
            canary_scores: rows by ``SCORE_EDGES``, shape (edges + 1,).
            stable_scores: likewise.
            canary_requests: how many requests those rows came in; by default each in one of its own.
            stable_requests: likewise.
        """
        canary = checked_counts("canary_scores", canary_scores, _BUCKETS)
        stable = checked_counts("stable_scores", stable_scores, _BUCKETS)
        rows, others = int(canary.sum()), int(stable.sum())
        self.canary += canary
        self.stable += stable
        size = float(min(rows, rows if canary_requests is None else canary_requests))
        other_size = float(min(others, others if stable_requests is None else stable_requests))
        canary_share = np.cumsum(canary)[:-1] / max(rows, 1)
        stable_share = np.cumsum(stable)[:-1] / max(others, 1)
        if size > 0 and other_size > 0:
            if self._canary_rows and self._stable_rows and not self._failed:
                self._bet(canary_share, stable_share, size, other_size)
            weight = size * other_size / (size + other_size)
            self._gaps += weight * (canary_share - stable_share)
            self._weight += weight
        self._canary_below += size * canary_share
        self._stable_below += other_size * stable_share
        self._canary_rows += size
        self._stable_rows += other_size
        return self.decision

    def _bet(self, canary_share: np.ndarray, stable_share: np.ndarray, size: float, other_size: float) -> None:
        stable = (self._stable_below + 0.5) / (self._stable_rows + 1)
        canary = (self._canary_below + _PRIOR_ROWS * stable) / (self._canary_rows + _PRIOR_ROWS)
        placed = np.flatnonzero(np.abs(canary - stable) > self.allowed_shift)
        if not len(placed):
            return
        canary, stable = canary[placed], stable[placed]
        canary_share, stable_share = canary_share[placed], stable_share[placed]
        # The nearest pair within the null has its shares allowed_shift apart, both between those that are bet on.
        shift = np.where(canary > stable, self.allowed_shift, -self.allowed_shift)
        low, high = np.minimum(stable, canary - shift), np.maximum(stable, canary - shift)
        for _ in range(_BISECTIONS):
            near = (low + high) / 2
            slope = size * (near + shift - canary) / ((near + shift) * (1 - near - shift))
            slope += other_size * (near - stable) / (near * (1 - near))
            low, high = np.where(slope < 0, near, low), np.where(slope < 0, high, near)
        self._log_values[placed] += size * (
            xlogy(canary_share, canary / (near + shift)) + xlogy(1 - canary_share, (1 - canary) / (1 - near - shift))
        ) + other_size * (xlogy(stable_share, stable / near) + xlogy(1 - stable_share, (1 - stable) / (1 - near)))
        self._failed = self._log_value() >= -math.log(self.alpha)

    def _log_value(self) -> float:
        return float(log_sum(self._log_values)) - math.log(len(self._log_values))

    @property
    def estimate(self) -> float:
        """The distance, each look compared by itself and weighted by its size; 0 if nothing is known."""
        return float(np.abs(self._gaps).max() / self._weight) if self._weight else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of that distance which hold at all looks, both at once, with probability ``1 - alpha``.

        The gap at each edge is at most `share_reach` from its expectation, a union over the edges: sound whatever the
        distributions, and wider than what the e-value knows. The interval takes no part in the decision.
        """
        reach = share_reach(self._weight, self.alpha / len(self._gaps))
        return max(0.0, self.estimate - reach), min(1.0, self.estimate + reach)

    def to_json(self) -> dict[str, Any]:
        """All it knows, ready for JSON, exactly."""
        return {
            "alpha": self.alpha,
            "allowed_shift": self.allowed_shift,
            "canary": self.canary.tolist(),
            "stable": self.stable.tolist(),
            "canary_below": self._canary_below.tolist(),
            "stable_below": self._stable_below.tolist(),
            "sizes": [self._canary_rows, self._stable_rows, self._weight],
            "gaps": self._gaps.tolist(),
            "log_values": self._log_values.tolist(),
            "failed": self._failed,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "ScoreEvidence":
        """What `to_json` was called on."""
        evidence = cls(state["alpha"], state["allowed_shift"])
        evidence.canary = np.array(state["canary"], dtype=np.int64)
        evidence.stable = np.array(state["stable"], dtype=np.int64)
        evidence._canary_below, evidence._stable_below = np.array(state["canary_below"]), np.array(state["stable_below"])
        evidence._canary_rows, evidence._stable_rows, evidence._weight = state["sizes"]
        evidence._gaps, evidence._log_values = np.array(state["gaps"]), np.array(state["log_values"])
        evidence._failed = state["failed"]
        return evidence
