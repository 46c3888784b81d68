import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.predictor.metrics import Metrics
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES, bucket
from modelyard.components.serving.local.metrics import read_metrics


def exposed(latencies, scores, flagged, in_flight):
    """What a predictor writes that has done this much."""
    metrics = Metrics("fraud", 'a "odd" version, le="7"', "blake3:0")
    metrics.in_flight = in_flight
    for seconds in latencies:
        metrics.count_request(200, seconds)
    decisions = np.zeros(len(scores), int)
    decisions[:flagged] = 1
    metrics.count_rows(np.array(scores), decisions)
    return metrics.exposition().decode()


@given(
    st.lists(st.floats(0, 30) | st.sampled_from(LATENCY_EDGES), max_size=20),
    st.lists(st.floats(0, 1) | st.sampled_from(SCORE_EDGES), max_size=20),
    st.integers(0, 20),
    st.integers(0, 100),
)
def test_counts_come_out_in_the_buckets_they_went_into(latencies, scores, flagged, in_flight):
    flagged = min(flagged, len(scores))
    found = read_metrics(exposed(latencies, scores, flagged, in_flight))
    assert (found.flagged, found.in_flight) == (flagged, in_flight)
    for values, edges, counted in ((latencies, LATENCY_EDGES, found.latency), (scores, SCORE_EDGES, found.scores)):
        expected = np.bincount([bucket(value, edges) for value in values], minlength=len(edges) + 1)
        assert counted == tuple(expected)


def test_a_predictor_that_has_counted_nothing_yet_has_zeros():
    found = read_metrics("# HELP python_info\npython_info 1\n")
    assert (sum(found.latency), sum(found.scores), found.flagged, found.in_flight) == (0, 0, 0, 0)
    assert (len(found.latency), len(found.scores)) == (len(LATENCY_EDGES) + 1, len(SCORE_EDGES) + 1)


def test_other_buckets_are_refused():
    text = exposed([0.1], [], 0, 0).replace('le="0.001"', 'le="0.0011"')
    with pytest.raises(ValueError, match="other buckets"):
        read_metrics(text)
