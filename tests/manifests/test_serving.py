"""What the manifests say must be what the code does, what KServe's schemas allow, and what Knative takes from a runtime."""

import functools
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.initializer.asked_for import MODELYARD, TRITON, AskedFor
from modelyard.components.interface import image
from modelyard.components.serving.kserve import api, names
from modelyard.components.serving.kserve.placement import KNATIVE, STANDARD, Placement
from modelyard.components.serving.kserve.predictors import build_predictor
from modelyard.components.serving.target import ServedModel
from modelyard.components.signing.provenance import Provenance
from tests.services.servers import free_port
from tests.support.fake_cluster import schemas
from tests.support.signed_models import make_signed_model

SERVING = Path(__file__).parents[2] / "manifests" / "components" / "serving"
KUSTOMIZATIONS = [SERVING, SERVING / "namespace", SERVING / "monitoring", SERVING.parent / "training"]
# What Knative's webhook takes of a container; it refuses any other field.
KNATIVE_CONTAINER = {
    "name", "args", "command", "env", "workingDir", "envFrom", "image", "imagePullPolicy", "livenessProbe", "ports",
    "readinessProbe", "resources", "securityContext", "startupProbe", "terminationMessagePath", "terminationMessagePolicy",
    "volumeMounts",
}  # fmt: skip
KNATIVE_RESERVED = {"/", "/dev", "/dev/log", "/tmp", "/var", "/var/log"}
START_SECONDS = 60


@functools.cache
def objects(folder: Path) -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [document for name in kustomization["resources"] for document in yaml.safe_load_all((folder / name).read_text())]


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in objects(SERVING) if (entry["kind"], entry["metadata"]["name"]) == (kind, name)]
    return found


def storage_container() -> dict[str, Any]:
    return find("ClusterStorageContainer", names.STORAGE_CONTAINER)["spec"]


def runtime(name: str) -> dict[str, Any]:
    return find("ClusterServingRuntime", names.RUNTIMES[name][0])["spec"]


def container(name: str) -> dict[str, Any]:
    (found,) = runtime(name)["containers"]
    return found


def supports(uri: str) -> bool:
    """Whether KServe lets the storage container fetch a URI, as its ``IsStorageUriSupported`` decides."""
    return any(
        uri.startswith(entry["prefix"]) if "prefix" in entry else bool(re.search(entry["regex"], uri))
        for entry in storage_container()["supportedUriFormats"]
    )


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_a_kustomization_takes_every_file_beside_it(folder):
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    taken = {*kustomization["resources"], *kustomization.get("configurations", []), "kustomization.yaml"}
    assert taken == {path.name for path in folder.iterdir() if path.is_file()}


def test_every_object_of_kserve_is_what_its_definition_says_and_has_no_field_that_it_does_not_know():
    schemas.require_definitions()
    checked = 0
    for entry in objects(SERVING):
        if entry["apiVersion"].startswith("serving.kserve.io/"):
            schema = schemas.definitions()[entry["kind"]]
            assert schemas.unknown_fields(entry, schema) == []
            assert schemas.violations(entry, schema) == []
            checked += 1
    assert checked == 3


def test_images_are_those_of_this_release(monkeypatch):
    for variable in ("MODELYARD_REGISTRY", "MODELYARD_TAG"):
        monkeypatch.delenv(variable, raising=False)
    assert storage_container()["container"]["image"] == container("predictor")["image"] == image("serve")
    (replaced,) = yaml.safe_load((SERVING / "kustomization.yaml").read_text())["images"]
    assert f"{replaced['name']}:{replaced['newTag']}" == image("serve")


def test_the_initializer_is_asked_for_what_the_pod_is_annotated_with(monkeypatch):
    """Fills the environment as the kubelet does from the annotations that the target puts on a predictor."""
    annotations = {
        names.MODEL_NAME: "fraud",
        names.MODEL_VERSION: "3",
        names.MODEL_DIGEST: "blake3:" + "a" * 64,
        names.LAYOUT: "triton",
    }
    for variable in storage_container()["container"]["env"]:
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            key = re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]
            monkeypatch.setenv(variable["name"], annotations.pop(key))
    assert annotations == {}
    assert AskedFor.from_environment() == AskedFor("fraud", "blake3:" + "a" * 64, "3", "triton")


@pytest.mark.parametrize("name", names.RUNTIMES)
def test_a_runtime_serves_the_format_that_the_target_names_and_nothing_of_its_own_accord(name):
    (served,) = runtime(name)["supportedModelFormats"]
    assert (served["name"], served["autoSelect"]) == (names.RUNTIMES[name][1], False)


@given(
    scheme=st.sampled_from(["s3", "gs"]),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    signature=st.text("0123456789abcdef", min_size=16, max_size=16),
    prefix=st.from_regex(r"[a-z0-9-]{1,20}(/[a-z0-9._-]{1,10}){0,3}", fullmatch=True),
)
def test_the_storage_container_takes_what_is_published(scheme, digest, signature, prefix):
    assert supports(f"{scheme}://{prefix}/fraud/{digest}-{signature}")


@pytest.mark.parametrize("uri", ["models:/fraud/3", "models:/fraud@champion", "runs:/0d4f/model", "mlflow-artifacts:/1/model"])
def test_the_storage_container_takes_what_mlflow_keeps(uri):
    assert supports(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/sklearn/iris",
        "gs://kfserving-examples/models/sklearn/1.0/model",
        "s3://bucket/" + "a" * 63,
        "s3://bucket/" + "a" * 64 + "/model",
        "hf://org/model",
        "https://host/" + "a" * 64,
        "pvc://claim/" + "a" * 64,
        "oci://host/image",
        "file:///" + "a" * 64,
    ],
)
def test_the_storage_container_is_not_chosen_for_models_of_others(uri):
    """KServe takes any storage container that supports the URI of an InferenceService which names none."""
    assert not supports(uri)


@pytest.mark.parametrize("name", names.RUNTIMES)
def test_what_the_storage_container_mounts_every_runtime_declares(name):
    declared = {volume["name"] for volume in runtime(name)["volumes"]}
    assert {mount["name"] for mount in storage_container()["container"]["volumeMounts"]} <= declared


@pytest.mark.parametrize("name", names.RUNTIMES)
def test_knative_takes_a_runtime(name):
    spec, served = runtime(name), container(name)
    assert set(served) <= KNATIVE_CONTAINER
    assert len(served["ports"]) == 1
    assert served["ports"][0]["name"] in ("http1", "h2c", "")
    assert all("valueFrom" not in variable for variable in served["env"])
    mounted = {mount["name"]: mount["mountPath"] for mount in served["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
    assert not KNATIVE_RESERVED & set(mounted.values())
    assert all({"configMap", "secret", "emptyDir"} & set(volume) for volume in spec["volumes"])
    assert set(spec) <= {"annotations", "supportedModelFormats", "protocolVersions", "containers", "volumes"}


def test_every_container_runs_under_the_restricted_pod_security_standard_with_requests_and_limits():
    for entry in (storage_container()["container"], *(container(name) for name in names.RUNTIMES)):
        context = entry["securityContext"]
        assert (context["runAsNonRoot"], context["allowPrivilegeEscalation"], context["privileged"]) == (True, False, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert set(entry["resources"]["requests"]) == set(entry["resources"]["limits"]) == {"cpu", "memory"}
        assert "TMPDIR" in [variable["name"] for variable in entry["env"]]


def test_the_annotated_metrics_port_is_where_the_server_measures():
    served = runtime("predictor")
    port = str(container("predictor")["ports"][0]["containerPort"])
    assert (served["annotations"]["prometheus.kserve.io/port"], served["annotations"]["prometheus.kserve.io/path"]) == (
        port,
        "/metrics",
    )
    assert f"--http_port={port}" in container("predictor")["args"]
    assert f"--metrics-port={runtime('triton')['annotations']['prometheus.kserve.io/port']}" in container("triton")["args"]


def test_a_pod_whose_annotations_are_missing_is_refused(monkeypatch):
    # The downward API gives an empty value for an annotation that is not there.
    for name in ("MODEL_NAME", "MODEL_DIGEST", "MODEL_VERSION", "MODEL_LAYOUT"):
        monkeypatch.setenv(name, "")
    with pytest.raises(InvalidInput, match=names.MODEL_NAME):
        AskedFor.from_environment()
    monkeypatch.setenv("MODEL_NAME", "fraud")
    with pytest.raises(InvalidInput, match=names.MODEL_DIGEST):
        AskedFor.from_environment()


def test_bindings_bind_the_roles_beside_them():
    roles = {entry["metadata"]["name"] for entry in objects(SERVING) if entry["kind"] == "ClusterRole"}
    bindings = objects(SERVING / "namespace")
    assert {binding["roleRef"]["name"] for binding in bindings} == roles
    for binding in bindings:
        assert binding["roleRef"] | {"name": ""} == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ""}
        assert all(subject["kind"] == "ServiceAccount" and subject["namespace"] for subject in binding["subjects"])


def test_no_role_gives_everything_or_lets_secrets_be_read():
    for entry in objects(SERVING):
        for rule in entry.get("rules", []):
            assert set(rule) == {"apiGroups", "resources", "verbs"}
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "secrets" not in rule["resources"]


def deployer_may(verb: str, kind: tuple[str, str]) -> bool:
    """Whether the deployer's role allows a verb on a kind, as the target's client names it."""
    _, group, _ = kind[0].split("/") if kind[0].startswith("apis/") else ("", "", "")
    rules = find("ClusterRole", "modelyard-deployer")["rules"]
    return any(group in rule["apiGroups"] and kind[1] in rule["resources"] and verb in rule["verbs"] for rule in rules)


def test_the_deployer_may_do_what_the_target_does_and_take_no_keys_away():
    kinds = [value for value in vars(api).values() if isinstance(value, tuple) and len(value) == 2 and "/" in str(value[0])]
    assert api.INFERENCE_SERVICE in kinds
    assert all(deployer_may(verb, kind) for kind in kinds for verb in ("get", "list"))
    assert all(deployer_may(verb, api.INFERENCE_SERVICE) for verb in ("create", "patch", "update", "delete"))
    assert all(deployer_may(verb, api.CONFIG_MAP) for verb in ("create", "patch", "update"))
    deleted = {api.INFERENCE_SERVICE, api.POD_AUTOSCALER, api.SCALED_OBJECT}
    assert {kind for kind in kinds if deployer_may("delete", kind)} == deleted


@pytest.mark.parametrize("mode", [STANDARD, KNATIVE])
@pytest.mark.parametrize("name", names.RUNTIMES)
def test_a_predictor_of_the_target_gives_the_runtime_what_it_expands_and_the_container_a_uri_it_takes(name, mode):
    digest = "blake3:" + "a" * 64
    provenance = Provenance("fraud", digest, "", "", "", "", "key", "sha256:ab", "", {})
    model = ServedModel("3", digest, f"s3://models/fraud/{'a' * 64}-{'b' * 16}")
    predictor = build_predictor(Placement(runtime=name), mode, "fraud", model, provenance)
    given = {variable["name"]: variable["value"] for variable in predictor["model"].get("env", [])}
    expanded = set(re.findall(r"\$\((\w+)\)", " ".join(container(name)["args"])))
    assert expanded <= set(given)
    assert supports(predictor["model"]["storageUri"])
    assert set(predictor["model"]) - {"modelFormat", "protocolVersion", "runtime", "storageUri"} <= KNATIVE_CONTAINER | (
        {"lifecycle"} if mode == STANDARD else set()
    )
    assert predictor["annotations"][names.LAYOUT] in (MODELYARD, TRITON)


@pytest.mark.server
def test_the_predictor_started_as_its_runtime_says_answers_its_probes(tmp_path, monkeypatch):
    """The container's own command and arguments, its variables expanded as the kubelet does."""
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    provenance = make_signed_model(tmp_path)
    served, port = container("predictor"), free_port()
    given = {"MODEL_NAME": "fraud", "MODEL_VERSION": "3", "MODEL_DIGEST": provenance.model_digest}
    replaced = {"/mnt/models": str(tmp_path / "signed"), "8080": str(port), **{f"$({name})": to for name, to in given.items()}}
    arguments = list(served["args"])
    for old, new in replaced.items():
        arguments = [argument.replace(old, new) for argument in arguments]
    environment = {**os.environ, **given, "TMPDIR": str(tmp_path)}
    command = [sys.executable if part == "python" else part for part in served["command"]]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
        try:
            probes = [served[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
            assert {probe["port"] for probe in probes} == {8080}
            for path in [*(probe["path"] for probe in probes), "/metrics"]:
                wait_for(f"http://127.0.0.1:{port}{path}", process, tmp_path / "log")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/fraud", timeout=20) as answer:
                assert json.load(answer)["name"] == "fraud"
                assert answer.headers["x-model-version"] == "3"
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.status == 200
                return
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


def test_prometheus_finds_the_pods_that_the_target_labels_where_their_runtime_says():
    (monitor,) = objects(SERVING / "monitoring")
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    assert expression == {"key": names.DIGEST_LABEL, "operator": "Exists"}
    declared = runtime("predictor")["containers"][0]["ports"][0]["name"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [declared, "user-port"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        (relabeling,) = endpoint["relabelings"]
        (annotated,) = [label for label in relabeling["sourceLabels"] if "annotation" in label]
        for name in names.RUNTIMES:
            keys = {re.sub(r"\W", "_", key) for key in runtime(name)["annotations"]}
            assert annotated.removeprefix("__meta_kubernetes_pod_annotation_") in keys
