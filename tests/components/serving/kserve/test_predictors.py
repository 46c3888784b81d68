"""The objects that are written, checked against KServe's schemas, and against what KServe merges of two predictors."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.serving.kserve.placement import Placement, parse_placement
from modelyard.components.serving.kserve.predictors import (
    beside_trial,
    build_predictor,
    canary_replicas,
    inference_service,
    inherit,
    on_trial,
)
from modelyard.components.serving.target import ServedModel
from modelyard.components.signing.provenance import Provenance
from tests.support.fake_cluster import schemas
from tests.support.fake_cluster.admission import refusal
from tests.support.fake_cluster.predictors import merged_predictor

_RUNTIMES = Path(__file__).parents[4] / "manifests" / "components" / "serving"
_SCALING = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "autoScaling")
_SERVINGS = st.fixed_dictionaries(
    {},
    optional={
        "runtime": st.sampled_from(["predictor", "triton"]),
        "cpu": st.sampled_from(["1", "500m"]),
        "memory": st.sampled_from(["1Gi", "2Gi"]),
        "gpus": st.integers(0, 2),
        "min_replicas": st.integers(1, 4),
        "node_selector": st.dictionaries(st.sampled_from(["disk", "zone"]), st.sampled_from(["a", "b"])),
        "tolerations": st.lists(st.just({"key": "gpu", "operator": "Exists"}), max_size=1),
        "spot": st.booleans(),
        "service_account": st.sampled_from(["fetcher", "other"]),
        "timeout_seconds": st.integers(1, 60),
    },
)
_SCALINGS = st.sampled_from(
    [
        {},
        {"autoscaler": "hpa", "max_replicas": 8},
        {"autoscaler": "hpa", "max_replicas": 8, "scale_metric": "memory", "scale_target": 60},
        {"autoscaler": "keda", "max_replicas": 8, "scale_metric": "memory", "scale_target": 60},
        {"autoscaler": "keda", "max_replicas": 8},
    ]
)


def _build(version: str, placement: Placement, mode: str = "standard", **provenance: str) -> dict[str, Any]:
    digest = f"blake3:{version * 64}"
    said = {"run_id": "0d4f", "signer": "SHA256:abc", "code_revision": "4c1f", **provenance}
    facts = Provenance("fraud", digest, said["run_id"], "", said["code_revision"], "1", "key", said["signer"], "", {})
    return build_predictor(placement, mode, "fraud", ServedModel(version, digest, f"s3://models/fraud/{version * 64}"), facts)


def _check(service: dict[str, Any]) -> None:
    schema = schemas.definitions().get("InferenceService", {})
    assert schemas.unknown_fields(service, schema) == []
    assert list(schemas.violations(service, schema)) == []
    assert refusal(service, None) == ""


@given(_SERVINGS, _SCALINGS, _SERVINGS, _SCALINGS, st.integers(0, 100))
def test_every_service_of_standard_mode_is_valid_and_a_promotion_changes_no_pod(before, scaled, after, scaled_after, percent):
    stable = _build("1", parse_placement({**before, **scaled}))
    canary = inherit(stable, _build("2", parse_placement({**after, **scaled_after})))
    replicas = canary_replicas(max(stable["minReplicas"], canary["minReplicas"]), percent)
    trial = on_trial(canary, replicas)
    _check(inference_service("fraud", "models", "standard", "fraud", stable))
    _check(
        inference_service(
            "fraud", "models", "standard", "fraud", beside_trial(stable, replicas, replicas), canary=trial, percent=percent
        )
    )
    _check(inference_service("fraud", "models", "standard", "fraud", canary))
    run = merged_predictor(beside_trial(stable, replicas, replicas), trial, replicas)
    promoted = {name: value for name, value in canary.items() if name not in _SCALING}
    del run["minReplicas"], run["model"]["name"]
    if scaled_after.get("autoscaler") == "keda":
        # KEDA takes no trial: the promoted version gets it, and its pods are replaced one by one.
        assert run["annotations"].pop("serving.kserve.io/autoscalerClass") == "none"
        assert promoted["annotations"].pop("serving.kserve.io/autoscalerClass") == "keda"
    assert run == promoted


@given(_SERVINGS, st.sampled_from([{}, {"scale_metric": "rps", "scale_target": 100, "max_replicas": 9}]), st.integers(0, 100))
def test_every_service_of_knative_mode_is_valid(serving, scaled, percent):
    predictor = _build("1", parse_placement({**serving, **scaled, "mode": "knative"}), "knative")
    service = inference_service("fraud", "models", "knative", "fraud", predictor, percent=percent)
    _check(service)
    assert service["spec"]["predictor"]["canaryTrafficPercent"] == percent
    assert "name" not in predictor
    without = inference_service("fraud", "models", "knative", "fraud", predictor)
    assert "canaryTrafficPercent" not in without["spec"]["predictor"]
    assert without["metadata"] == service["metadata"]


@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 20))
def test_kserve_leaves_the_version_in_charge_as_many_replicas_as_it_had(least, percent, more):
    for scaling, needed in (({}, least), ({"autoscaler": "hpa", "max_replicas": least + more}, least + more)):
        stable = _build("1", parse_placement({"min_replicas": least, **scaling}))
        replicas = canary_replicas(needed, percent)
        raised = beside_trial(stable, replicas, needed)
        # The rules of the webhook, and what the controller takes off.
        assert replicas <= raised["minReplicas"] <= raised.get("maxReplicas", raised["minReplicas"])
        assert max(raised["minReplicas"] - replicas, 1) == needed


@pytest.mark.parametrize(("before", "after"), [("predictor", "triton"), ("triton", "predictor")])
def test_a_version_speaks_a_protocol_of_its_own_runtime_whatever_the_one_in_charge_speaks(before, after):
    stable = _build("1", parse_placement({"runtime": before}))
    # KServe fills in the first protocol of the runtime in charge, and the one on trial inherits it.
    stable["model"]["protocolVersion"] = _protocols(before)[0]
    trial = on_trial(inherit(stable, _build("2", parse_placement({"runtime": after}))), 1)
    assert merged_predictor(stable, trial, 1)["model"]["protocolVersion"] in _protocols(after)


def _protocols(runtime: str) -> list[str]:
    return yaml.safe_load((_RUNTIMES / f"{runtime}-runtime.yaml").read_text())["spec"]["protocolVersions"]


@pytest.mark.parametrize(
    ("replicas", "percent", "wanted"), [(1, 0, 1), (4, 0, 1), (4, 25, 1), (4, 26, 2), (4, 100, 4), (3, 34, 2)]
)
def test_replicas_on_trial_follow_the_share_and_one_is_always_there(replicas, percent, wanted):
    assert canary_replicas(replicas, percent) == wanted


def test_gpus_of_the_version_in_charge_are_not_wanted_again_because_nothing_is_said():
    stable = _build("1", parse_placement({"gpus": 1, "cpu": "4"}))
    canary = inherit(stable, _build("2", parse_placement({})))
    assert canary["model"]["resources"]["limits"] == {"cpu": "4", "nvidia.com/gpu": "0"}
    assert inherit(stable, _build("2", parse_placement({"gpus": 2})))["model"]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_annotations_say_where_a_version_comes_from_and_none_where_nobody_knows():
    annotations = _build("7", Placement(), run_id="", code_revision="")["annotations"]
    assert annotations["modelyard.dev/model-name"] == "fraud"
    assert annotations["modelyard.dev/model-version"] == "7"
    assert annotations["modelyard.dev/signer"] == "SHA256:abc"
    assert annotations["modelyard.dev/layout"] == "modelyard"
    # An empty one KServe would fill from the version in charge.
    assert annotations["modelyard.dev/run-id"] == annotations["modelyard.dev/git-sha"] == "none"
    assert _build("7", parse_placement({"runtime": "triton"}))["annotations"]["modelyard.dev/layout"] == "triton"
