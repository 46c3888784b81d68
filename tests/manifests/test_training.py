"""What a step may do by the manifests must be what it does, in the scope in which it does it, and no more."""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from modelyard.components.training.distributed.cluster_job import ClusterJob
from modelyard.components.training.distributed.placement import parse_node_placement
from tests.support.fake_trainer import FakeTrainer

TRAINING = Path(__file__).parents[2] / "manifests" / "components" / "training"
_PATH = re.compile(r"/(?:api|apis/(?P<group>[^/]+))/v[^/]+(?P<namespace>/namespaces/[^/]+)?/(?P<kind>[^/]+)(?P<name>/.+)?")
_VERBS = {"POST": "create", "DELETE": "delete", "PUT": "update", "PATCH": "patch"}


class Right(NamedTuple):
    """What RBAC decides on."""

    namespaced: bool
    group: str
    resource: str
    verb: str


@functools.cache
def objects() -> list[dict[str, Any]]:
    names = yaml.safe_load((TRAINING / "kustomization.yaml").read_text())["resources"]
    return [document for name in names for document in yaml.safe_load_all((TRAINING / name).read_text())]


def bindings() -> list[dict[str, Any]]:
    return [entry for entry in objects() if entry["kind"].endswith("Binding")]


def given() -> set[Right]:
    """What the bindings give: one of a namespace nothing that is in none, whatever its role says."""
    roles = {entry["metadata"]["name"]: entry["rules"] for entry in objects() if entry["kind"] == "ClusterRole"}
    return {
        Right(binding["kind"] == "RoleBinding", group, resource, verb)
        for binding in bindings()
        for rule in roles[binding["roleRef"]["name"]]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def needed(method: str, path: str) -> Right:
    """What the API server asks RBAC for before it answers a request."""
    found = _PATH.fullmatch(path)
    assert found is not None, path
    _, _, part = (found["name"] or "").removeprefix("/").partition("/")
    verb = _VERBS.get(method) or ("get" if found["name"] else "list")
    return Right(found["namespace"] is not None, found["group"] or "", found["kind"] + (part and f"/{part}"), verb)


@pytest.fixture
def requests(tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """Every request of a step whose training fails, is started anew, and is completed."""
    with FakeTrainer(tmp_path) as cluster:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig))
        placement = parse_node_placement({})
        job = ClusterJob("modelyard-abc", "xgboost", 2, "cpu", "s3://bucket/abc.job", "fraud", placement, 60, lambda: None)
        job.start()
        cluster.run(job.name, ["Running", "Running"])
        assert job.state().status == "running"
        cluster.fail(job.name, 1, "bad luck")
        assert "bad luck" in job.state().reason
        job.start()
        cluster.complete(job.name)
        assert job.state().status == "completed"
        job.stop()
        assert cluster.jobs == {}
        return list(cluster.requests)


def test_a_step_may_do_what_it_does_and_nothing_else(requests):
    assert {needed(method, path) for method, path in requests} == given()


def test_what_is_in_no_namespace_is_given_in_none():
    cluster_wide = {right.resource for right in given() if not right.namespaced}
    assert cluster_wide == {"clustertrainingruntimes"}
    assert "clustertrainingruntimes" not in {right.resource for right in given() if right.namespaced}


def test_bindings_bind_the_roles_beside_them_to_one_account():
    roles = [entry["metadata"]["name"] for entry in objects() if entry["kind"] == "ClusterRole"]
    assert sorted(binding["roleRef"]["name"] for binding in bindings()) == sorted(roles)
    for binding in bindings():
        assert binding["roleRef"] | {"name": ""} == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ""}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]
        # Set by whoever applies it: kubectl refuses one that differs from its --namespace.
        assert "namespace" not in binding["metadata"]
