"""How many requests each backend was given and what became of them, from Envoy's statistics.

Envoy counts by cluster and, within it, by the zone of the server that answered, which is the backend's name here. So a request
that was sent to the canary's cluster and answered by the stable backend in its place counts for the stable one. What a
cluster has counted for others would be gone with it, and is written down before: the counts of a backend never fall while it
is there, unless Envoy itself is started again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from modelyard.components.serving.local.envoy_config import ZONE

_CLASSES = {"2xx": 0, "3xx": 0, "4xx": 1, "5xx": 2}


@dataclass(frozen=True)
class BackendCounts:
    """The inference requests that a backend was given since the proxy started.

    Attributes:
        answered: answered with 2xx (or 3xx).
        rejected: answered with 4xx.
        failed: answered with 5xx, or not at all: refused or broken connections, timeouts, no healthy server.
    """

    answered: int = 0
    rejected: int = 0
    failed: int = 0

    def __add__(self, other: "BackendCounts") -> "BackendCounts":
        return BackendCounts(self.answered + other.answered, self.rejected + other.rejected, self.failed + other.failed)


ByBackend = dict[str, BackendCounts]


def _zone(cluster: str) -> str:
    return f"cluster.{cluster}.zone.{ZONE}."


def holds(statistics: Mapping[str, Any], cluster: str) -> bool:
    """Whether Envoy still has what a cluster counted."""
    return any(name.startswith(_zone(cluster)) for name in statistics)


def of_cluster(statistics: Mapping[str, Any], cluster: str) -> ByBackend:
    """What each backend answered of the requests that were sent to ``cluster``; those nobody answered are the cluster's own."""
    found: dict[str, list[int]] = {cluster: [0, 0, statistics.get(f"cluster.{cluster}.upstream_cx_none_healthy", 0)]}
    for name, value in statistics.items():
        if name.startswith(_zone(cluster)):
            backend, _, status = name.removeprefix(_zone(cluster)).rpartition(".upstream_rq_")
            if status in _CLASSES:
                found.setdefault(backend, [0, 0, 0])[_CLASSES[status]] += value
    return {backend: BackendCounts(*counts) for backend, counts in found.items()}


def _add(to: ByBackend, counts: Mapping[str, BackendCounts]) -> None:
    for backend, found in counts.items():
        to[backend] = to.get(backend, BackendCounts()) + found


@dataclass
class Departed:
    """What clusters have counted for other backends than their own, kept beyond their end.

    Attributes:
        process: the Envoy whose counts these are; those of another mean nothing.
        settled: by backend, from clusters that are gone.
        leaving: by cluster and backend, from clusters that are about to go: to be used as soon as Envoy has them no more.
    """

    process: dict[str, Any]
    settled: ByBackend = field(default_factory=dict)
    leaving: dict[str, ByBackend] = field(default_factory=dict)

    def leave(self, statistics: Mapping[str, Any], clusters: Iterable[str]) -> None:
        """Writes down what clusters that are about to go have counted for others."""
        for cluster in clusters:
            counts = of_cluster(statistics, cluster)
            counts.pop(cluster)
            if any(found != BackendCounts() for found in counts.values()):
                self.leaving[cluster] = counts

    def settle(self, statistics: Mapping[str, Any]) -> bool:
        """Adds up what has left; returns whether anything is still about to."""
        for cluster in [cluster for cluster in self.leaving if not holds(statistics, cluster)]:
            _add(self.settled, self.leaving.pop(cluster))
        return not self.leaving

    def counts(self, statistics: Mapping[str, Any], clusters: Iterable[str]) -> ByBackend:
        """The counts of the backends ``clusters``, by name."""
        total: ByBackend = {name: self.settled.get(name, BackendCounts()) for name in clusters}
        for cluster in {*total, *self.leaving}:
            gone = cluster in self.leaving and not holds(statistics, cluster)
            _add(total, self.leaving[cluster] if gone else of_cluster(statistics, cluster))
        return {name: total[name] for name in clusters}

    def to_json(self) -> dict[str, Any]:
        return {
            "process": self.process,
            "settled": {backend: astuple(counts) for backend, counts in self.settled.items()},
            "leaving": {
                cluster: {backend: astuple(counts) for backend, counts in found.items()}
                for cluster, found in self.leaving.items()
            },
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Departed":
        def by_backend(found: Mapping[str, Any]) -> ByBackend:
            return {backend: BackendCounts(*counts) for backend, counts in found.items()}

        leaving = {cluster: by_backend(found) for cluster, found in content["leaving"].items()}
        return Departed(dict(content["process"]), by_backend(content["settled"]), leaving)
