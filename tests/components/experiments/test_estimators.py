import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from modelyard.components.evaluation.bootstrap import Rows, Scores, replicates
from modelyard.components.evaluation.metrics import Terms, average_precision, curve
from modelyard.components.experiments.estimators import (
    Estimated,
    average_precision_influence,
    difference,
    expected_cost,
    pr_auc,
    ranked_rows,
    score_shares,
)
from modelyard.components.serving.buckets import SCORE_EDGES
from tests.components.experiments.simulated_traffic import THRESHOLD, Requests, arm, divided, requests

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6).map(lambda step: step / 6)), min_size=2, max_size=30)


def ranked(rows):
    labels, scores = (np.array(column) for column in zip(*rows))
    return ranked_rows(scores, labels, scores > 0.5, np.arange(len(rows)), np.zeros(len(rows), int))


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_average_precision_is_scikit_learns_and_evaluations_equal_scores_too(rows):
    found = ranked(rows)
    assume(found.positives)
    value = float(pr_auc(found).value)
    assert value == pytest.approx(average_precision_score(found.labels, found.scores))
    assert value == pytest.approx(average_precision(curve(found.labels, found.scores)))


@given(rows=ROWS, at=st.integers(0, 29))
@settings(max_examples=100, deadline=None)
def test_a_rows_influence_is_the_derivative_of_average_precision_by_its_weight(rows, at):
    found = ranked(rows)
    assume(found.positives)
    at %= found.rows
    _, influence = average_precision_influence(found.labels, found.scores)
    weights = np.ones(found.rows)
    values = []
    for step in (1e-5, -1e-5):
        weights[at] = 1 + step
        values.append(average_precision_score(found.labels, found.scores, sample_weight=weights))
    assert influence[at] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)
    assert influence.sum() == pytest.approx(0, abs=1e-9)


def test_without_positives_average_precision_is_undefined():
    assert math.isnan(pr_auc(ranked([(False, 0.1), (False, 0.2)])).value)


@pytest.fixture(scope="module")
def clustered():
    """Many alike rows of each customer, so that rows taken for independent would be far off."""
    return arm(requests(np.random.default_rng(3), 500, rows_per_key=12, rate=0.1, alike=1.5), looks=1)


def test_standard_errors_are_those_of_a_bootstrap_of_whole_customers(clustered):
    rows = Rows(clustered.labels, clustered.keys)
    drawn = replicates(
        rows,
        [Scores(clustered.scores, THRESHOLD)],
        Terms(false_positive_cost=1, false_negative_cost=10),
        draws=1000,
        metrics=("pr_auc", "expected_cost"),
    )[0]
    found, cost = pr_auc(clustered), expected_cost(clustered, 1, 10)
    assert math.sqrt(found.variance) == pytest.approx(drawn["pr_auc"].std(), rel=0.12)
    assert math.sqrt(cost.variance) == pytest.approx(drawn["expected_cost"].std(), rel=0.12)
    independent = ranked_rows(
        clustered.scores, clustered.labels, clustered.decisions, np.arange(clustered.rows), clustered.looks
    )
    assert math.sqrt(pr_auc(independent).variance) < 0.75 * math.sqrt(found.variance)


def test_cost_and_shares_are_what_counting_gives(clustered):
    cost = np.where(clustered.labels, 10 * ~clustered.decisions, 1 * clustered.decisions)
    assert expected_cost(clustered, 1, 10).value == pytest.approx(cost.mean())
    shares = score_shares(clustered)[0].value
    assert shares == pytest.approx([(clustered.scores <= edge).mean() for edge in SCORE_EDGES])
    rests_on = score_shares(clustered)[1]
    for edge, keys in zip(SCORE_EDGES, rests_on):
        at_most = clustered.scores <= edge
        assert keys == min(len(set(clustered.keys[at_most])), len(set(clustered.keys[~at_most])))


def test_standard_errors_of_shares_are_those_of_resampled_customers(clustered):
    generator = np.random.default_rng(0)
    edge = len(SCORE_EDGES) // 2 - 3
    at_most = np.bincount(clustered.keys, clustered.scores <= SCORE_EDGES[edge])
    rows = np.bincount(clustered.keys)
    chosen = generator.integers(0, len(rows), (2000, len(rows)))
    drawn = at_most[chosen].sum(axis=1) / rows[chosen].sum(axis=1)
    assert math.sqrt(score_shares(clustered)[0].variance[edge]) == pytest.approx(drawn.std(), rel=0.1)


def test_a_look_sees_what_came_before_it_and_the_last_one_everything(clustered):
    found = arm(requests(np.random.default_rng(1), 100), looks=10)
    seen = [found.until(look).rows for look in range(10)]
    assert seen == sorted(seen)
    assert seen[-1] == found.rows
    early = found.until(3)
    assert (early.looks <= 3).all()
    assert (np.diff(early.scores) <= 0).all()


def test_a_difference_rests_on_as_few_keys_as_send_most_of_the_requests():
    generator = np.random.default_rng(2)

    def made(rows_of_each, first):
        keys = first + np.repeat(np.arange(len(rows_of_each)), rows_of_each)
        scores, labels = generator.random(len(keys)), generator.random(len(keys)) < 0.3
        return ranked_rows(scores, labels, scores > 0.5, keys, np.zeros(len(keys), int))

    alike, other = made([5] * 200, 0), made([5] * 200, 200)
    for estimate in (pr_auc, lambda arm: expected_cost(arm, 1, 10)):
        assert 50 < difference(estimate(alike), estimate(other)).carrying_keys <= 400

    def carried(control, trial, first=100):
        estimates = (
            Estimated(np.float64(0), start + np.arange(len(each)), np.array(each, float))
            for start, each in ((0, control), (first, trial))
        )
        return difference(*estimates).carrying_keys

    assert carried([1, -1, 1, -1], [1, 1, -1, -1]) == 8
    assert carried([1, 10, 0], [10, -1, 1]) < 2.1
    assert carried([0, 0], [0, 0]) == 0
    # Of keys that both arms have, only what they do to the difference counts.
    assert carried([3, -3, 1, -1], [3, -3, -1, 1], first=0) == 2


@pytest.fixture(scope="module")
def shared_customers():
    """Alike rows of each customer, a third of them answered by the trial: the customers meet both versions."""
    generator = np.random.default_rng(11)
    found = requests(generator, 500, rows_per_key=12, rate=0.15, alike=1.5)
    return found, generator.random(len(found.keys)) < 1 / 3


@pytest.mark.parametrize(
    "estimate",
    [pr_auc, lambda arm: expected_cost(arm, 1, 10), lambda arm: score_shares(arm)[0]],
    ids=["pr_auc", "cost", "shares"],
)
def test_a_differences_error_is_that_of_resampled_customers_who_meet_both_versions(shared_customers, estimate):
    found, in_trial = shared_customers
    control, trial = (estimate(arm(part, 1)) for part in divided(found, in_trial))
    error = np.sqrt(difference(control, trial).variance)
    generator = np.random.default_rng(0)
    rows_of = [np.flatnonzero(found.keys == key) for key in range(500)]
    drawn = []
    for _ in range(250):
        rows = np.concatenate([rows_of[key] for key in generator.integers(0, 500, 500)])
        resampled = Requests(*(column[rows] for column in (found.keys, found.moments, found.labels, found.scores)))
        one, other = (estimate(arm(part, 1)).value for part in divided(resampled, in_trial[rows]))
        drawn.append(other - one)
    spread = np.std(drawn, axis=0)
    where = np.asarray(spread) > 0.003
    assert where.any()
    np.testing.assert_allclose(error[where], spread[where], rtol=0.2)
    # Taken for strangers to each other, the arms would seem to differ by chance far more than they do.
    assert (np.sqrt(control.variance + trial.variance)[where] / error[where]).max() > 1.15


def test_arms_without_a_key_in_common_are_independent(clustered):
    other = arm(requests(np.random.default_rng(4), 300), looks=1)
    apart = ranked_rows(other.scores, other.labels, other.decisions, other.keys + 10_000, other.looks)
    one, two = pr_auc(clustered), pr_auc(apart)
    assert difference(one, two).variance == pytest.approx(one.variance + two.variance)
    assert difference(one, one).variance == pytest.approx(0, abs=1e-15)
