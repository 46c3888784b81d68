"""What two arms' counts of one look say about their odds, whatever the rate, the traffic and the shares were.

Of ``bad`` requests among ``canary`` and ``stable`` ones, how many fell to the canary? Given these three margins the answer has
the hypergeometric distribution if both arms fail alike, and Fisher's noncentral hypergeometric distribution if the canary's
odds of failing are ``r`` times the stable arm's. The rate itself has dropped out, so it may drift from look to look as it
likes. That both arms get the same kind of request, because the proxy deals them out at random, is all that is needed: the
failures themselves need not be independent, for under "no difference" the deal alone makes the count hypergeometric.

`log_partition` holds the only hard part, the sum over all tables with these margins, for many ``r`` at once and any margins up
to ten million. `OddsProcess` multiplies the looks' likelihood ratios into a test that may be read after every look.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln

from modelyard.components.rollout.always_valid import log_sum

STEPS_PER_DOUBLING = 8
_OCTAVES = 7
LOG_RATIOS = np.arange(-_OCTAVES * STEPS_PER_DOUBLING, _OCTAVES * STEPS_PER_DOUBLING + 1) * (math.log(2) / STEPS_PER_DOUBLING)
"""Odds ratios, relative to the tolerated one, at which the likelihood is kept: 1/128 to 128, eight to a doubling."""

NULL = len(LOG_RATIOS) // 2
"""Index of the tolerated odds ratio itself in `LOG_RATIOS`."""

# Alternatives that the test bets on, in octaves above the tolerated odds, and how much it stakes on each. Most lies about twice
# the tolerated odds; smaller differences show only in far more traffic, larger ones win soon with a small stake.
_STAKES = {
    **{0.125: 0.01, 0.25: 0.02, 0.5: 0.05, 0.75: 0.14, 1.0: 0.42, 1.25: 0.14},
    **{1.5: 0.07, 2.0: 0.05, 3.0: 0.05, 5.0: 0.03, 7.0: 0.02},
}
BETS = NULL + np.array([round(octaves * STEPS_PER_DOUBLING) for octaves in _STAKES])
LOG_STAKES = np.log(np.array(list(_STAKES.values())))

# For bounds, every step away from an odds ratio is an alternative, and near ones have more, so that bounds go on to narrow.
_STEPS = np.arange(1, NULL + 1)
_LOG_STEP_STAKES = -np.log(_STEPS * (1 / _STEPS).sum())

# The cut needs the null's tail beyond the plausible counts (1e-16) times the cap to be nothing; further from the cap, a look
# that reaches it wins by so much that the cut would hardly matter.
_LARGEST_LOG_CAP = 16.0
_MOST_CAPPED_TABLES = 1 << 12


def _modes(canary: int, stable: int, bad: int, ratios: np.ndarray) -> np.ndarray:
    """Where the terms of the sums are largest: the root of x (stable - bad + x) = r (canary - x)(bad - x)."""
    square = ratios - 1
    linear = ratios * (canary + bad) + (stable - bad)
    root = np.sqrt(np.maximum(linear**2 - 4 * square * (ratios * canary * bad), 0))
    # Two forms of the same root: each loses all digits where the other keeps them.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(linear > 0, 2 * ratios * canary * bad / (linear + root), (linear - root) / (2 * square))


def _spreads(canary: int, stable: int, bad: int, modes: np.ndarray) -> np.ndarray:
    """Standard deviations about the modes, somewhat too large where they are small."""
    cells = np.maximum(np.stack([modes, canary - modes, bad - modes, stable - bad + modes]), 0) + 0.5
    return 1 / np.sqrt((1 / cells).sum(axis=0))


def _reach(spread: np.ndarray) -> np.ndarray:
    """How far from the mode a term can matter: beyond, Bernstein's inequality leaves less than 1e-16 of the sum."""
    return np.ceil(16 + np.sqrt(190 + 100 * spread**2))


def log_terms(x: np.ndarray, canary: int, stable: int, bad: int) -> np.ndarray:
    """Log of the number of tables with ``x`` bad requests in the canary, less what all tables of these margins share."""
    return -(gammaln(x + 1) + gammaln(canary - x + 1) + gammaln(bad - x + 1) + gammaln(stable - bad + x + 1))


def log_partition(canary: int, stable: int, bad: int, log_ratios: np.ndarray) -> np.ndarray:
    """Logs of the sums over all tables with these margins, up to one constant that depends on the margins alone.

    Args:
        canary: requests of the canary.
        stable: requests of the stable arm.
        bad: how many of both were bad.
        log_ratios: logs of the canary's odds over the stable arm's, shape (ratios,).

    Returns:
        Shape (ratios,). The log-likelihood of ``x`` bad requests in the canary is ``x * log_ratio`` less this.
    """
    low, high = max(0, bad - stable), min(canary, bad)
    if low == high:
        return log_terms(np.array([low]), canary, stable, bad) + low * log_ratios
    modes = np.clip(_modes(canary, stable, bad, np.exp(log_ratios)), low, high)
    spreads = _spreads(canary, stable, bad, modes)
    # A count with these distributions is a sum of independent yes-or-no variables (Vatutin & Mikhailov, 1982), so with
    # variance v its characteristic function is at most exp(-v (1 - cos t)): every h-th term, times h, gives the whole sum up to
    # a share of about 2 exp(-8 v / h^2). A third of the standard deviation as step makes that vanish in double precision.
    steps = np.maximum(1, np.floor(spreads / 3))
    strides = np.ceil(_reach(spreads) / steps)
    first = np.maximum(low, np.round(modes) - steps * strides)
    columns = min(2 * int(strides.max()), high - low) + 1
    x = first[:, None] + steps[:, None] * np.arange(columns)
    inside = x <= high
    terms = log_terms(np.where(inside, x, low), canary, stable, bad) + x * log_ratios[:, None]
    return log_sum(np.where(inside, terms, -np.inf)) + np.log(steps)


@dataclass(frozen=True)
class _Law:
    """What follows from a look's margins alone.

    Attributes:
        partition: of each of `LOG_RATIOS`, times the tolerated odds ratio.
        x: the canary's bad counts that are plausible under the tolerated odds ratio; empty if they are too many.
        null: probability of each.
        above: probability of each and all larger ones.
    """

    partition: np.ndarray
    x: np.ndarray
    null: np.ndarray
    above: np.ndarray


@lru_cache(maxsize=512)
def _law(canary: int, stable: int, bad: int, tolerated: float) -> _Law:
    low, high = max(0, bad - stable), min(canary, bad)
    partition = log_partition(canary, stable, bad, LOG_RATIOS + math.log(tolerated))
    mode = np.clip(_modes(canary, stable, bad, np.array([tolerated])), low, high)
    reach = _reach(_spreads(canary, stable, bad, mode))
    first, last = max(low, int((mode - reach)[0])), min(high, int((mode + reach)[0]) + 1)
    x = np.arange(first, last + 1) if last - first < _MOST_CAPPED_TABLES else np.zeros(0)
    null = np.exp(log_terms(x, canary, stable, bad) + x * math.log(tolerated) - partition[NULL])
    return _Law(partition, x, null, np.cumsum(null[::-1])[::-1])


class OddsProcess:
    """An e-process against "in every look, the canary's odds of being bad are at most ``tolerated`` times the stable arm's".

    Its value starts at 1. Each look multiplies it by a likelihood ratio, a mixture over several larger odds ratios against the
    tolerated one, which given the past and the look's margins has expectation 1 if the odds ratio is the tolerated one, and
    at most 1 if it is smaller: the ratio grows with the canary's bad count, and a smaller odds ratio makes that count smaller
    in distribution (monotone likelihood ratio). So it is a nonnegative supermartingale under the null, and ever reaches
    ``1 / alpha`` with probability at most ``alpha``, however often one looks and whenever one stops (Ville, 1939).

    What a look would win beyond ``1 / alpha`` is of no use there. It is cut off, and what is saved raises the look's other
    outcomes, so that the expectation is 1 again (Fischer & Ramdas, 2024): the same guarantee, more power. With margins so
    large that more than 4,096 outcomes are plausible the cut is left out, which only costs power.

    Args:
        log_cap: log of the value at which the test has decided.
        tolerated: the odds ratio that is still fine.
    """

    def __init__(self, log_cap: float, tolerated: float = 1.0) -> None:
        self.log_cap, self.tolerated = log_cap, tolerated
        # Log-likelihood of each of LOG_RATIOS over that of the tolerated ratio, all looks together.
        self.curve = np.zeros(len(LOG_RATIOS))
        self.log_raised = 0.0
        self.decided = False

    @property
    def log_value(self) -> float:
        """Log of the e-process now; it stays at ``log_cap`` once it has reached that."""
        if self.decided:
            return self.log_cap
        return float(log_sum(LOG_STAKES + self.curve[BETS])) + self.log_raised

    def look(self, canary_bad: int, canary: int, stable_bad: int, stable: int) -> None:
        """Takes in what was counted since the look before."""
        bad = canary_bad + stable_bad
        if max(0, bad - stable) == min(canary, bad):
            return  # The margins leave one table only, so that it says nothing.
        law = _law(canary, stable, bad, self.tolerated)
        gain = canary_bad * LOG_RATIOS - (law.partition - law.partition[NULL])
        if not self.decided:
            self.log_raised += self._log_raise(law)
        self.curve = self.curve + gain
        self.decided = self.decided or self.log_value >= self.log_cap

    def _log_raise(self, law: _Law) -> float:
        """Log of the factor that makes the expected value, cut off at the cap, what it was before the look."""
        wealth = LOG_STAKES + self.curve[BETS]
        now = float(log_sum(wealth))
        log_cap = self.log_cap - self.log_raised - now
        if log_cap > _LARGEST_LOG_CAP or not len(law.x):
            return 0.0
        exponents = wealth - now - (law.partition[BETS] - law.partition[NULL]) + law.x[:, None] * LOG_RATIOS[BETS]
        # The mixture grows with x, and what is above the cap is cut off in any case.
        value = np.exp(np.clip(log_sum(exponents), -300, log_cap))
        cap = math.exp(log_cap)
        below = np.concatenate([[0.0], np.cumsum(law.null * value)[:-1]])
        # If all were raised until x just reaches the cap, what would be expected? The cut begins at the first x with at most 1.
        affordable = np.flatnonzero(cap / value * below + cap * law.above <= 1)
        if not len(affordable) or not below[affordable[0]]:
            return 0.0
        cut = affordable[0]
        return math.log(max(1.0, (1 - cap * law.above[cut]) / below[cut]))

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Odds ratios that the looks so far leave possible: each end holds at all times with probability ``1 - alpha``.

        They invert the e-process without the cut: each odds ratio in turn is the null, and the alternatives above it (for the
        lower end) or below it (for the upper end) are mixed. The lower end holds for the largest odds ratio of any look, the
        upper end for the smallest. Between the steps of the grid, log e-values are interpolated.

        Returns:
            Lower and upper end; 0 and inf where the grid has no end.
        """
        size, margin = len(LOG_RATIOS), len(_STEPS)
        padded = np.concatenate([np.full(margin, -np.inf), self.curve, np.full(margin, -np.inf)])
        limit = -math.log(alpha)
        ends = []
        for direction in (1, -1):
            order = np.arange(size)[::direction]
            against = np.full(size, -np.inf)
            inner = order[:-1]
            rivals = padded[margin + inner[:, None] + direction * _STEPS] + _LOG_STEP_STAKES
            against[inner] = log_sum(rivals) - self.curve[inner]
            possible = np.flatnonzero(against[order] < limit)[0]
            if not possible:
                ends.append(-direction * math.inf)
                continue
            near, far = order[possible], order[possible - 1]
            part = (against[far] - limit) / (against[far] - against[near]) if math.isfinite(against[near]) else 1.0
            ends.append(float(LOG_RATIOS[far] + part * (LOG_RATIOS[near] - LOG_RATIOS[far])))
        return self.tolerated * math.exp(ends[0]), self.tolerated * math.exp(ends[1])

    def to_json(self) -> dict[str, Any]:
        """All it knows, ready for JSON, exactly."""
        return {"curve": self.curve.tolist(), "log_raised": self.log_raised, "decided": self.decided}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `to_json` gave."""
        self.curve = np.array(state["curve"], dtype=float)
        self.log_raised, self.decided = float(state["log_raised"]), bool(state["decided"])
