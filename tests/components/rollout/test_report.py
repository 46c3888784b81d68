import json
import math

import pytest

from modelyard.components.rollout.record import Progress
from modelyard.components.rollout.report import render_report, timeline_of
from tests.components.evaluation.pages import assert_self_contained
from tests.components.rollout.conftest import PLAN
from tests.support.simulated_target import Behaviour

TESTS = ["Failed requests", "Rejected requests", "Latency", "Scores"]


def test_the_page_of_a_promotion_has_every_part(trial):
    done = trial().run(shadow_seconds=60)
    page = assert_self_contained(render_report("cards <i>&", done))
    assert page.texts["h1"] == ["cards <i>&"]
    assert page.texts["h2"] == [
        "What was rolled out",
        "Evidence",
        "Both versions over time",
        "Steps",
        "In all",
        "What happened",
    ]
    assert page.texts["h3"] == [
        *TESTS,
        "Share of the traffic",
        "Requests",
        "Failed requests",
        "Rejected requests",
        "Latency, p50",
        "Latency, p95",
        "Latency, p99",
        "Scores",
    ]
    assert page.tags.count("svg") == len(page.texts["h3"])
    assert page.texts["span"].count("passed") == 5
    assert page.texts["span"].count("nothing against it") == 4
    assert "Boundary, 50" in page.texts["text"]
    assert any("Promoted" in text for text in page.texts["p"])
    assert any("wide buckets (Knative, Istio)" in text and "the ratio reads low" in text for text in page.texts["p"])


def test_the_page_of_a_rollback_says_what_spoke_against_it(trial):
    done = trial({"3": Behaviour(failing=0.05)}).run()
    page = assert_self_contained(render_report("fraud", done))
    assert page.texts["span"][0] == "fail"
    assert "against it" in page.texts["span"]
    assert page.texts["li"] == done.reasons
    assert any("The canary was taken away." in text for text in page.texts["td"])


@pytest.mark.parametrize(
    ("behaviour", "serving"), [(Behaviour(refusal="it is not signed"), "1"), (Behaviour(golden_fault="other scores"), "1")]
)
def test_a_version_that_never_had_traffic_has_a_page_with_the_reason(trial, behaviour, serving):
    done = trial({"3": behaviour}, serving=serving).run()
    page = assert_self_contained(render_report("fraud", done))
    assert page.texts["h2"] == ["What was rolled out", "What happened"]
    assert (behaviour.refusal or behaviour.golden_fault) in page.texts["li"][0]


def test_without_any_traffic_there_is_a_page_too(trial):
    done = trial(serving="", rate=0.0).run("1")
    assert_self_contained(render_report("fraud", done))
    json.dumps(timeline_of("fraud", done), allow_nan=False)


def test_the_timeline_says_what_was_seen_and_can_be_read_anywhere(trial):
    done = trial().run()
    content = json.loads(json.dumps(timeline_of("fraud", done), allow_nan=False))
    assert (content["decision"], content["outcome"], content["version"], content["replaces"]["version"]) == (
        "pass",
        "promoted",
        "3",
        "1",
    )
    assert content["plan"]["percents"] == PLAN["steps"]
    for arm in ("stable", "canary"):
        assert sum(look[arm]["answered"] for look in content["looks"]) == content["totals"][arm]["answered"] > 0
    assert set(content["tests"]) == {"failed", "rejected", "latency", "scores"}
    assert content["tests"]["failed"]["e_value"] == pytest.approx(math.exp(content["looks"][-1]["log_e"]["failed"]), rel=1e-4)


def test_a_rollout_that_went_on_from_its_record_is_reported_as_one_that_was_not_stopped(trial):
    done = trial().run()
    again = Progress(**json.loads(json.dumps(vars(done))))
    assert json.dumps(timeline_of("fraud", again)) == json.dumps(timeline_of("fraud", done))
