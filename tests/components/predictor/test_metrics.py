import json
import time
from bisect import bisect_left

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from modelyard.components.predictor.metrics import Metrics
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES, bucket
from tests.components.predictor.processes import call


def _samples(text):
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return families, {
        (
            sample.name,
            *(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name not in ("model", "version")),
        ): sample.value
        for family in families.values()
        for sample in family.samples
    }


def _buckets(samples, name, edges):
    """Counts by bucket, as a rollout reads them."""
    found = {key[1].removeprefix("le="): value for key, value in samples.items() if key[0] == f"{name}_bucket"}
    cumulative = [value for _, value in sorted(found.items(), key=lambda entry: float(entry[0]))]
    assert [float(edge) for edge in sorted(found, key=float)][:-1] == list(edges)
    return np.diff(cumulative, prepend=0).tolist()


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 1) | st.sampled_from(SCORE_EDGES), min_size=1, max_size=40), max_size=4))
def test_scores_are_counted_in_the_buckets_that_a_rollout_compares(requests):
    metrics = Metrics("fraud", "1", "blake3:ab")
    for scores in requests:
        metrics.count_rows(np.array(scores), (np.array(scores) >= 0.5).astype(np.int32))
    _, samples = _samples(metrics.exposition().decode())
    expected = [0] * (len(SCORE_EDGES) + 1)
    for score in (score for scores in requests for score in scores):
        expected[bucket(score, SCORE_EDGES)] += 1
    assert _buckets(samples, "modelyard_scores", SCORE_EDGES) == expected
    flagged = sum(score >= 0.5 for scores in requests for score in scores)
    assert samples["modelyard_decisions_total", "decision=1"] == flagged
    assert samples["modelyard_decisions_total", "decision=0"] == sum(map(len, requests)) - flagged


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([200, 400, 500]), st.floats(0, 40) | st.sampled_from(LATENCY_EDGES)), max_size=10))
def test_requests_are_counted_by_status_and_time(requests):
    metrics = Metrics("fraud", "1", "blake3:ab")
    for status, seconds in requests:
        metrics.count_request(status, seconds)
    _, samples = _samples(metrics.exposition().decode())
    expected = [0] * (len(LATENCY_EDGES) + 1)
    for _, seconds in requests:
        expected[bisect_left(LATENCY_EDGES, seconds)] += 1
    assert _buckets(samples, "modelyard_request_seconds", LATENCY_EDGES) == expected
    for status in (200, 400, 500):
        count = sum(found == status for found, _ in requests)
        assert samples.get(("modelyard_requests_total", f"status={status}"), 0) == count


def test_the_counts_are_right_after_known_traffic(make_app, load):
    app = make_app()
    kind = {"Content-Type": "application/json"}
    rows = [[position / 10, 1] for position in range(30)]
    for table in ([rows[0]], rows[1:12], rows[12:]):
        assert call(app, "POST", "/v1/models/fraud:predict", json.dumps({"instances": table}).encode(), kind).status == 200
    assert call(app, "POST", "/v1/models/fraud:predict", b"{", kind).status == 400
    assert call(app, "PUT", "/v1/models/fraud:predict", b"{", kind).status == 405
    assert call(app, "POST", "/v2/models/spam/infer", b"{}", kind).status == 404
    for path in ("/v2/health/ready", "/metrics", "/nowhere"):
        call(app, "GET", path)
    reply = call(app, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families, samples = _samples(reply.body.decode())
    scores = load("first").loaded.scorer.score_matrix(np.array(rows, np.float32))
    assert {key: value for key, value in samples.items() if key[0] == "modelyard_requests_total"} == {
        ("modelyard_requests_total", "status=200"): 3, ("modelyard_requests_total", "status=400"): 1,
        ("modelyard_requests_total", "status=404"): 1, ("modelyard_requests_total", "status=405"): 1,
    }  # fmt: skip
    assert samples["modelyard_request_seconds_count",] == 6
    assert samples["modelyard_scores_count",] == 30
    np.testing.assert_allclose(samples["modelyard_scores_sum",], scores.sum())
    assert samples["modelyard_decisions_total", "decision=1"] == (scores >= 0.5).sum()
    assert samples["modelyard_requests_in_flight",] == 0
    assert 0 < samples["modelyard_counting_since_seconds",] <= time.time()
    assert samples["modelyard_model_info", f"digest={load('first').loaded.digest}"] == 1
    assert samples["modelyard_reload_failures_total",] == 0
    assert samples["modelyard_prediction_log_rows_total", "outcome=written"] == 0
    for name, family in families.items():
        if name.startswith("modelyard"):
            assert all((sample.labels["model"], sample.labels["version"]) == ("fraud", "7") for sample in family.samples)
