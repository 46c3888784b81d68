import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as oracle

from modelyard.components.evaluation import metrics
from modelyard.components.evaluation.metrics import Terms, card_days, card_precision, curve, measure

# Few distinct scores, so that most rows tie with others; weights are a bootstrap's.
TIED = (
    st.integers(2, 60)
    .flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.bool_, rows),
            hnp.arrays(np.int64, rows, elements=st.integers(0, 8)).map(lambda grid: grid / 8),
            hnp.arrays(np.int64, rows, elements=st.integers(0, 3)).map(lambda weights: weights.astype(np.float64)),
        )
    )
    .filter(lambda drawn: (drawn[2] * drawn[0]).sum() > 0 and (drawn[2] * ~drawn[0]).sum() > 0)
)


@settings(max_examples=100, deadline=None)
@given(TIED, st.permutations(range(60)))
def test_ranking_and_calibration_agree_with_scikit_learn_under_ties_and_weights(drawn, order):
    labels, scores, weights = drawn
    found = measure(labels, scores, 0.5, Terms(precision=0.5), weights=weights)

    assert found["pr_auc"] == pytest.approx(oracle.average_precision_score(labels, scores, sample_weight=weights))
    assert found["roc_auc"] == pytest.approx(oracle.roc_auc_score(labels, scores, sample_weight=weights))
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(labels, scores, sample_weight=weights))
    assert found["log_loss"] == pytest.approx(oracle.log_loss(labels, scores, sample_weight=weights))
    precision, recall, _, _ = oracle.precision_recall_fscore_support(
        labels, scores >= 0.5, sample_weight=weights, average="binary", zero_division=math.nan
    )
    f1 = oracle.f1_score(labels, scores >= 0.5, sample_weight=weights, zero_division=math.nan)
    assert found["precision"] == pytest.approx(precision, nan_ok=True)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(f1)

    shuffled = np.array([position for position in order if position < len(labels)])
    again = measure(labels[shuffled], scores[shuffled], 0.5, Terms(precision=0.5), weights=weights[shuffled])
    assert again == pytest.approx(found, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(TIED)
def test_integer_weights_count_like_repeated_rows(drawn):
    labels, scores, weights = drawn
    repeated = np.repeat(np.arange(len(labels)), weights.astype(int))

    weighted = measure(labels, scores, 0.4, Terms(precision=0.6), weights=weights)
    plain = measure(labels[repeated], scores[repeated], 0.4, Terms(precision=0.6))

    assert weighted == pytest.approx(plain, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(TIED, st.floats(0.05, 1.0))
def test_recall_at_precision_is_the_best_that_any_threshold_gives(drawn, precision):
    labels, scores, weights = drawn
    best = 0.0
    for threshold in np.unique(scores):
        tp, fp, fn, _ = metrics.decisions(labels, scores, threshold, weights)
        if tp + fp > 0 and tp / (tp + fp) >= precision:
            best = max(best, tp / (tp + fn))

    assert metrics.recall_at_precision(curve(labels, scores, weights), precision) == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(TIED)
def test_no_threshold_is_cheaper_than_the_cheapest(drawn):
    labels, scores, _ = drawn
    terms = Terms(false_positive_cost=2.0, false_negative_cost=7.0)
    threshold, cost = metrics.cheapest_threshold(curve(labels, scores), terms)

    for tried in [*np.unique(scores), math.inf, threshold]:
        _, fp, fn, _ = metrics.decisions(labels, scores, tried)
        found = (2.0 * fp + 7.0 * fn) / len(labels)
        assert cost <= found + 1e-12
        if tried == threshold:
            assert found == pytest.approx(cost)


def test_calibration_error_is_the_mean_gap_over_equal_bins():
    scores = np.array([0.02, 0.02, 0.5, 0.5, 1.0])
    labels = np.array([False, True, True, True, True])

    # Gaps: |1 - 0.04| and |2 - 1| and |1 - 1|, over five rows.
    assert metrics.expected_calibration_error(labels, scores) == pytest.approx((0.96 + 1.0 + 0.0) / 5)


def test_without_positives_negatives_or_rows_nothing_flatters():
    scores = np.array([0.1, 0.9])
    for labels in (np.zeros(2, bool), np.ones(2, bool)):
        assert math.isnan(measure(labels, scores, 0.5, Terms())["roc_auc"])
    assert math.isnan(measure(np.zeros(2, bool), scores, 0.5, Terms())["pr_auc"])
    nothing = measure(np.empty(0, bool), np.empty(0), 0.5, Terms(), ranked_cards=_ranked([], [], [], []))
    assert all(math.isnan(value) for value in nothing.values())
    assert set(nothing) == set(metrics.METRICS)


def _ranked(labels, scores, cards, days):
    return card_days(np.array(labels, bool), np.array(scores, float), np.array(cards, int), np.array(days, int))


def test_card_precision_counts_cards_not_rows_and_takes_found_cards_out_of_later_days():
    ranked = _ranked(
        #       day 0: card 1 twice, card 2, card 3      day 1: card 1 again (found on day 0), cards 2, 3
        labels=[1, 0, 0, 0, 1, 0, 1],
        scores=[0.9, 0.95, 0.8, 0.1, 0.99, 0.7, 0.6],
        cards=[1, 1, 2, 3, 1, 2, 3],
        days=[0, 0, 0, 0, 1, 1, 1],
    )

    # Day 0: cards 1 and 2 are checked, 1 is fraudulent. Day 1: card 1 is blocked; 2 and 3 are checked, 3 is fraudulent.
    assert card_precision(ranked, 2) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert card_precision(ranked, 1) == pytest.approx((1 + 0) / 2)


def test_card_precision_never_gains_from_ties():
    ranked = _ranked(labels=[1, 0, 0], scores=[0.5, 0.5, 0.5], cards=[1, 2, 3], days=[0, 0, 0])

    assert card_precision(ranked, 1) == 0.0
    assert card_precision(ranked, 2) == 0.0
    assert card_precision(ranked, 3) == pytest.approx(1 / 3)


def test_card_precision_does_not_depend_on_the_order_of_the_rows():
    random = np.random.default_rng(0)
    labels, scores = random.random(300) < 0.2, np.round(random.random(300), 1)
    cards, days = random.integers(0, 40, 300), random.integers(0, 5, 300)
    order = random.permutation(300)

    first = card_precision(card_days(labels, scores, cards, days), 7)
    assert card_precision(card_days(labels[order], scores[order], cards[order], days[order]), 7) == first
