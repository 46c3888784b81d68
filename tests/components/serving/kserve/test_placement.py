import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.kserve.placement import Placement, parse_placement, scaling_problem


def test_nothing_said_is_one_replica_wherever_the_step_runs():
    assert parse_placement({}) == Placement()
    assert parse_placement({"namespace": "", "gpus": None, "node_selector": {}, "tolerations": []}) == Placement()
    nothing = ("gpus", "max_replicas", "scale_target", "timeout_seconds")
    assert parse_placement({**dict.fromkeys(nothing, 0), "mode": "standard"}) == Placement(mode="standard")


def test_numbers_may_come_as_a_pipeline_hands_them_over():
    placement = parse_placement({"cpu": 2.0, "gpus": 1.0, "min_replicas": 2.0, "max_replicas": 6.0, "autoscaler": "hpa"})
    assert (placement.cpu, placement.gpus, placement.min_replicas, placement.max_replicas) == ("2", 1, 2, 6)
    assert isinstance(placement.min_replicas, int)
    assert parse_placement({"cpu": 0.25}).cpu == "0.25"
    for memory in (4294967296, 4294967296.0, "4294967296"):
        assert parse_placement({"memory": memory}).memory == "4294967296"


def test_all_of_it_is_read():
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60.0}
    placement = parse_placement(
        {
            "namespace": "models",
            "mode": "knative",
            "runtime": "triton",
            "cpu": "500m",
            "memory": "1.5Gi",
            "gpus": 1,
            "min_replicas": 0,
            "max_replicas": 4,
            "autoscaler": "knative",
            "scale_metric": "rps",
            "scale_target": 200,
            "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"},
            "tolerations": [toleration],
            "spot": True,
            "service_account": "fetcher",
            "timeout_seconds": 30,
            "ready_seconds": 600,
        }
    )
    assert placement.tolerations == ({**toleration, "tolerationSeconds": 60},)
    assert (placement.min_replicas, placement.scale_metric, placement.spot) == (0, "rps", True)


@pytest.mark.parametrize(
    ("serving", "field", "remedy"),
    [
        ({"replicas": 2}, "serving.replicas", "there is no such key"),
        ({"mode": "Serverless"}, "serving.mode", "standard or knative"),
        ({"runtime": "sklearn"}, "serving.runtime", "predictor or triton"),
        ({"namespace": "My_Models"}, "serving.namespace", "name of a namespace"),
        ({"cpu": "two"}, "serving.cpu", "500m"),
        ({"cpu": True}, "serving.cpu", "500m"),
        ({"cpu": 0}, "serving.cpu", "1m at least"),
        ({"cpu": "0m"}, "serving.cpu", "1m at least"),
        ({"cpu": "0.0001"}, "serving.cpu", "1m at least"),
        ({"cpu": float("nan")}, "serving.cpu", "500m"),
        ({"memory": float("inf")}, "serving.memory", "2Gi"),
        ({"memory": "0Gi"}, "serving.memory", "2Gi"),
        ({"memory": "2 Gi"}, "serving.memory", "2Gi"),
        ({"memory": 4}, "serving.memory", "2Gi"),
        ({"gpus": -1}, "serving.gpus", "0 to 64"),
        ({"gpus": 0.5}, "serving.gpus", "whole number"),
        ({"gpus": float("nan")}, "serving.gpus", "whole number"),
        ({"min_replicas": "2"}, "serving.min_replicas", "whole number"),
        ({"min_replicas": 0, "mode": "standard"}, "serving.min_replicas", "at least 1"),
        ({"mode": "standard", "max_replicas": 3}, "serving.max_replicas", "hpa or keda"),
        ({"mode": "standard", "scale_target": 70}, "serving.scale_target", "hpa or keda"),
        ({"autoscaler": "hpa"}, "serving.max_replicas", "how many"),
        ({"autoscaler": "hpa", "min_replicas": 3, "max_replicas": 2}, "serving.max_replicas", "at least min_replicas"),
        ({"autoscaler": "hpa", "max_replicas": 2, "scale_metric": "rps"}, "serving.scale_metric", "cpu or memory"),
        ({"autoscaler": "keda", "max_replicas": 2, "scale_target": 200}, "serving.scale_target", "1 to 100"),
        ({"autoscaler": "keda", "max_replicas": 2, "scale_metric": "memory"}, "serving.scale_target", "memory"),
        ({"autoscaler": "hpa", "max_replicas": 2, "mode": "knative"}, "serving.autoscaler", "use knative"),
        ({"mode": "knative", "scale_metric": "cpu"}, "serving.scale_metric", "concurrency or rps"),
        ({"node_selector": ["gpu"]}, "serving.node_selector", "map"),
        ({"node_selector": {"gpu": 1}}, "serving.node_selector", "map"),
        ({"tolerations": {"key": "gpu"}}, "serving.tolerations", "list"),
        ({"tolerations": [{"keys": "gpu"}]}, "serving.tolerations", "key, operator"),
        ({"tolerations": [{"key": "gpu", "operator": "In"}]}, "serving.tolerations", "Equal or Exists"),
        ({"tolerations": [{"key": "gpu", "operator": "Exists", "value": "1"}]}, "serving.tolerations", "has no value"),
        ({"tolerations": [{"key": "gp u", "operator": "Exists"}]}, "serving.tolerations", "as Kubernetes writes"),
        ({"tolerations": [{"key": "gpu", "value": "a/b"}]}, "serving.tolerations", "as Kubernetes writes"),
        ({"tolerations": [{"key": "gpu", "tolerationSeconds": 60}]}, "serving.tolerations", "NoExecute"),
        ({"tolerations": [{"value": "1"}]}, "serving.tolerations", "without a key"),
        ({"spot": "yes"}, "serving.spot", "true or false"),
        ({"service_account": "Fetcher"}, "serving.service_account", "service account"),
        ({"ready_seconds": 0}, "serving.ready_seconds", "1 to"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_to_do(serving, field, remedy):
    with pytest.raises(InvalidInput, match=remedy) as refused:
        parse_placement(serving)
    assert refused.value.field == field


@given(
    st.dictionaries(
        st.sampled_from([*Placement.__dataclass_fields__, "other"]),
        st.none()
        | st.booleans()
        | st.integers(-5, 200)
        | st.floats()
        | st.text(max_size=8)
        | st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        max_size=5,
    )
)
def test_anything_is_read_or_refused_by_name(serving):
    try:
        placement = parse_placement(serving)
    except InvalidInput as error:
        placement, field = None, error.field
    assert placement or field.startswith("serving.")
    assert not placement or None in (scaling_problem(placement, "standard"), scaling_problem(placement, "knative"))


def test_a_placement_is_read_without_a_client_of_kubernetes():
    code = "import sys, modelyard.components.serving.kserve.placement; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_given_is_told_from_what_was_not():
    given = {
        "namespace": "models",
        "ready_seconds": 60,
        "mode": "knative",
        "min_replicas": 0,
        "max_replicas": 0,
        "cpu": "",
        "spot": False,
        "long_hosts": True,
    }
    assert parse_placement(given).long_hosts
    assert parse_placement(given).given == {"min_replicas", "spot"}
