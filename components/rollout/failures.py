"""Whether the canary's requests go wrong more often than the stable arm's: tested always-validly, and a stop at a burst.

One class serves two questions: requests *failed* (5xx or no answer at all) and requests *rejected* (4xx), each by its own
evidence and its own share of the error that a rollout may make.
"""

import math
from typing import Any

import numpy as np
from scipy.special import betaincinv

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.always_valid import AlwaysValidTest, Decision, checked_count, log_sum
from modelyard.components.rollout.conditional_odds import LOG_RATIOS, OddsProcess, log_partition, log_terms

BURST_FAILURES = 10
"""Failures of the canary within a look that a burst takes at least."""

BURST_RATE, BURST_CONFIDENCE = 0.2, 0.999
"""The failure rate that a burst exceeds, and how sure that must be."""

BURST_CHANCE = 1e-5
"""The chance of so uneven a split if both arms failed alike that a burst does not exceed."""


class FailureEvidence(AlwaysValidTest):
    """Evidence that the canary's requests go bad more often than the stable arm's.

    Args:
        alpha: largest acceptable probability that a canary no worse than tolerated is ever failed.
        tolerance_ratio: the canary's odds of a bad request over the stable arm's that are still fine.
    """

    def __init__(self, alpha: float, tolerance_ratio: float = 1.0) -> None:
        super().__init__(alpha)
        if not 0.01 <= tolerance_ratio <= 100:
            raise InvalidInput(
                "tolerance_ratio", tolerance_ratio, "give an odds ratio from 0.01 to 100; 1 tolerates no difference"
            )
        self.tolerance_ratio = float(tolerance_ratio)
        self._process = OddsProcess(-math.log(self.alpha), self.tolerance_ratio)
        self.canary_bad = self.canary_total = self.stable_bad = self.stable_total = 0

    def look(self, canary_bad: int, canary_total: int, stable_bad: int, stable_total: int) -> Decision:
        """Takes in what was counted since the look before, and says what follows from all looks so far."""
        canary_bad, canary_total = checked_count("canary_bad", canary_bad), checked_count("canary_total", canary_total)
        stable_bad, stable_total = checked_count("stable_bad", stable_bad), checked_count("stable_total", stable_total)
        for name, bad, total in (("canary_bad", canary_bad, canary_total), ("stable_bad", stable_bad, stable_total)):
            if bad > total:
                raise InvalidInput(name, bad, f"give bad requests among the look's {total} requests")
        self._process.look(canary_bad, canary_total, stable_bad, stable_total)
        self._failed = self._process.decided
        self.canary_bad += canary_bad
        self.canary_total += canary_total
        self.stable_bad += stable_bad
        self.stable_total += stable_total
        return self.decision

    def _log_value(self) -> float:
        return self._process.log_value

    @property
    def estimate(self) -> float:
        """The likeliest odds ratio given each look's margins: 1 if nothing is known, 0 or inf beyond the grid."""
        curve = self._process.curve
        if not curve.any():
            return 1.0
        best = int(np.argmax(curve))
        if best in (0, len(curve) - 1):
            return math.inf if best else 0.0
        left, middle, right = curve[best - 1 : best + 2]
        offset = 0.5 * (left - right) / (left - 2 * middle + right)
        return self.tolerance_ratio * math.exp(LOG_RATIOS[best] + offset * (LOG_RATIOS[1] - LOG_RATIOS[0]))

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound of the odds ratio; each holds at all looks with probability ``1 - alpha``."""
        return self._process.bounds(self.alpha)

    def to_json(self) -> dict[str, Any]:
        """All it knows, ready for JSON, exactly."""
        return {
            "alpha": self.alpha,
            "tolerance_ratio": self.tolerance_ratio,
            "counts": [self.canary_bad, self.canary_total, self.stable_bad, self.stable_total],
            "process": self._process.to_json(),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "FailureEvidence":
        """What `to_json` was called on."""
        evidence = cls(state["alpha"], state["tolerance_ratio"])
        evidence.canary_bad, evidence.canary_total, evidence.stable_bad, evidence.stable_total = state["counts"]
        evidence._process.restore(state["process"])
        evidence._failed = evidence._process.decided
        return evidence


def is_burst(canary_failed: int, canary_total: int, stable_failed: int, stable_total: int) -> bool:
    """Whether the canary fails so massively within one look that it must stop at once, with no alpha spent.

    All three must hold: at least ten failures; a failure rate above 20 % by the lower Clopper-Pearson bound at 99.9 %; and if
    both arms failed alike, so uneven a split between them would have a chance of at most 1 in 100,000. The last one holds
    false alarms to that chance a look at *any* rate, also while something behind both arms is down. At rates up to 5 % the
    first two hold them to 3e-9 a look, whatever the number of requests (0.5 %: 5e-19). Where the stable arm had no requests,
    nothing can be compared, and the first two decide.

    Args:
        canary_failed: requests of this look that the canary answered with 5xx, or not at all.
        canary_total: all its requests of this look.
        stable_failed: likewise, of the stable arm.
        stable_total: likewise.
    """
    if canary_failed < BURST_FAILURES:
        return False
    lower = betaincinv(canary_failed, canary_total - canary_failed + 1, 1 - BURST_CONFIDENCE)
    if lower <= BURST_RATE:
        return False
    if not stable_total:
        return True
    bad = canary_failed + stable_failed
    x = np.arange(canary_failed, min(canary_total, bad) + 1)
    log_chance = (
        log_sum(log_terms(x, canary_total, stable_total, bad)) - log_partition(canary_total, stable_total, bad, np.zeros(1))[0]
    )
    return bool(log_chance <= math.log(BURST_CHANCE))
