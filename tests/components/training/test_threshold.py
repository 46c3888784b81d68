import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.training.threshold import cheapest_threshold

costs = st.floats(0.01, 100)
rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.50001, 0.9, 1.0])), min_size=1, max_size=40
)


def _cost(labels, scores, threshold, missed, flagged):
    decided = scores >= threshold
    return missed * np.sum(~decided & (labels == 1)) + flagged * np.sum(decided & (labels == 0))


@given(rows, costs, costs)
def test_no_other_threshold_costs_less(drawn, missed, flagged):
    labels, scores = np.array([row[0] for row in drawn]), np.array([row[1] for row in drawn])
    threshold = cheapest_threshold(labels, scores, missed, flagged)
    best = min(_cost(labels, scores, other, missed, flagged) for other in [0.0, *(scores + 1e-9), 2.0])
    assert _cost(labels, scores, threshold, missed, flagged) <= best + 1e-9 * max(1, best)


@given(rows, costs, costs)
def test_no_score_that_occurs_lies_on_the_threshold_where_two_differ(drawn, missed, flagged):
    labels, scores = np.array([row[0] for row in drawn]), np.array([row[1] for row in drawn])
    threshold = cheapest_threshold(labels, scores, missed, flagged)
    assert threshold in (0.0, 1.0) or threshold not in scores


def test_a_dearer_miss_flags_more_rows():
    random = np.random.default_rng(0)
    scores = random.random(2000)
    labels = (random.random(2000) < scores**3).astype(int)
    thresholds = [cheapest_threshold(labels, scores, missed, 1.0) for missed in (1, 5, 25)]
    assert thresholds[0] > thresholds[1] > thresholds[2]


def test_nothing_is_flagged_where_flagging_never_pays():
    labels, scores = np.array([0, 0, 1]), np.array([0.9, 1.0, 0.1])
    assert not (scores >= cheapest_threshold(labels, scores, 1.0, 50.0)).any()
