import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from modelyard.components.rollout.evidence import FAILED, LATENCY, REJECTED, SCORES, Evidence, shift_between
from modelyard.components.rollout.increments import Increment
from modelyard.components.rollout.plan import Limits
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES


def arm(generator, requests=400, *, failing=0.01, rejecting=0.01, seconds=0.004, score=-3.0) -> Increment:
    failed, rejected, answered = generator.multinomial(requests, [failing, rejecting, 1 - failing - rejecting])
    latency = np.searchsorted(LATENCY_EDGES, seconds * np.exp(generator.normal(0, 0.3, requests)))
    scores = np.searchsorted(SCORE_EDGES, 1 / (1 + np.exp(-generator.normal(score, 1, answered))))
    return Increment(
        int(answered),
        int(rejected),
        int(failed),
        tuple(np.bincount(latency, minlength=len(LATENCY_EDGES) + 1).tolist()),
        tuple(np.bincount(scores, minlength=len(SCORE_EDGES) + 1).tolist()),
    )


def test_the_tests_together_spend_no_more_than_alpha():
    evidence = Evidence(Limits(alpha=0.05), 0.0, {})
    assert sum(1 / test.threshold for test in evidence.tests.values()) == pytest.approx(0.05)
    assert 1 / evidence.tests[FAILED].threshold == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"failing": 0.2}, FAILED, "Failed requests: "),
        ({"rejecting": 0.2}, REJECTED, "Rejected requests: "),
        ({"seconds": 0.05}, LATENCY, "at the 95th percentile"),
        ({"score": 0.0}, SCORES, "from the stable version's, allowed are 0.1"),
    ],
)
def test_each_difference_is_found_by_its_own_test_and_put_in_words(change, name, words):
    generator = np.random.default_rng(1)
    evidence = Evidence(Limits(), 0.0, {})
    for _ in range(30):
        evidence.look(arm(generator, **change), arm(generator))
    assert [found for found, test in evidence.tests.items() if test.decision == "fail"] == [name]
    (fault,) = evidence.faults
    assert words in fault


def test_what_was_written_down_goes_on_exactly():
    generator = np.random.default_rng(2)
    looks = [(arm(generator, failing=0.02), arm(generator)) for _ in range(6)]
    whole, half = Evidence(Limits(), 0.05, {}), Evidence(Limits(), 0.05, {})
    for canary, stable in looks:
        whole.look(canary, stable)
    for canary, stable in looks[:3]:
        half.look(canary, stable)
    # What the reference samples say has no say any more: the allowed shift is what it was at the start.
    half = Evidence(Limits(), 0.5, json.loads(json.dumps(half.to_json(), allow_nan=False)))
    for canary, stable in looks[3:]:
        half.look(canary, stable)
    assert half.log_e_values == whole.log_e_values
    assert half.allowed_shift == whole.allowed_shift == pytest.approx(0.15)


def test_scores_may_differ_as_the_models_reference_samples_do(tmp_path):
    generator = np.random.default_rng(3)
    for name, score in (("one", -3.0), ("other", -1.5)):
        (tmp_path / name).mkdir()
        scores = 1 / (1 + np.exp(-generator.normal(score, 1, 4000)))
        pl.DataFrame({"score": scores}).write_parquet(tmp_path / name / "reference.parquet")
    apart = shift_between(tmp_path / "one", tmp_path / "other")
    assert 0.4 < apart < 0.65
    assert shift_between(tmp_path / "one", tmp_path / "one") == 0
    allowing, strict = Evidence(Limits(), apart, {}), Evidence(Limits(), 0.0, {})
    for _ in range(10):
        canary, stable = arm(generator, score=-1.5), arm(generator)
        allowing.look(canary, stable)
        strict.look(canary, stable)
    assert not allowing.faults
    assert strict.faults


def test_a_model_without_a_reference_sample_is_taken_to_score_alike(tmp_path):
    assert shift_between(tmp_path, tmp_path) == 0


def test_nothing_speaks_against_a_canary_that_nobody_asked():
    evidence = Evidence(Limits(), 0.0, {})
    for _ in range(5):
        evidence.look(Increment(), replace(Increment(), answered=100, failed=50))
        evidence.look(Increment(), Increment())
    assert not evidence.faults
    assert set(evidence.log_e_values.values()) == {0.0}
