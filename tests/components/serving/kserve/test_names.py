import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.kserve.names import (
    LAYOUT,
    SHORTEST_PREDICTOR,
    digest_label,
    identity,
    layout,
    notes_name,
    predictor_name,
    predictor_room,
    service_name,
    version_label,
    workload_name,
)

_MODEL_NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda name: not name.endswith(".promotions")
)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@given(_MODEL_NAMES, st.integers(1, 10**9), st.binary(min_size=32, max_size=32))
def test_every_model_has_names_that_kubernetes_and_kserve_take(model_name, version, digest):
    service = service_name(model_name)
    predictor = predictor_name(str(version), f"blake3:{digest.hex()}")
    workload = workload_name(service, predictor)
    # The name that KServe takes; the label that it gives the pods; a host name's part.
    assert _DNS.fullmatch(service)
    assert _DNS.fullmatch(predictor)
    assert _LABEL.fullmatch(f"isvc.{workload}")
    assert len(workload) <= 63
    assert len(f"latest-{workload_name(service)}") <= 63
    assert len(notes_name(service)) <= 253
    assert _LABEL.fullmatch(digest_label(f"blake3:{digest.hex()}"))


@pytest.mark.parametrize("model_name", ["m" * 63, "m" * 27])
def test_the_longest_names_fit_into_a_label_and_a_host_name(model_name):
    service = service_name(model_name)
    assert len(f"isvc.{workload_name(service, predictor_name('9' * 30, 'blake3:' + 'f' * 64))}") <= 63
    assert len(f"{workload_name(service)}-kubeflow-user-example-com") <= 63


@given(_MODEL_NAMES, st.integers(1, 63), st.integers(1, 10**9))
def test_in_standard_mode_every_version_has_a_host_or_none_has(model_name, namespace_length, version):
    service, namespace = service_name(model_name), "n" * namespace_length
    room = predictor_room(service, namespace)
    predictor = predictor_name(str(version), "blake3:" + "5f3c2a" * 8, room)
    host = f"{workload_name(service, predictor)}-{namespace}"
    assert _DNS.fullmatch(predictor)
    assert predictor in (f"v{version}-5f3c2a", "v5f3c2a")
    assert (len(host) <= 63) == (room >= SHORTEST_PREDICTOR) == (len(service) + namespace_length <= 44)


def test_a_version_is_in_its_host_where_there_is_room():
    digest, namespace = "blake3:" + "5f3c2a" * 8, "kubeflow-user-example-com"
    assert predictor_name("1234", digest, predictor_room("m" * 14, namespace)) == "v1234-5f3c2a"
    assert predictor_name("1234", digest, predictor_room("m" * 15, namespace)) == "v5f3c2a"
    host = workload_name("fraud-detection-xgb", predictor_name("7", digest, predictor_room("fraud-detection-xgb", namespace)))
    assert f"{host}-{namespace}" == "fraud-detection-xgb-v5f3c2a-predictor-kubeflow-user-example-com"


@given(st.lists(_MODEL_NAMES, min_size=2, max_size=5, unique=True))
def test_two_models_never_share_a_service(names):
    assert len({service_name(name) for name in names}) == len(names)


def test_a_name_that_kubernetes_takes_is_kept():
    assert service_name("fraud-v2") == "fraud-v2"
    assert service_name("Fraud_Model.x").startswith("fraud-model-x-")
    assert service_name("7days").startswith("m-7days-")
    with pytest.raises(InvalidInput):
        service_name("")


@given(st.text())
def test_any_version_is_a_label(version):
    assert _LABEL.fullmatch(version_label(version))


def test_kserve_names_what_it_makes_after_the_service_and_its_predictor():
    # As PredictorServiceName in its constants.
    assert workload_name("fraud") == "fraud-predictor"
    assert workload_name("fraud", "v7-5f3c2a") == "fraud-v7-5f3c2a-predictor"


def test_what_has_no_annotations_of_ours_is_nobody():
    assert identity(None) == identity({"team": "risk"}) == ("", "", "")
    assert layout(None) == "modelyard"
    assert layout({LAYOUT: "triton"}) == "triton"
