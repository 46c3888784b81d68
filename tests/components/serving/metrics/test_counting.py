"""Counts from scrapes against the truth: what each request was, where, and whether any scrape could have seen it."""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.metrics.counting import CANARY, STABLE, ArmCount, outcome, scrapes
from modelyard.components.serving.metrics.predictor import PredictorVocabulary
from modelyard.components.serving.metrics.prometheus import Series
from modelyard.components.serving.metrics.source import Workload

ARM = Workload("fraud", "2", "shop", "fraud", "fraud-v2-predictor")
STATUSES = ("200", "400", "500")
ORIGIN = 2.5


def meaning(labels):
    return PredictorVocabulary().meaning(ARM, labels)


@dataclass
class Process:
    """What one predictor counts from its start to its end."""

    since: float
    statuses: Counter = field(default_factory=Counter)
    buckets: Counter = field(default_factory=Counter)

    def exposed(self, *, since: bool):
        """Every series by its labels, as a predictor writes them."""
        if since:
            yield {"__name__": "modelyard_counting_since_seconds"}, self.since
        for status, count in self.statuses.items():
            yield {"__name__": "modelyard_requests_total", "status": status}, count
        total = 0
        for place, edge in enumerate((*LATENCY_EDGES, math.inf)):
            total += self.buckets[place]
            yield {"__name__": "modelyard_request_seconds_bucket", "le": str(edge)}, total


class Cluster:
    """Pods that come, restart and go, and a Prometheus that scrapes them when it is there."""

    def __init__(self, *, since: bool) -> None:
        self.time, self.up, self.since = 0.0, True, since
        self.pods: dict[str, Process] = {}
        self.samples: dict[frozenset, list] = {}
        self.requests: list[tuple[float, str, float, str, int]] = []
        self.seen: dict[tuple[str, float], list[float]] = {}

    def do(self, what: str, pod: str, status: str, place: int, requests: int) -> None:
        self.time += 1
        if what == "add":
            # A pod's name is never used again.
            self.pods.setdefault(f"{pod}{self.time:g}" if pod not in self.pods and self.time > 3 else pod, Process(self.time))
        elif what == "remove":
            self.pods.pop(self._one(pod), None)
        elif what == "restart" and (name := self._one(pod)):
            self.pods[name] = Process(self.time)
        elif what == "serve" and (name := self._one(pod)):
            process = self.pods[name]
            process.statuses[status] += requests
            process.buckets[place] += requests
            self.requests += [(self.time, name, process.since, status, place)] * requests
        elif what == "scrape" and self.up:
            for name in self.pods:
                self._scrape(name)
        elif what == "scrape one" and self.up and (name := self._one(pod)):
            self._scrape(name)
        elif what in ("down", "up"):
            self.up = what == "up"

    def _one(self, pod: str) -> str:
        return next((name for name in sorted(self.pods) if name.startswith(pod)), "")

    def _scrape(self, name: str) -> None:
        self.seen.setdefault((name, self.pods[name].since), []).append(self.time)
        for labels, value in self.pods[name].exposed(since=self.since):
            key = frozenset({**labels, "pod": name, "namespace": "shop", "instance": f"{name}:80", "job": "pods"}.items())
            self.samples.setdefault(key, []).append((self.time, float(value)))

    def raw(self, window: float) -> list[Series]:
        kept = ((key, [one for one in found if one[0] > self.time - window]) for key, found in self.samples.items())
        return [Series(dict(key), tuple(found)) for key, found in kept if found]

    def truth(self) -> tuple[Counter, Counter]:
        """Of the requests since their pod was first scraped, those that a later scrape of the same process saw."""
        statuses, places = Counter(), Counter()
        for at, name, since, status, place in self.requests:
            first = min(
                (time for (pod, _), times in self.seen.items() if pod == name for time in times if time > ORIGIN), default=None
            )
            if first is not None and at > first and any(time > at for time in self.seen.get((name, since), ())):
                statuses[outcome(status)] += 1
                places[place] += 1
        return statuses, places


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["serve"] * 6 + ["scrape"] * 4 + ["scrape one", "restart", "add", "remove", "down", "up", "look"]),
        st.sampled_from("abc"),
        st.sampled_from(STATUSES),
        st.integers(0, len(LATENCY_EDGES)),
        st.integers(1, 5),
    ),
    max_size=60,
)


def looks(steps, *, since):
    """The cluster after these steps, and the counts at each look with it; the last look is at the end."""
    cluster = Cluster(since=since)
    for pod in "ab":
        cluster.do("add", pod, "", 0, 0)
    arm, taken = ArmCount(ORIGIN, dated=since), 0.0
    for step in [*steps, ("look", "", "", 0, 0)]:
        cluster.do(*step)
        if step[0] == "look":
            # More than what is new is asked for, as there may be latecomers.
            arm.take(scrapes(cluster.raw(cluster.time - taken + 10), meaning))
            taken = cluster.time
            yield cluster, arm.counts(STABLE, "o")


@given(STEPS)
@example([(what, "a", "200", 3, requests) for what, requests in [
    ("scrape", 0), ("serve", 2), ("scrape", 0), ("restart", 0), ("serve", 5), ("scrape", 0)]])  # fmt: skip
def test_what_is_counted_is_what_scrapes_could_see_whatever_restarts_comes_and_goes(steps):
    for cluster, counts in looks(steps, since=True):
        statuses, places = cluster.truth()
        assert (counts.answered, counts.rejected, counts.failed) == (
            statuses["answered"], statuses["rejected"], statuses["failed"],
        )  # fmt: skip
        assert counts.latency == tuple(places[place] for place in range(len(LATENCY_EDGES) + 1))


@given(STEPS)
def test_without_the_time_of_its_start_a_restart_may_hide_requests_but_never_adds_any(steps):
    before = ArmCount(0).counts(STABLE, "o")
    for cluster, counts in looks(steps, since=False):
        statuses, places = cluster.truth()
        for kind in ("answered", "rejected", "failed"):
            assert getattr(before, kind) <= getattr(counts, kind) <= statuses[kind]
        for place, (low, count) in enumerate(zip(before.latency, counts.latency)):
            assert low <= count <= places[place]
        before = counts


def series(value_by_time, **labels):
    return Series(
        {"__name__": "modelyard_requests_total", "status": "200", **labels},
        tuple((float(at), float(value)) for at, value in value_by_time),
    )


def answered(*looks_, apart=False, dated=False):
    arm = ArmCount(0.0, apart=apart, dated=dated)
    for found in looks_:
        arm.take(scrapes(found, meaning))
        yield arm.counts(STABLE, "").answered


def test_a_pod_that_two_jobs_scrape_is_counted_once():
    def of(job, *samples):
        return series(samples, pod="a", namespace="shop", job=job, instance=f"a:{job}")

    first = [of("x", (1, 10), (3, 13)), of("y", (2, 11), (4, 15))]
    # The job that was counted is given up: the other one goes on from where that one was.
    second = [of("x", (1, 10), (3, 13), (5, 16)), of("y", (2, 11), (4, 15), (6, 18), (8, 21))]
    third = [of("y", (2, 11), (4, 15), (6, 18), (8, 21), (10, 25))]
    assert list(answered(first, second, third)) == [3, 6, 6 + 25 - 18]


def test_a_pair_of_prometheuses_behind_one_address_counts_nothing_twice_though_their_clocks_differ():
    # The second stamps four seconds ahead: its third scrape was before the first one's.
    first, second = [(1, 10), (4, 13), (7, 16)], [(2, 9), (5, 12), (8, 15), (11, 18)]
    labels = {"__name__": "modelyard_counting_since_seconds", "instance": "x"}
    looks_ = [
        [series(found, instance="x"), Series(labels, tuple((float(at), 0.5) for at, _ in found))] for found in (first, second)
    ]
    assert list(answered(*looks_)) == [6, 8]


def test_a_scrape_that_is_seen_in_part_counts_nothing_twice_where_replicas_say_since_when_they_count():
    whole = [(1, 2000), (2, 2010), (3, 2020)]

    def told(*times):
        return Series(
            {"__name__": "modelyard_counting_since_seconds", "instance": "x"}, tuple((float(at), 0.5) for at in times)
        )

    def rest(samples):
        return series(samples, instance="x")

    expected = [10, 20]
    assert list(answered([rest(whole[:2]), told(1, 2)], [rest(whole), told(1, 2, 3)], dated=True)) == expected
    # The start is missing, once for good and once for a moment; then the first scrape's.
    assert list(answered([rest(whole[:2]), told(1)], [rest(whole), told(1, 3)], dated=True)) == [0, 20]
    assert list(answered([rest(whole[:2]), told(1)], [rest(whole), told(1, 2, 3)], dated=True)) == [0, 20]
    assert list(answered([rest(whole[:1])], [rest(whole), told(1, 2, 3)], dated=True)) == [0, 20]
    # The counter is missing.
    assert list(answered([rest(whole[:1]), told(1, 2)], [rest([whole[0], whole[2]]), told(1, 2, 3)], dated=True)) == [0, 20]


@pytest.mark.parametrize("apart", [False, True])
def test_the_newest_scrape_counts_nothing_twice_if_it_is_seen_in_part_where_no_start_is_told(apart):
    def of(status, *samples):
        return series(samples, instance="x", status=status)

    good, bad = [(1, 2000), (2, 2010), (3, 2020), (4, 2030)], [(1, 7), (2, 8), (3, 9), (4, 10)]
    whole = [of("200", *good[:3]), of("500", *bad[:3])]
    # The very first, and a later one; whole at the next look, when another one may have come.
    for seen in (0, 2):
        in_part = [of("200", *good[:seen]), of("500", *bad[: seen + 1])]
        last = [of("200", *good), of("500", *bad)]
        assert list(answered(in_part, whole, last, apart=apart))[1:] == [20, 30]


def test_a_scrape_that_stays_in_part_between_two_whole_ones_is_no_restart():
    found = [series([(1, 2000), (3, 2020)], instance="x"), series([(1, 7), (2, 8), (3, 9)], instance="x", status="500")]
    assert list(answered(found)) == [20]


def test_a_counter_that_stays_away_began_anew_with_all_the_others():
    # It was restarted, and had more than before when it was scraped again.
    found = [series([(1, 5), (2, 9), (3, 11)], instance="x"), series([(1, 7)], instance="x", status="500")]
    assert list(answered(found)) == [9 + 2]


def test_pods_of_two_namespaces_and_addresses_without_a_pod_are_replicas_of_their_own():
    found = [
        series([(1, 1), (2, 2)], pod="a", namespace="shop", instance="x:1"),
        series([(1, 1), (2, 3)], pod="a", namespace="bank", instance="x:1"),
        series([(1, 1), (2, 5)], instance="x:1"),
        series([(1, 1), (2, 9)], instance="x:2"),
    ]
    assert list(answered(found)) == [1 + 2 + 4 + 8]


def test_a_counter_that_is_dropped_and_begun_anew_counts_alone_where_counters_may():
    def of(status, *samples):
        return series(samples, instance="gateway", status=status)

    # The first is dropped between its samples; the other goes on. The first comes back beyond what it had.
    found = [of("200", (1, 5), (2, 6), (4, 9)), of("201", (1, 100), (2, 101), (3, 102), (4, 103))]
    assert list(answered(found, apart=True)) == [1 + 9 + 3]
    # Where all begin anew together, it was only not seen.
    assert list(answered(found)) == [9 - 5 + 103 - 100]


@given(
    st.lists(st.floats(0, 40), min_size=1, max_size=30), st.lists(st.floats(0.0002, 30), min_size=1, max_size=8, unique=True)
)
def test_what_is_slower_by_wider_buckets_is_surely_slower(latencies, edges):
    edges = [*sorted(edges), math.inf]
    exact = sorted(bisect_left(LATENCY_EDGES, seconds) for seconds in latencies)

    def found(count):
        return [
            Series(
                {"__name__": "modelyard_request_seconds_bucket", "le": str(edge), "instance": "x"},
                ((1.0, 0.0), (2.0, float(sum(seconds <= edge for seconds in latencies)))),
            )
            for edge in edges
        ]

    arm = ArmCount(0.0)
    arm.take(scrapes(found(len(latencies)), meaning))
    places = {
        role: [place for place, count in enumerate(arm.counts(role, "").latency) for _ in range(count)]
        for role in (CANARY, STABLE)
    }
    assert len(places[CANARY]) == len(places[STABLE]) == len(exact)
    assert all(low <= true <= high for low, true, high in zip(places[CANARY], exact, places[STABLE]))


def histogram(name, cumulative):
    return [
        Series({"__name__": name, "le": str(edge), "instance": "x"}, ((1.0, 0.0), (2.0, float(count))))
        for edge, count in cumulative.items()
    ]


def test_scores_in_other_buckets_and_what_is_no_count_are_refused():
    arm = ArmCount(0.0)
    arm.take(scrapes(histogram("modelyard_scores_bucket", {0.5: 1, math.inf: 2}), meaning))
    with pytest.raises(NotAvailable, match=r"other buckets than this release compares: 0 to 0\.5"):
        arm.counts(STABLE, "")
    arm = ArmCount(0.0)
    exact = {edge: place for place, edge in enumerate((*SCORE_EDGES, math.inf))}
    arm.take(scrapes(histogram("modelyard_scores_bucket", exact), meaning))
    assert arm.counts(STABLE, "").scores == (0, *[1] * len(SCORE_EDGES))
    with pytest.raises(NotAvailable, match="do not add up"):
        scrapes(histogram("modelyard_scores_bucket", {0.5: 2, math.inf: 1}), meaning)
    with pytest.raises(NotAvailable, match="do not add up"):
        scrapes(histogram("modelyard_scores_bucket", {0.5: 2}), meaning)
    with pytest.raises(NotAvailable, match=r"is 1\.5, which is no count"):
        scrapes([series([(1, 1.5)])], meaning)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("200", "answered"), ("302", "answered"), ("422", "rejected"), ("503", "failed"), ("0", "failed"), ("", "failed")],
)
def test_a_request_without_an_answer_failed(status, kind):
    assert outcome(status) == kind
