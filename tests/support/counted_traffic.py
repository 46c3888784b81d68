"""A metrics source in memory: counts what a cluster's traffic would have done to each version, as a simulated clock goes on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.target import ArmCounts, Counts


@dataclass
class CountedTraffic:
    """Counts without chance: every version answers alike, but for the share of requests that fails.

    Args:
        now: the clock.
        traffic: percent of the live traffic of each version at this moment.
        rate: requests a second.
        failing: by version, the share of its requests that is answered with 5xx.
        origin: since when is counted.
    """

    now: Callable[[], float]
    traffic: Callable[[], dict[str, float]]
    rate: float = 50.0
    failing: dict[str, float] | None = None
    origin: str = "the test"

    def __post_init__(self) -> None:
        self._until = self.now()
        self._requests: dict[str, float] = {}
        self.asked: list[tuple[Workload | None, Workload | None]] = []

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        """The counts of both arms, see ``MetricsSource``."""
        self.asked.append((stable, canary))
        elapsed, self._until = self.now() - self._until, self.now()
        for version, percent in self.traffic().items():
            self._requests[version] = self._requests.get(version, 0.0) + self.rate * elapsed * percent / 100
        return ArmCounts(*(self._of(arm.version) if arm else None for arm in (stable, canary)))

    def _of(self, version: str) -> Counts:
        requests = math.floor(self._requests.get(version, 0.0))
        failed = math.floor(requests * (self.failing or {}).get(version, 0.0))
        answered = requests - failed
        spread = Counts(answered=answered, failed=failed, origin=self.origin)
        return replace(
            spread,
            latency=_spread(requests, len(LATENCY_EDGES) + 1),
            scores=_spread(answered, len(SCORE_EDGES) + 1),
            flagged=answered // 10,
        )


def _spread(total: int, buckets: int) -> tuple[int, ...]:
    """Three buckets in the middle: half, a third and the rest."""
    middle = buckets // 2
    found = [0] * buckets
    found[middle], found[middle + 1] = total // 2, total // 3
    found[middle - 1] = total - total // 2 - total // 3
    return tuple(found)
