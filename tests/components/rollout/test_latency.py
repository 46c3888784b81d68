import math

import numpy as np
import pytest
from scipy.stats import binom

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.latency import LatencyEvidence, quantile
from modelyard.components.serving.buckets import LATENCY_EDGES

NOTHING = [0] * (len(LATENCY_EDGES) + 1)


def _buckets(seconds: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(LATENCY_EDGES, seconds), minlength=len(LATENCY_EDGES) + 1)


def _requests(random: np.random.Generator, count: int, median: float = 0.004, spread: float = 0.5) -> np.ndarray:
    return _buckets(random.lognormal(math.log(median), spread, count))


def _share_failed(evidence_of, times: float, *, trials: int, looks: int = 10, spread: float = 0.5) -> float:
    random = np.random.default_rng(3)
    failed = 0
    for _ in range(trials):
        evidence = evidence_of()
        for look in range(looks):
            median = 0.003 * (1 + look % 3)
            evidence.look(_requests(random, 100, times * median, spread), _requests(random, 900, median, spread))
        failed += evidence.decision == "fail"
    return failed / trials


@pytest.mark.parametrize("times", [1.0, 2.0])
def test_a_canary_within_the_ratio_is_rarely_failed_also_if_both_arms_slow_down(times):
    assert _share_failed(lambda: LatencyEvidence(0.05, 2.0), times, trials=40) <= 0.0


def test_at_the_very_edge_of_the_null_alarms_are_as_rare_as_promised():
    """Latencies on the edges, so that nothing is gained by rounding, and the canary's odds exactly those tolerated."""
    random = np.random.default_rng(9)
    trials, failed = 150, 0
    for _ in range(trials):
        evidence = LatencyEvidence(0.1, 1.0)
        for _ in range(8):
            slow, slower = random.binomial(100, 2 / 11), random.binomial(900, 0.1)
            canary, stable = list(NOTHING), list(NOTHING)
            canary[8], canary[12], stable[8], stable[12] = 100 - slow, slow, 900 - slower, slower
            evidence.look(canary, stable)
        failed += evidence.decision == "fail"
    assert failed <= binom.ppf(0.999, trials, 0.1)


def test_a_canary_three_times_as_slow_is_failed_within_a_few_looks():
    assert _share_failed(lambda: LatencyEvidence(0.01, 2.0), 3.0, trials=20, looks=6) == 1.0


def test_a_slow_tail_is_found_though_the_median_is_the_same():
    random = np.random.default_rng(5)
    evidence = LatencyEvidence(0.01, 2.0)
    for _ in range(10):
        slow = random.random(300) < 0.1
        canary = np.where(slow, 0.5, random.lognormal(math.log(0.004), 0.3, 300))
        evidence.look(_buckets(canary), _requests(random, 2700, spread=0.3))
    assert evidence.decision == "fail"
    (median, stable_median), _, (tail, stable_tail) = evidence.quantiles.values()
    assert median < 1.5 * stable_median
    assert tail > 10 * stable_tail


def test_a_cold_start_does_not_fail_a_sound_canary():
    random = np.random.default_rng(6)
    evidence = LatencyEvidence(0.01, 2.0)
    evidence.look(NOTHING, _requests(random, 5000))
    evidence.look(_requests(random, 60, median=0.4), _requests(random, 600))
    assert evidence.tested == 0
    for _ in range(20):
        evidence.look(_requests(random, 60), _requests(random, 600))
    assert evidence.tested == 1200
    assert evidence.decision == "go_on"
    assert evidence.e_value < 1


@pytest.mark.parametrize("requests", [5, 300])
def test_a_pause_of_one_arm_does_not_fail_it_and_if_most_looks_are_slow_it_is_failed(requests):
    random = np.random.default_rng(7)
    pause = _buckets(np.full(requests, 1.0))
    once, often = LatencyEvidence(0.01, 2.0), LatencyEvidence(0.01, 2.0)
    for look in range(20):
        canary, stable = _requests(random, 300), _requests(random, 2700)
        once.look(canary + pause if look in (10, 11) else canary, stable)
        often.look(canary + 10 * pause if look % 3 else canary, stable)
    assert once.decision == "go_on"
    assert often.decision == "fail"


def test_a_ratio_between_two_buckets_is_rounded_up():
    random = np.random.default_rng(8)
    looks = [(_requests(random, 300, 0.012), _requests(random, 900)) for _ in range(5)]
    results = []
    for ratio in (1.5, 2.0):
        evidence = LatencyEvidence(1e-9, ratio)
        for look in looks:
            evidence.look(*look)
        results.append(evidence.log_e_value)
    assert results[0] == results[1]


def test_latencies_beyond_the_last_edge_are_no_evidence_where_the_ratio_cannot_be_seen():
    slowest = [0] * 33 + [500]
    evidence = LatencyEvidence(0.01, 2.0)
    for _ in range(5):
        evidence.look(slowest, slowest)
    assert evidence.e_value == pytest.approx(1)
    assert evidence.quantiles["p50"] == (math.inf, math.inf)
    assert math.isnan(evidence.estimate)


def test_estimate_and_interval_show_how_many_times_as_slow_the_canary_is():
    random = np.random.default_rng(9)
    evidence = LatencyEvidence(0.01, 4.0)
    assert math.isnan(evidence.estimate)
    assert evidence.interval == (0, math.inf)
    for _ in range(10):
        evidence.look(_requests(random, 2000, 0.008), _requests(random, 2000))
    low, high = evidence.interval
    assert low < 2 < high < 3
    assert evidence.estimate == pytest.approx(2, rel=0.15)


def test_quantiles_are_interpolated_within_their_bucket():
    counts = list(NOTHING)
    counts[4], counts[6] = 100, 100
    assert quantile(counts, 0.25) == pytest.approx((LATENCY_EDGES[3] + LATENCY_EDGES[4]) / 2)
    assert quantile(counts, 0.5) == LATENCY_EDGES[4]
    assert quantile(counts, 0.75) == pytest.approx((LATENCY_EDGES[5] + LATENCY_EDGES[6]) / 2)
    assert quantile(counts, 1.0) == LATENCY_EDGES[6]
    assert quantile([5, *NOTHING[1:]], 0.5) == pytest.approx(LATENCY_EDGES[0] / 2)
    assert quantile([*NOTHING[1:], 5], 0.5) == math.inf
    assert math.isnan(quantile(NOTHING, 0.5))


@pytest.mark.parametrize(
    ("given", "field"), [([1, 2], "canary_latency"), ([-1, *NOTHING[1:]], "canary_latency"), ([0.5] * 34, "canary_latency")]
)
def test_counts_that_are_not_buckets_are_refused(given, field):
    with pytest.raises(InvalidInput) as refused:
        LatencyEvidence(0.01, 2.0).look(given, NOTHING)
    assert refused.value.field == field


@pytest.mark.parametrize("ratio", [0.9, 65, math.nan])
def test_a_ratio_that_means_nothing_is_refused(ratio):
    with pytest.raises(InvalidInput, match="max_ratio"):
        LatencyEvidence(0.01, ratio)
