import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ks_2samp

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.scores import ScoreEvidence, reference_shift
from modelyard.components.serving.buckets import SCORE_EDGES, bucket

BUCKETS = len(SCORE_EDGES) + 1
NOTHING = [0] * BUCKETS


def _scores(random: np.random.Generator, rows: int, log_odds: float = -4.0) -> np.ndarray:
    return np.bincount(np.searchsorted(SCORE_EDGES, 1 / (1 + np.exp(-random.normal(log_odds, 2, rows)))), minlength=BUCKETS)


def _two_points(random: np.random.Generator, rows: int, share: float) -> np.ndarray:
    counts = np.zeros(BUCKETS, dtype=np.int64)
    counts[5] = random.binomial(rows, share)
    counts[20] = rows - counts[5]
    return counts


def test_the_same_scores_are_not_failed_and_another_distribution_is():
    random = np.random.default_rng(1)
    same, other = ScoreEvidence(0.01, 0.05), ScoreEvidence(0.01, 0.05)
    for _ in range(10):
        same.look(_scores(random, 300), _scores(random, 2700))
        other.look(_scores(random, 300, -5), _scores(random, 2700))
    assert same.decision == "go_on"
    assert (other.decision, other.log_e_value) == ("fail", pytest.approx(math.log(100)))
    assert other.estimate == pytest.approx(0.197, abs=0.04)
    assert other.interval[0] > 0.05


def test_a_shift_that_the_models_have_anyway_is_allowed():
    random = np.random.default_rng(2)
    allowed = reference_shift(_scores(random, 20_000, -5), _scores(random, 20_000)) + 0.02
    evidence = ScoreEvidence(0.01, allowed)
    for _ in range(20):
        evidence.look(_scores(random, 300, -5), _scores(random, 2700))
    assert evidence.decision == "go_on"


def test_a_canary_that_says_the_same_to_everybody_is_failed_at_the_second_look():
    random = np.random.default_rng(3)
    evidence = ScoreEvidence(0.01, 0.2)
    constant = [0] * 16 + [300] + [0] * 17
    assert evidence.look(constant, _scores(random, 2700)) == "go_on"
    assert evidence.look(constant, _scores(random, 2700)) == "fail"


@pytest.mark.parametrize("allowed", [0.0, 0.1])
@pytest.mark.parametrize("stable_share", [0.02, 0.5, 0.85])
def test_at_the_very_edge_of_the_null_alarms_are_as_rare_as_promised(allowed, stable_share):
    random = np.random.default_rng(4)
    trials, failed = 40, 0
    for _ in range(trials):
        evidence = ScoreEvidence(0.1, allowed)
        for _ in range(10):
            evidence.look(_two_points(random, 100, stable_share + allowed), _two_points(random, 900, stable_share))
        failed += evidence.decision == "fail"
    assert failed <= binom.ppf(0.999, trials, 0.1)


def test_scores_that_drift_for_both_arms_while_shares_change_are_no_evidence():
    """Pooled over the looks the arms differ by far more than allowed; within each look they do not."""
    random = np.random.default_rng(5)
    evidence = ScoreEvidence(0.05, 0.1)
    for look in range(12):
        canary = 1800 if look >= 6 else 200
        log_odds = 0.0 if look >= 6 else -4.0
        evidence.look(_scores(random, canary, log_odds), _scores(random, 2000 - canary, log_odds))
    assert reference_shift(evidence.canary, evidence.stable) > 0.4
    assert evidence.estimate < 0.1
    assert evidence.decision == "go_on"


def _expected(
    past: tuple[float, float], shares: tuple[float, float], allowed: float, rows: int = 1, told: bool = True
) -> float:
    """The e-value after one more look, on average, if each request holds this many equal rows of two possible scores."""
    state = ScoreEvidence(1e-12, allowed)
    state.look(*([0] * 5 + [round(60 * seen)] + [60 - round(60 * seen)] + [0] * 27 for seen in past))
    kept, expected = state.to_json(), 0.0
    canary, stable = 4, 7
    for low in range(canary + 1):
        for low_stable in range(stable + 1):
            evidence = ScoreEvidence.from_json(kept)
            looks = [
                [0] * 5 + [rows * first] + [rows * (size - first)] + [0] * 27
                for first, size in ((low, canary), (low_stable, stable))
            ]
            evidence.look(*looks, *((canary, stable) if told else ()))
            chance = binom.pmf(low, canary, shares[0]) * binom.pmf(low_stable, stable, shares[1])
            expected += chance * math.exp(evidence.log_e_value)
    return expected


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.02, 0.98),
    st.floats(-1, 1),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([1, 3]),
)
@example(0.3, -1.0, 0.3, (0.2, 0.9), 1)
@example(0.6, 1.0, 0.3, (0.6, 0.1), 3)
def test_no_look_is_expected_to_raise_the_value_anywhere_within_the_null(share, part, allowed, past, rows):
    """By all outcomes of a look whose rows have two values, after a past that may have made any bet look good."""
    other = min(1.0, max(0.0, share + part * allowed))
    assert _expected(past, (other, share), allowed, rows) <= 1 + 1e-9


def test_rows_of_one_request_taken_for_independent_would_raise_the_value():
    assert _expected((0.9, 0.3), (0.5, 0.5), 0.0, rows=5, told=False) > 2
    assert _expected((0.9, 0.3), (0.5, 0.5), 0.0, rows=5) <= 1


def test_more_requests_than_rows_count_no_more_than_the_rows():
    random = np.random.default_rng(7)
    looks = [(_scores(random, 100, -5), _scores(random, 300)) for _ in range(3)]
    plain, many = ScoreEvidence(1e-9, 0.0), ScoreEvidence(1e-9, 0.0)
    for canary, stable in looks:
        plain.look(canary, stable)
        many.look(canary, stable, 10_000, 10_000)
    assert many.to_json() == plain.to_json()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_reference_shift_is_the_kolmogorov_smirnov_distance_of_the_buckets(first, second):
    placed = [[bucket(score, SCORE_EDGES) for score in scores] for scores in (first, second)]
    counts = [np.bincount(places, minlength=BUCKETS) for places in placed]
    assert reference_shift(*counts) == pytest.approx(ks_2samp(*placed, method="asymp").statistic, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 33), st.integers(0, 10**7), st.integers(0, 33)), max_size=6))
def test_figures_stay_finite_whatever_the_counts(looks):
    evidence = ScoreEvidence(0.01, 0.1)
    for canary, place, stable, other_place in looks:
        mine, theirs = list(NOTHING), list(NOTHING)
        mine[place], theirs[other_place] = canary, stable
        evidence.look(mine, theirs)
    assert math.isfinite(evidence.log_e_value)
    assert 0 <= evidence.interval[0] <= evidence.estimate <= evidence.interval[1] <= 1


def test_an_interval_without_data_is_everything():
    assert ScoreEvidence(0.01, 0.1).interval == (0, 1)


def test_a_reference_without_rows_is_refused():
    with pytest.raises(InvalidInput, match="reference_b"):
        reference_shift([1] * BUCKETS, NOTHING)


@pytest.mark.parametrize("shift", [-0.1, 1.1, math.nan])
def test_a_shift_that_is_no_distance_is_refused(shift):
    with pytest.raises(InvalidInput, match="allowed_shift"):
        ScoreEvidence(0.01, shift)


_few_scores = st.tuples(st.sampled_from([0, 16, 33]), st.sampled_from([0, 16, 33]), st.sampled_from([1, 2, 1000, 10**8]))


@settings(max_examples=60)
@given(st.lists(st.tuples(_few_scores, _few_scores), min_size=2, max_size=12), st.sampled_from([0.0, 1e-12, 0.1, 0.9, 1.0]))
@example([((0, 33, 1), (0, 33, 1))] * 2, 1.0)
@example([((0, 0, 1), (0, 33, 1))] * 12, 0.9)
def test_no_look_divides_by_nothing_however_far_apart_scores_may_be(looks, allowed):
    evidence = ScoreEvidence(0.01, allowed)
    with np.errstate(divide="raise", invalid="raise"):
        for arms in looks:
            evidence.look(*(np.bincount([low, high], [rows, 1], BUCKETS).astype(np.int64) for low, high, rows in arms))
    assert math.isfinite(evidence.log_e_value)
