"""From what Prometheus scraped to exact counts: whole numbers that only grow, whatever restarts in between.

Prometheus keeps, of each replica, what its counters said at each scrape. Here every two scrapes that follow each other give an
increment, and the increments of all replicas of an arm are summed up. No rate is taken and nothing is extrapolated.

| happens | is counted |
|---|---|
| a replica counts on | what it counted since its last scrape, however long ago that is |
| it was started again in its place | all that it says: it began at zero |
| it shows a counter that it did not have | all of that: the counter began at zero |
| a replica is seen for the first time | what it counts from its first scrape on: nobody knows when it began |
| a replica goes | nothing more; what it had counted stays |
| one pod is scraped by two jobs | one of the two |
| a scrape is seen in part | nothing, until it is seen whole or another one comes |

What a replica did between its last scrape and its end was never measured, and is in no count.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.metrics.prometheus import Labels, Series
from modelyard.components.serving.target import Counts

PRESENT, SINCE = "present", "since"
ANSWERED, REJECTED, FAILED, LATENCY, SCORES, FLAGGED = "answered", "rejected", "failed", "latency", "scores", "flagged"
"""What a series says: that its replica is there, since when it counts (Unix time), or how much of one kind it has counted."""

CANARY, STABLE = "canary", "stable"

# What a scrape adds to all that one target exposes, and ``up`` has too.
_TARGET_LABELS = ("namespace", "pod", "job", "instance")
_EDGE = "le"

Bucket = tuple[float, float]
Target = tuple[str, str, str, str]
Meaning = Callable[[Labels], str]
_Meter = tuple[str, frozenset[tuple[str, str]]]


def target_of(labels: Labels) -> Target:
    """Which scrape target a series, or ``up``, is of: namespace, pod, job, instance."""
    namespace, pod, job, instance = (labels.get(name, "") for name in _TARGET_LABELS)
    return namespace, pod, job, instance


def outcome(status: str) -> str:
    """Which count an answer with this HTTP status belongs to; a request without an answer has none, or 0."""
    return {"2": ANSWERED, "3": ANSWERED, "4": REJECTED}.get(status[:1], FAILED)


@dataclass
class Scrape:
    """What one target said at one moment.

    Attributes:
        at: when, Unix time in seconds.
        since: since when it counts, if it says so.
        meters: what it has counted, by series and bucket; a counter is one bucket.
    """

    at: float
    since: float | None = None
    meters: dict[_Meter, dict[Bucket, int]] = field(default_factory=dict)


def scrapes(series: Iterable[Series], meaning: Meaning, seconds: float = 1.0) -> dict[Target, list[Scrape]]:
    """The scrapes that raw samples come from, by target, in order of time; all samples of one scrape have its time.

    Args:
        series: raw samples.
        meaning: what a series says, by its labels; empty if it is of no use.
        seconds: what latencies are counted in.

    Raises:
        NotAvailable: they are no counts.
    """
    found: dict[Target, dict[float, Scrape]] = {}
    cumulative: dict[Target, dict[float, dict[_Meter, dict[float, int]]]] = {}
    for one in series:
        if not (kind := meaning(one.labels)):
            continue
        target = target_of(one.labels)
        edge = float(one.labels.get(_EDGE, "inf")) * (seconds if kind == LATENCY else 1.0)
        meter = (kind, frozenset(item for item in one.labels.items() if item[0] != _EDGE))
        for at, value in one.samples:
            scrape = found.setdefault(target, {}).setdefault(at, Scrape(at))
            if kind in (PRESENT, SINCE):
                scrape.since = value if kind == SINCE else scrape.since
                continue
            if value < 0 or not value.is_integer():
                place = "/".join(filter(None, target))
                raise NotAvailable(f"{one.labels.get('__name__')} of {place} is {value}, which is no count")
            cumulative.setdefault(target, {}).setdefault(at, {}).setdefault(meter, {})[edge] = int(value)
    for target, by_time in cumulative.items():
        for at, meters in by_time.items():
            found[target][at].meters = {meter: _buckets(meter, edges) for meter, edges in meters.items()}
    return {target: [by_time[at] for at in sorted(by_time)] for target, by_time in found.items()}


def _buckets(meter: _Meter, edges: Mapping[float, int]) -> dict[Bucket, int]:
    """Counts by bucket from counts of what is at most each edge."""
    low, before, buckets = 0.0, 0, {}
    for edge in sorted(edges):
        buckets[low, edge] = edges[edge] - before
        low, before = edge, edges[edge]
    if min(buckets.values()) < 0 or low != math.inf:
        raise NotAvailable(f"{dict(meter[1]).get('__name__')} is no histogram: its buckets do not add up")
    return buckets


class ArmCount:
    """What one arm has done since a moment, over all its replicas.

    Args:
        since: scrapes up to here are not looked at; Unix time by Prometheus' clock.
        apart: whether single counters of a replica may begin anew. Else they all do, or none.
        dated: whether replicas say since when they count, so that a scrape that does not is seen in part.
    """

    def __init__(self, since: float, *, apart: bool = False, dated: bool = False) -> None:
        self._since, self._apart, self._dated = since, apart, dated
        self._last: dict[Target, Scrape] = {}
        # Up to when each pod is counted.
        self._until: dict[tuple[str, ...], float] = {}
        self._total: dict[str, dict[Bucket, int]] = {}

    @property
    def targets(self) -> set[Target]:
        """The targets that were ever counted."""
        return set(self._last)

    def take(self, found: Mapping[Target, list[Scrape]]) -> None:
        """Counts what has come since; scrapes that were counted before are not counted again."""
        fresh = {
            target: [
                scrape
                for scrape in history
                if scrape.at > self._until.get(_place(target), self._since) and not (self._dated and scrape.since is None)
            ]
            for target, history in found.items()
        }
        chosen: dict[tuple[str, ...], Target] = {}
        # Of a pod that is scraped twice, the target that was counted before, while it goes on.
        for target in sorted(filter(fresh.get, fresh), key=lambda target: (target not in self._last, target)):
            chosen.setdefault(_place(target), target)
        for place, target in chosen.items():
            for scrape, following in zip(fresh[target], [*fresh[target][1:], None]):
                last = self._last.get(target)
                if self._may_be_in_part(last, scrape, following):
                    continue
                if last is None or self._add(last, scrape):
                    self._last[target] = scrape
                self._until[place] = scrape.at

    def _may_be_in_part(self, last: Scrape | None, now: Scrape, following: Scrape | None) -> bool:
        """Whether a scrape may lack counters only since Prometheus does not show all of it yet; the one after it tells."""
        if now.since is not None or (last is not None and (_fallen(last, now) or not _lacking(last, now))):
            return False
        if following is None:
            return True
        # Where all counters begin anew together, one that goes on later had not begun anew.
        return last is not None and not self._apart and not _lacking(last, following)

    def _add(self, last: Scrape, now: Scrape) -> bool:
        """Adds what happened between two scrapes that follow each other; returns whether they do."""
        fallen = _fallen(last, now) | _lacking(last, now)
        anew = fallen if self._apart else set()
        if last.since != now.since or (fallen and not self._apart):
            if last.since is not None and last.since == now.since:
                # An earlier look at the same process, by another Prometheus behind the same address whose clock is ahead.
                return False
            anew = set(last.meters)
        for meter, buckets in now.meters.items():
            before = {} if meter in anew else last.meters.get(meter, {})
            total = self._total.setdefault(meter[0], {})
            for bucket, value in buckets.items():
                total[bucket] = total.get(bucket, 0) + value - before.get(bucket, 0)
        return True

    def counts(self, role: str, origin: str) -> Counts:
        """The counts as a rollout compares them.

        A bucket that is wider than those compared counts for the canary at its lower end, for the stable arm at its upper end:
        what then is slower is surely slower.

        Args:
            role: ``canary`` or ``stable``.
            origin: goes into the counts.

        Raises:
            NotAvailable: scores were counted in other buckets than those compared.
        """
        single = {kind: sum(self._total.get(kind, {}).values()) for kind in (ANSWERED, REJECTED, FAILED, FLAGGED)}
        latency, scores = [0] * (len(LATENCY_EDGES) + 1), [0] * (len(SCORE_EDGES) + 1)
        for (low, high), count in self._total.get(LATENCY, {}).items():
            latency[bisect_right(LATENCY_EDGES, low) if role == CANARY else bisect_left(LATENCY_EDGES, high)] += count
        for (low, high), count in self._total.get(SCORES, {}).items():
            place = bisect_left(SCORE_EDGES, high)
            if (low, high) != ((0.0, *SCORE_EDGES)[place], (*SCORE_EDGES, math.inf)[place]):
                raise NotAvailable(f"scores are counted in other buckets than this release compares: {low:g} to {high:g}")
            scores[place] += count
        return Counts(**single, latency=tuple(latency), scores=tuple(scores), origin=origin)


def _place(target: Target) -> tuple[str, ...]:
    """The pod behind a target; where its name is not known, the address."""
    namespace, pod, _, instance = target
    return (namespace, pod) if pod else (namespace, "", instance)


def _lacking(last: Scrape, now: Scrape) -> set[_Meter]:
    """The counters that are not there as they were."""
    return {meter for meter, before in last.meters.items() if before.keys() != now.meters.get(meter, {}).keys()}


def _fallen(last: Scrape, now: Scrape) -> set[_Meter]:
    """The counters that are there, and have counted less."""
    return {
        meter
        for meter, before in last.meters.items()
        if any(now.meters.get(meter, {}).get(bucket, count) < count for bucket, count in before.items())
    }
