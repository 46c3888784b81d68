import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.always_valid import LARGEST_COUNT
from modelyard.components.rollout.failures import FailureEvidence, is_burst


def _looks(evidence: FailureEvidence, odds: float, looks: int, seed: int, rate: float = 0.02) -> FailureEvidence:
    random = np.random.default_rng(seed)
    worse = odds * rate / (1 - rate + odds * rate)
    for _ in range(looks):
        evidence.look(int(random.binomial(500, worse)), 500, int(random.binomial(1500, rate)), 1500)
    return evidence


def test_a_canary_that_fails_more_often_is_failed_and_stays_so():
    evidence = _looks(FailureEvidence(0.02), 4.0, looks=10, seed=1)
    assert (evidence.decision, evidence.threshold) == ("fail", 50)
    assert evidence.log_e_value == pytest.approx(math.log(50))
    before = evidence.estimate
    _looks(evidence, 0.1, looks=200, seed=2)
    assert (evidence.decision, evidence.log_e_value) == ("fail", pytest.approx(math.log(50)))
    assert evidence.estimate < before


def test_a_tolerated_ratio_is_not_failed_and_a_larger_one_is():
    assert _looks(FailureEvidence(0.02, tolerance_ratio=3.0), 2.0, looks=60, seed=3).decision == "go_on"
    assert _looks(FailureEvidence(0.02, tolerance_ratio=3.0), 6.0, looks=60, seed=3).decision == "fail"


def test_a_small_difference_is_found_given_enough_traffic():
    evidence = FailureEvidence(0.02)
    for _ in range(20):
        evidence.look(11_300, 1_000_000, 100_000, 10_000_000)
    assert evidence.decision == "fail"
    assert evidence.interval[0] > 1


def test_estimate_and_interval_show_the_odds_ratio():
    evidence = _looks(FailureEvidence(0.02), 3.0, looks=60, seed=4)
    low, high = evidence.interval
    assert low < 3 < high
    assert low < evidence.estimate < high
    assert evidence.estimate == pytest.approx(3, rel=0.1)


def test_without_data_the_estimate_says_nothing():
    evidence = FailureEvidence(0.02)
    assert evidence.estimate == 1
    assert evidence.interval == (0, math.inf)
    evidence.look(0, 100, 5, 900)
    assert evidence.estimate == 0
    evidence = FailureEvidence(0.02)
    evidence.look(100, 100, 0, 100)
    assert evidence.estimate == math.inf


@pytest.mark.parametrize("odds", [0.5, 1.0, 2.5])
def test_an_end_of_the_interval_is_rarely_ever_wrong_at_any_look(odds):
    random = np.random.default_rng(5)
    rate = 0.01
    worse = odds * rate / (1 - rate + odds * rate)
    trials, low_wrong, high_wrong = 100, 0, 0
    for _ in range(trials):
        evidence = FailureEvidence(0.1)
        ends = []
        for _ in range(10):
            evidence.look(int(random.binomial(200, worse)), 200, int(random.binomial(800, rate)), 800)
            ends.append(evidence.interval)
        low_wrong += any(low > odds for low, _ in ends)
        high_wrong += any(high < odds for _, high in ends)
    assert max(low_wrong, high_wrong) <= binom.ppf(0.999, trials, 0.1)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 1), st.floats(0, 1)), max_size=5))
def test_figures_stay_finite_whatever_the_counts(looks):
    evidence = FailureEvidence(0.02)
    for canary, stable, share, other_share in looks:
        evidence.look(round(canary * share), canary, round(stable * other_share), stable)
    assert math.isfinite(evidence.log_e_value)
    assert evidence.log_e_value <= math.log(evidence.threshold) + 1e-12
    low, high = evidence.interval
    assert 0 <= low <= high
    assert not math.isnan(evidence.estimate)


@pytest.mark.parametrize(
    ("counts", "field"),
    [
        ((-1, 10, 0, 10), "canary_bad"),
        ((1, 0, 0, 10), "canary_bad"),
        ((0, 10, 11, 10), "stable_bad"),
        ((0, LARGEST_COUNT + 1, 0, 10), "canary_total"),
        ((0.5, 10, 0, 10), "canary_bad"),
        ((0, 10, 0, math.inf), "stable_total"),
    ],
)
def test_counts_that_cannot_be_are_refused_and_change_nothing(counts, field):
    evidence = FailureEvidence(0.02)
    before = evidence.to_json()
    with pytest.raises(InvalidInput) as refused:
        evidence.look(*counts)
    assert refused.value.field == field
    assert evidence.to_json() == before


@pytest.mark.parametrize(
    ("alpha", "ratio", "field"),
    [(0, 1, "alpha"), (1, 1, "alpha"), (0.02, 0, "tolerance_ratio"), (0.02, math.nan, "tolerance_ratio")],
)
def test_parameters_that_mean_nothing_are_refused(alpha, ratio, field):
    with pytest.raises(InvalidInput) as refused:
        FailureEvidence(alpha, ratio)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("counts", "burst"),
    [
        ((0, 0, 0, 0), False),
        ((9, 9, 0, 1000), False),
        ((10, 10, 0, 1000), True),
        ((300, 300, 13, 2700), True),
        ((60, 300, 13, 2700), False),
        ((270, 300, 2430, 2700), False),
        ((10, 10, 5, 10), False),
        ((40, 40, 0, 0), True),
        ((5, 40, 0, 0), False),
        ((10**6, 10**6, 0, 10**7), True),
    ],
)
def test_a_burst_is_a_massive_failure_of_the_canary_alone(counts, burst):
    assert is_burst(*counts) is burst


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 3000), st.sampled_from([0.05, 0.3, 0.9]))
def test_a_burst_is_seen_at_most_once_in_100_000_looks_of_equal_arms(canary, stable, rate):
    bad = round(rate * (canary + stable))
    tables = np.arange(max(0, bad - stable), min(canary, bad) + 1)
    seen = np.array([is_burst(int(x), canary, bad - int(x), stable) for x in tables[tables >= 10]], dtype=bool)
    chances = hypergeom(canary + stable, bad, canary).pmf(tables[tables >= 10])
    assert chances[seen].sum() <= 1.0001e-5
    assert list(seen) == sorted(seen)


@pytest.mark.parametrize(("rate", "chance"), [(0.005, 5e-19), (0.05, 3e-9)])
def test_at_ordinary_rates_the_rate_alone_hardly_ever_makes_a_burst(rate, chance):
    for total in (*range(10, 120), 300, 1000, 10_000):
        first = next((x for x in range(10, total + 1) if is_burst(x, total, 0, 0)), None)
        assert first is None or binom.sf(first - 1, total, rate) < chance
