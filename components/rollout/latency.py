"""Whether the canary is slower than it may be: by turns that an arm is slow in as a whole, tested always-validly.

Latencies are alike in time: garbage is collected, a neighbour is loud, a cache is cold, and for some seconds all requests of an
arm are slow. So requests are no units of evidence here. A turn of some seconds is, and with it, which arm was the slower one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.always_valid import AlwaysValidTest, Decision, checked_counts, log_sum, share_reach
from modelyard.components.rollout.conditional_odds import log_terms
from modelyard.components.serving.buckets import LATENCY_EDGES

QUANTILES = (0.5, 0.9, 0.99)
"""Quantiles of the stable arm's past at whose edges the arms are compared, each with a third of the evidence."""

TURN_SECONDS = 10.0
"""How long a turn lasts at least, and the pause before the next one: longer than what slows an arm in passing."""

STAKE = 0.9
"""How much of what there is one turn may win or lose."""

MOST_COMPARED = 500
"""Most requests of an arm that count in one look: more hardly tell more about a turn, and small differences should not."""

LEARN_STABLE, LEARN_CANARY = 100, 50
"""Requests that the looks before must hold before turns begin: edges have to be known, and a cold start to be over."""

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

    The null: in every turn, an arm is as often the slower one as the other if the canary may take ``max_ratio`` times as long;
    or the canary is so less often. It holds if the arms' latencies, the stable arm's times ``max_ratio``, are exchangeable
    within a turn: if whatever slows an arm in passing befalls both with the same chances, together or each by itself. Nothing
    is assumed about how the requests of a turn depend on each other.

    A turn is compared at three edges: those next to the stable arm's median, 90th and 99th percentile in the looks before. Of
    each look an equal number of requests of both arms is drawn, so that shares of traffic may change within a turn. The turn's
    score is the chance that more of the canary's take longer than ``max_ratio * edge`` than of the stable arm's take longer
    than ``edge``, less the chance that fewer do. It lies between -1 and 1, and under the null is expected to be at most 0. The
    evidence at an edge, which begins with a third of the whole, is multiplied by 1 + `STAKE` times the score: by 1.9 at most,
    however slow the canary is. At ``alpha`` 1 % eight turns decide in which it is surely slower at every edge, and nine at one
    edge alone: 23 and 26 looks of ten seconds.

    **Turns must not depend on each other.** A turn lasts `TURN_SECONDS` or a look, whichever is longer, and a pause of that and
    up to twice that, drawn at random, is kept before the next one. That suffices if nothing that slows an arm in passing lasts
    longer than a turn; what comes back at fixed times meets turns at random. A canary that stands still for minutes is not told
    from a slow version, and is not meant to be.

    Buckets are half an octave wide, so ``max_ratio`` is rounded up to the next power of the square root of 2.

    The first looks teach the edges and are not tested, which also lets a cold start pass: see `LEARN_STABLE`, `LEARN_CANARY`.
    What the stable arm did before the rollout can be given as a look without canary requests.

    Args:
        alpha: largest acceptable probability that a canary within the null is ever failed.
        max_ratio: how many times as slow as the stable arm the canary may be.
        look_seconds: time between two looks, at least.
    """

    def __init__(self, alpha: float, max_ratio: float = 2.0, look_seconds: float = 10.0) -> None:
        super().__init__(alpha)
        if not 1 <= max_ratio <= 64:
            raise InvalidInput("max_ratio", max_ratio, "give how many times as slow the canary may be, from 1 to 64")
        if not look_seconds > 0:
            raise InvalidInput("look_seconds", look_seconds, "give the time between two looks, above 0")
        self.max_ratio, self.look_seconds = float(max_ratio), float(look_seconds)
        self._shift = math.ceil(2 * math.log2(self.max_ratio) - 1e-9)
        self._looks_a_turn = math.ceil(TURN_SECONDS / self.look_seconds)
        self._log_values = np.zeros(len(QUANTILES))
        self.canary, self.stable = np.zeros(_BUCKETS, dtype=np.int64), np.zeros(_BUCKETS, dtype=np.int64)
        # Buckets of the edges that the next turn is compared at, chosen before the pause; none while the first looks teach.
        self._chosen: list[int] = []
        self._turns = self._passed = self._pause = 0
        # Of each look of this turn, and each edge: slow requests and all, of the canary and of the stable arm.
        self._turn: list[list[list[int]]] = []

    def look(self, canary_latency: Sequence[int], stable_latency: Sequence[int]) -> Decision:
        """Takes in the requests by ``LATENCY_EDGES`` since the look before, shape (edges + 1,) each, and says what follows."""
        canary = checked_counts("canary_latency", canary_latency, _BUCKETS)
        stable = checked_counts("stable_latency", stable_latency, _BUCKETS)
        self.canary += canary
        self.stable += stable
        if not self._chosen:
            if self.stable.sum() >= LEARN_STABLE and self.canary.sum() >= LEARN_CANARY:
                self._begin()
            return self.decision
        self._passed += 1
        if self._passed > self._pause and canary.any() and stable.any():
            self._turn.append([self._slow(canary, stable, edge) for edge in self._chosen])
        if self._passed == self._pause + self._looks_a_turn:
            if self._turn and not self._failed:
                scores = np.array([turn_score(looks) for looks in zip(*self._turn)])
                self._log_values += np.log1p(STAKE * scores)
                self._failed = self._log_value() >= -math.log(self.alpha)
            self._begin()
        return self.decision

    def _begin(self) -> None:
        """Begins the pause before a turn."""
        past = np.cumsum(self.stable)
        self._chosen = [int(np.searchsorted(past, share * past[-1])) for share in QUANTILES]
        # Drawn by the turn's number, so that a rollout which goes on elsewhere keeps the same pauses.
        self._pause = self._looks_a_turn + int(np.random.default_rng(self._turns).integers(self._looks_a_turn + 1))
        self._turns, self._passed, self._turn = self._turns + 1, 0, []

    def _slow(self, canary: np.ndarray, stable: np.ndarray, edge: int) -> list[int]:
        if edge + self._shift >= len(_EDGES):
            return [0, int(canary.sum()), 0, int(stable.sum())]  # Too slow to be seen: no difference.
        return [
            int(canary[edge + self._shift + 1 :].sum()),
            int(canary.sum()),
            int(stable[edge + 1 :].sum()),
            int(stable.sum()),
        ]

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
            "look_seconds": self.look_seconds,
            "chosen": self._chosen,
            "turns": self._turns,
            "passed": self._passed,
            "pause": self._pause,
            "turn": self._turn,
            "failed": self._failed,
            "log_values": self._log_values.tolist(),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "LatencyEvidence":
        """What `to_json` was called on."""
        evidence = cls(state["alpha"], state["max_ratio"], state["look_seconds"])
        evidence.canary = np.array(state["canary"], dtype=np.int64)
        evidence.stable = np.array(state["stable"], dtype=np.int64)
        evidence._chosen, evidence._turns = list(state["chosen"]), state["turns"]
        evidence._passed, evidence._pause = state["passed"], state["pause"]
        evidence._turn, evidence._failed = [list(look) for look in state["turn"]], state["failed"]
        evidence._log_values = np.array(state["log_values"])
        return evidence


def turn_score(looks: Iterable[Sequence[int]]) -> float:
    """The chance that the canary was slow more often in a turn than the stable arm, less the chance that it was less often.

    Of each look, as many requests of either arm are drawn at random as the smaller one had, at most `MOST_COMPARED`. Nothing
    is drawn in truth; the chances are worked out.

    Args:
        looks: of each look the canary's slow requests, all its requests, and the same of the stable arm; all from 0.

    Returns:
        From -1 to 1; the arms swapped, its negative.
    """
    canary, stable = np.ones(1), np.ones(1)
    for canary_slow, canary_total, stable_slow, stable_total in looks:
        drawn = min(canary_total, stable_total, MOST_COMPARED)
        canary = np.convolve(canary, _slow_drawn(canary_slow, canary_total, drawn))
        stable = np.convolve(stable, _slow_drawn(stable_slow, stable_total, drawn))
    return float(canary[1:] @ np.cumsum(stable)[:-1] - stable[1:] @ np.cumsum(canary)[:-1])


def _slow_drawn(slow: int, total: int, drawn: int) -> np.ndarray:
    """Probabilities of 0 to ``drawn`` slow requests among ``drawn`` of ``total``."""
    chances = np.zeros(drawn + 1)
    x = np.arange(max(0, slow + drawn - total), min(slow, drawn) + 1)
    logs = log_terms(x, drawn, total - drawn, slow)
    chances[x] = np.exp(logs - log_sum(logs))
    return chances
