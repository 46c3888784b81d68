import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES, bucket
from modelyard.components.serving.local.metrics import read_metrics

_LABELS = ["model", "version"]


def exposed(latencies, scores, flagged, in_flight, edges=LATENCY_EDGES):
    """What a predictor's Prometheus client writes."""
    registry = CollectorRegistry()
    labels = ("fraud", 'a "odd" version, le="7"')
    seconds = Histogram("modelyard_request_seconds", "…", _LABELS, buckets=edges, registry=registry).labels(*labels)
    scored = Histogram("modelyard_scores", "…", _LABELS, buckets=SCORE_EDGES, registry=registry).labels(*labels)
    decisions = Counter("modelyard_decisions", "…", [*_LABELS, "decision"], registry=registry)
    Gauge("modelyard_requests_in_flight", "…", _LABELS, registry=registry).labels(*labels).set(in_flight)
    for value in latencies:
        seconds.observe(value)
    for value in scores:
        scored.observe(value)
    decisions.labels(*labels, "1").inc(flagged)
    decisions.labels(*labels, "0").inc(3)
    return generate_latest(registry).decode()


@given(
    st.lists(st.floats(0, 30) | st.sampled_from(LATENCY_EDGES), max_size=20),
    st.lists(st.floats(0, 1) | st.sampled_from(SCORE_EDGES), max_size=20),
    st.integers(0, 10**9),
    st.integers(0, 100),
)
def test_counts_come_out_in_the_buckets_they_went_into(latencies, scores, flagged, in_flight):
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
    with pytest.raises(ValueError, match="other buckets"):
        read_metrics(exposed([0.1], [], 0, 0, edges=(0.1, 1)))
