"""Whether the canary is slower than it may be: exceedances of edges that the stable arm's past chose, tested always-validly."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.always_valid import AlwaysValidTest, Decision, checked_counts, log_sum, share_reach
from modelyard.components.rollout.conditional_odds import OddsProcess
from modelyard.components.serving.buckets import LATENCY_EDGES

QUANTILES = (0.5, 0.9, 0.99)
"""Quantiles of the stable arm's past at whose edges the arms are compared, each with a third of the evidence."""

TOLERATED_ODDS = 2.0
"""How many times the stable arm's odds of being beyond an edge the canary's may be, beyond ``max_ratio`` times that edge."""

LARGEST_GAIN = 16.0
"""How many times its stake one look may win; half of what there is is staked."""

LEARN_STABLE, LEARN_CANARY = 100, 50
"""Requests that the looks before must hold before a look is tested: edges have to be known, and a cold start to be over."""

_EDGES = np.array(LATENCY_EDGES)
_BUCKETS = len(LATENCY_EDGES) + 1


def quantile(counts: Sequence[int] | np.ndarray, share: float) -> float:
    """The latency in seconds that ``share`` of the requests in these buckets do not exceed, interpolated within a bucket.

    Args:
        counts: requests by ``LATENCY_EDGES``, shape (edges + 1,).
        share: from 0 to 1.

    Returns:
        NaN without requests; inf beyond the last edge.
    """
    counts = np.asarray(counts, dtype=float)
    total = counts.sum()
    if not total:
        return math.nan
    above = np.cumsum(counts)
    place = int(np.searchsorted(above, share * total))
    if place >= len(_EDGES):
        return math.inf
    low = _EDGES[place - 1] if place else 0.0
    part = (share * total - (above[place] - counts[place])) / counts[place] if counts[place] else 1.0
    return float(low + part * (_EDGES[place] - low))


class LatencyEvidence(AlwaysValidTest):
    """Evidence that the canary answers more than ``max_ratio`` times as slowly as the stable arm.

    The null: at the edges compared, the canary's odds of taking longer than ``max_ratio * edge`` are at most twice
    (`TOLERATED_ODDS`) the stable arm's odds of taking longer than ``edge``. It holds if the canary's latency is, in
    distribution, at most ``max_ratio`` times the stable arm's.

    Three edges are compared: those next to the stable arm's median, 90th and 99th percentile in the looks *before*. Each
    begins with a third of the whole. In each look, half of what it has then is staked, on an `OddsProcess` for this look
    alone, which is cut off at `LARGEST_GAIN`. So a look takes at most half and gives at most 8.5 times: one long pause of an
    arm, which makes all requests of a look slow, does not decide, and one good look does not hide that most are slow.

    Buckets are half an octave wide, so ``max_ratio`` is rounded up to the next power of the square root of 2.

    The first looks teach the edges and are not tested, which also lets a cold start pass: see `LEARN_STABLE`, `LEARN_CANARY`.
    What the stable arm did before the rollout can be given as a look without canary requests.

    Args:
        alpha: largest acceptable probability that a canary within the null is ever failed.
        max_ratio: how many times as slow as the stable arm the canary may be.
    """

    def __init__(self, alpha: float, max_ratio: float = 2.0) -> None:
        super().__init__(alpha)
        if not 1 <= max_ratio <= 64:
            raise InvalidInput("max_ratio", max_ratio, "give how many times as slow the canary may be, from 1 to 64")
        self.max_ratio = float(max_ratio)
        self._shift = math.ceil(2 * math.log2(self.max_ratio) - 1e-9)
        self._log_values = np.zeros(len(QUANTILES))
        self.canary, self.stable = np.zeros(_BUCKETS, dtype=np.int64), np.zeros(_BUCKETS, dtype=np.int64)
        self.tested = 0

    def look(self, canary_latency: Sequence[int], stable_latency: Sequence[int]) -> Decision:
        """Takes in the requests by ``LATENCY_EDGES`` since the look before, shape (edges + 1,) each, and says what follows."""
        canary = checked_counts("canary_latency", canary_latency, _BUCKETS)
        stable = checked_counts("stable_latency", stable_latency, _BUCKETS)
        known = self.stable.sum() >= LEARN_STABLE and self.canary.sum() >= LEARN_CANARY
        if known and canary.any() and stable.any() and not self._failed:
            self._log_values += self._log_gains(canary, stable)
            self.tested += int(canary.sum())
            self._failed = self._log_value() >= -math.log(self.alpha)
        self.canary += canary
        self.stable += stable
        return self.decision

    def _log_gains(self, canary: np.ndarray, stable: np.ndarray) -> np.ndarray:
        """Log of what this look multiplies the evidence at each edge by."""
        past = np.cumsum(self.stable)
        gains = np.zeros(len(QUANTILES))
        for place, share in enumerate(QUANTILES):
            edge = int(np.searchsorted(past, share * past[-1]))
            beyond = edge + self._shift
            if beyond < len(_EDGES):
                bet = OddsProcess(math.log(LARGEST_GAIN), TOLERATED_ODDS)
                bet.look(int(canary[beyond + 1 :].sum()), int(canary.sum()), int(stable[edge + 1 :].sum()), int(stable.sum()))
                gains[place] = math.log((1 + math.exp(bet.log_value)) / 2)
        return gains

    def _log_value(self) -> float:
        return float(log_sum(self._log_values)) - math.log(len(self._log_values))

    @property
    def quantiles(self) -> dict[str, tuple[float, float]]:
        """Seconds of the canary and of the stable arm at p50, p95 and p99, all looks together; NaN without requests."""
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {name: (quantile(self.canary, share), quantile(self.stable, share)) for name, share in shares.items()}

    @property
    def estimate(self) -> float:
        """How many times as slow the canary is, at the 95th percentile; NaN without requests of both arms."""
        canary, stable = self.quantiles["p95"]
        return canary / stable if math.isfinite(stable) else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of that ratio which hold at all looks, both at once, with probability ``1 - alpha``.

        Each arm's 95th percentile lies between two quantiles of what was seen, `share_reach` to either side; true if latencies
        do not drift. The interval takes no part in the decision.
        """
        ends = []
        for counts in (self.canary, self.stable):
            reach = share_reach(float(counts.sum()), self.alpha / 2)
            high = quantile(counts, 0.95 + reach) if reach < 0.05 else math.inf
            ends.append((quantile(counts, 0.95 - reach) if reach < 0.95 else 0.0, high))
        (low, high), (stable_low, stable_high) = ends
        return (low / stable_high, high / stable_low if stable_low else math.inf)

    def to_json(self) -> dict[str, Any]:
        """All it knows, ready for JSON, exactly."""
        return {
            "alpha": self.alpha,
            "max_ratio": self.max_ratio,
            "canary": self.canary.tolist(),
            "stable": self.stable.tolist(),
            "tested": self.tested,
            "failed": self._failed,
            "log_values": self._log_values.tolist(),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "LatencyEvidence":
        """What `to_json` was called on."""
        evidence = cls(state["alpha"], state["max_ratio"])
        evidence.canary = np.array(state["canary"], dtype=np.int64)
        evidence.stable = np.array(state["stable"], dtype=np.int64)
        evidence.tested, evidence._failed = state["tested"], state["failed"]
        evidence._log_values = np.array(state["log_values"])
        return evidence
