import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.latency import LatencyEvidence, quantile, turn_score
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
    assert _share_failed(lambda: LatencyEvidence(0.05, 2.0), times, trials=20, looks=25) <= binom.ppf(0.999, 20, 0.05) / 20


def test_at_the_very_edge_of_the_null_alarms_are_as_rare_as_promised():
    """Latencies on the edges, so that nothing is gained by rounding, and both arms alike."""
    random = np.random.default_rng(9)
    trials, failed = 100, 0
    for _ in range(trials):
        evidence = LatencyEvidence(0.1, 1.0)
        for _ in range(24):
            slow, slower = random.binomial(100, 0.1), random.binomial(900, 0.1)
            canary, stable = list(NOTHING), list(NOTHING)
            canary[8], canary[12], stable[8], stable[12] = 100 - slow, slow, 900 - slower, slower
            evidence.look(canary, stable)
        failed += evidence.decision == "fail"
    assert failed <= binom.ppf(0.999, trials, 0.1)


def test_a_canary_three_times_as_slow_is_failed_within_a_step_of_thirty_looks_of_ten_seconds():
    assert _share_failed(lambda: LatencyEvidence(0.01, 2.0), 3.0, trials=20, looks=30) == 1.0


def _stalling_rollout(
    random: np.random.Generator,
    look_seconds: float,
    length: float,
    every: float,
    times: float,
    ratio: float = 2.0,
    periodic: bool = False,
) -> str:
    """Five minutes at each of three shares, in which both arms stall, each by itself: four times as slow for a while."""
    evidence = LatencyEvidence(0.01, ratio, look_seconds)
    moments = np.arange(0, 900, look_seconds)
    stalls = [
        np.arange(-every * random.random(), 900, every)
        if periodic
        else np.cumsum(random.exponential(every, 4 * int(900 / every) + 20))
        for _ in range(2)
    ]
    for moment in moments:
        share = (0.05, 0.25, 0.5)[int(moment // 300)]
        looks = []
        for begun, part, slower in zip(stalls, (share, 1 - share), (times, 1.0)):
            at = moment + look_seconds * random.random(random.poisson(40 * part * look_seconds))
            since = at - np.append(-np.inf, begun)[np.searchsorted(begun, at)]
            seconds = random.lognormal(math.log(0.004), 0.5, len(at)) * np.where(since < length, 4.0, 1.0) * slower
            looks.append(_buckets(seconds))
        evidence.look(*looks)
    return evidence.decision


STALLS = [(10.0, 120.0), (3.0, 60.0), (1.0, 20.0)]


@pytest.mark.parametrize(("length", "every"), STALLS)
def test_stalls_of_each_arm_by_itself_fail_no_sound_canary_and_hide_no_slow_one(length, every):
    random = np.random.default_rng(1)
    assert [_stalling_rollout(random, 10.0, length, every, 1.0) for _ in range(10)] == ["go_on"] * 10
    assert [_stalling_rollout(random, 10.0, length, every, 3.0) for _ in range(5)] == ["fail"] * 5


@pytest.mark.parametrize(("length", "every"), STALLS)
def test_stalls_at_fixed_times_that_meet_every_turn_or_none_fail_no_sound_canary(length, every):
    """Twenty and sixty seconds are multiples of a turn and a pause, were pauses not drawn at random. No ratio is allowed."""
    random = np.random.default_rng(3)
    failed = [_stalling_rollout(random, 10.0, length, every, 1.0, 1.0, periodic=True) == "fail" for _ in range(12)]
    assert sum(failed) <= binom.ppf(0.999, 12, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("trials", "look_seconds"), [(60, 0.5), (300, 10.0)])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
@pytest.mark.parametrize(("length", "every"), STALLS)
def test_stalls_fail_sound_canaries_as_rarely_as_promised(length, every, ratio, trials, look_seconds, periodic):
    """Also if both arms are alike and no difference is allowed."""
    random = np.random.default_rng(2)
    failed = [
        _stalling_rollout(random, look_seconds, length, every, 1.0, ratio, periodic=periodic) == "fail" for _ in range(trials)
    ]
    assert sum(failed) <= binom.ppf(0.999, trials, 0.01)


def test_a_stall_of_ten_seconds_counts_as_one_turn_however_often_one_looks():
    random = np.random.default_rng(4)
    highest = 0.0
    for look_seconds in (0.5, 1.0, 5.0, 10.0):
        evidence = LatencyEvidence(0.01, 1.0, look_seconds)
        looks = int(200 / look_seconds)
        values = []
        for look in range(looks):
            slow = 90 <= look * look_seconds < 100
            evidence.look(_requests(random, 200, 0.4 if slow else 0.004), _requests(random, 200))
            values.append(evidence.log_e_value)
        highest = max(highest, *(later - before for before, later in pairwise(values)))
        stalled = [value for look, value in enumerate(values) if 90 <= look * look_seconds < 130]
        assert max(stalled) - values[int(90 / look_seconds) - 1] <= math.log(1.9)
    assert highest <= math.log(1.9) + 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=3)
)
def test_a_turns_score_is_what_drawing_gives_and_swapping_the_arms_turns_its_sign(looks):
    looks = [(slow, slow + fast, others, others + rest) for slow, fast, others, rest in looks]
    score = turn_score(looks)
    assert -1 - 1e-12 <= score <= 1 + 1e-12
    assert turn_score([(c, d, a, b) for a, b, c, d in looks]) == pytest.approx(-score, abs=1e-12)
    random = np.random.default_rng(0)
    drawn = np.zeros((2, 4000))
    for canary_slow, canary, stable_slow, stable in looks:
        size = min(canary, stable)
        drawn[0] += random.hypergeometric(canary_slow, canary - canary_slow, size, 4000)
        drawn[1] += random.hypergeometric(stable_slow, stable - stable_slow, size, 4000)
    assert np.sign(drawn[0] - drawn[1]).mean() == pytest.approx(score, abs=0.08)


@pytest.mark.parametrize("chance", [0.02, 0.5, 0.9])
def test_a_turns_score_is_nothing_on_average_if_the_arms_are_alike_whatever_their_sizes(chance):
    """All outcomes of one look, weighted by how likely they are."""
    canary, stable = 3, 17
    slow, others = np.arange(canary + 1), np.arange(stable + 1)
    scores = np.array([[turn_score([(one, canary, other, stable)]) for other in others] for one in slow])
    assert binom.pmf(slow, canary, chance) @ scores @ binom.pmf(others, stable, chance) == pytest.approx(0, abs=1e-12)


def test_more_requests_than_count_in_a_look_score_as_surely():
    assert turn_score([(900_000, 1_000_000, 100_000, 9_000_000)]) == pytest.approx(1)
    assert turn_score([(900, 1000, 9000, 10_000)]) == pytest.approx(0, abs=0.02)


def test_a_slow_tail_is_found_though_the_median_is_the_same():
    random = np.random.default_rng(5)
    evidence = LatencyEvidence(0.01, 2.0)
    for _ in range(30):
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
    assert evidence.log_e_value == 0
    for _ in range(20):
        evidence.look(_requests(random, 60), _requests(random, 600))
    assert evidence.decision == "go_on"
    assert evidence.log_e_value < 0


@pytest.mark.parametrize("requests", [5, 300])
def test_a_pause_of_one_arm_does_not_fail_it_and_if_most_looks_are_slow_it_is_failed(requests):
    random = np.random.default_rng(7)
    pause = _buckets(np.full(requests, 1.0))
    once, often = LatencyEvidence(0.01, 2.0), LatencyEvidence(0.01, 2.0)
    for look in range(60):
        canary, stable = _requests(random, 300), _requests(random, 2700)
        once.look(canary + pause if look in range(10, 20) else canary, stable)
        often.look(canary + 60 * pause if look % 7 else canary, stable)
    assert once.decision == "go_on"
    assert often.decision == "fail"


def test_a_ratio_between_two_buckets_is_rounded_up():
    random = np.random.default_rng(8)
    looks = [(_requests(random, 300, 0.012), _requests(random, 900)) for _ in range(6)]
    results = []
    for ratio in (1.5, 2.0):
        evidence = LatencyEvidence(1e-9, ratio)
        for look in looks:
            evidence.look(*look)
        results.append(evidence.log_e_value)
    assert results[0] == results[1] > 0


def test_latencies_beyond_the_last_edge_are_no_evidence_where_the_ratio_cannot_be_seen():
    slowest = [0] * 33 + [500]
    evidence = LatencyEvidence(0.01, 2.0)
    for _ in range(5):
        evidence.look(slowest, slowest)
    assert evidence.log_e_value == pytest.approx(0)
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


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_time_between_looks_that_means_nothing_is_refused(seconds):
    with pytest.raises(InvalidInput, match="look_seconds"):
        LatencyEvidence(0.01, 2.0, seconds)
