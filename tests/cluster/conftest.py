import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config
from kubernetes.client import ApiClient, ApiException
from urllib3.exceptions import HTTPError

from tests.cluster.played_controllers import NOBODYS_SCHEDULER, PlayedControllers
from tests.services.fixtures import rclone_s3  # noqa: F401 (a fixture)
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_cluster.store import RESOURCES

_SERVED_SECONDS = 20.0
_RUNTIMES = {"modelyard-predictor": "modelyard", "modelyard-triton": "modelyard-triton"}


@dataclass(frozen=True)
class ApiServer:
    """An API server that nobody but the test reconciles.

    Attributes:
        connect: opens a client of it.
        namespace: which is the test's own.
        runs_deployments: whether it has a controller of Deployments.
    """

    connect: Callable[[], ApiClient]
    namespace: str
    runs_deployments: bool


@pytest.fixture(
    scope="session", params=[pytest.param("fake", marks=pytest.mark.slow), pytest.param("real", marks=pytest.mark.cluster)]
)
def api_server(request, tmp_path_factory) -> Iterator[ApiServer]:
    """The API server that ``KUBECONFIG`` leads to; and the fake one without its controllers, so that the tests run anywhere."""
    if request.param == "fake":
        with FakeCluster(tmp_path_factory.mktemp("cluster"), controllers=False) as cluster:
            yield ApiServer(lambda: config.new_client_from_config(str(cluster.kubeconfig)), cluster.namespace, False)
        return
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("KUBECONFIG is not set: name the kubeconfig of a cluster that has KServe's custom resource definitions")
    if not Path(kubeconfig).is_file():
        pytest.skip(f"KUBECONFIG names no file: {kubeconfig}")

    def connect() -> ApiClient:
        return config.new_client_from_config(kubeconfig)

    client = connect()
    _skip_unless_usable(client)
    made = [name for kind in ("httproutes", "ksvcs", "revisions") if (name := _stand_in(client, kind))]
    namespace = f"modelyard-test-{uuid.uuid4().hex[:8]}"
    _ask(client, "POST", "/api/v1/namespaces", _object("v1", "Namespace", namespace))
    try:
        _prepare(client, namespace)
        yield ApiServer(connect, namespace, _runs_deployments(client, namespace))
    finally:
        _ask(client, "DELETE", f"/api/v1/namespaces/{namespace}")
        for name in made:
            _ask(client, "DELETE", f"{_DEFINITIONS}/{name}")


@pytest.fixture
def controllers(api_server) -> Iterator[PlayedControllers]:
    """KServe and Knative, played."""
    play = PlayedControllers(api_server.connect(), api_server.namespace, runs_deployments=api_server.runs_deployments)
    with play:
        yield play


_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def _ask(client: ApiClient, method: str, path: str, body: Any = None) -> Any:
    return client.call_api(
        path,
        method,
        header_params={"Accept": "application/json", "Content-Type": "application/json"},
        body=body,
        response_type="object",
        auth_settings=["BearerToken"],
        _return_http_data_only=True,
        _request_timeout=20,
    )


def _is_there(client: ApiClient, path: str) -> bool:
    try:
        _ask(client, "GET", path)
    except ApiException as error:
        if error.status == 404:
            return False
        raise
    return True


def _object(api_version: str, kind: str, name: str, **content: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}


def _skip_unless_usable(client: ApiClient) -> None:
    try:
        served = _is_there(client, "/apis/serving.kserve.io/v1beta1")
    except (ApiException, HTTPError, OSError) as error:
        pytest.skip(f"the API server that KUBECONFIG leads to does not let us in: {error}")
    if not served:
        pytest.skip("the API server that KUBECONFIG leads to has no KServe: apply its custom resource definitions there")
    for namespace, name in (("kserve", "kserve-controller-manager"), ("knative-serving", "controller")):
        if _is_there(client, f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"):
            pytest.skip(f"{namespace}/{name} runs in this cluster: these tests play that controller, and need one without it")


def _stand_in(client: ApiClient, kind: str) -> str:
    """Defines a kind of the Gateway API or Knative where there is none, and returns the definition's name."""
    resource = RESOURCES[kind]
    if _is_there(client, f"/apis/{resource.api_version}"):
        served = _ask(client, "GET", f"/apis/{resource.api_version}")["resources"]
        if any(each["name"] == resource.plural for each in served):
            return ""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    version = {"name": resource.version, "served": True, "storage": True, "subresources": {"status": {}}}
    version["schema"] = {"openAPIV3Schema": schema}
    names = {"kind": resource.kind, "plural": resource.plural, "singular": resource.kind.lower()}
    spec = {"group": resource.group, "scope": "Namespaced", "names": names, "versions": [version]}
    name = f"{resource.plural}.{resource.group}"
    definition = _object("apiextensions.k8s.io/v1", "CustomResourceDefinition", name, spec=spec)
    # A group of kubernetes.io is Kubernetes' own to define; this says that it is a stand-in.
    definition["metadata"]["annotations"] = {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"}
    _ask(client, "POST", _DEFINITIONS, definition)
    _wait(lambda: _is_there(client, f"/apis/{resource.api_version}/namespaces/default/{resource.plural}"), name)
    return name


def _prepare(client: ApiClient, namespace: str) -> None:
    """What a namespace needs that KServe's runtimes and pods are to run in."""
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    if not _is_there(client, f"{account}/default"):
        try:
            _ask(client, "POST", account, _object("v1", "ServiceAccount", "default"))
        except ApiException as error:
            # The cluster's own controller may have been faster.
            if error.status != 409:
                raise
    for name, model_format in _RUNTIMES.items():
        container = {"name": "kserve-container", "image": f"example.com/{name}:1"}
        formats = [{"name": model_format, "version": "1", "autoSelect": False}]
        spec = {"containers": [container], "supportedModelFormats": formats, "protocolVersions": ["v2"]}
        runtime = _object("serving.kserve.io/v1alpha1", "ServingRuntime", name, spec=spec)
        path = f"/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes"
        _wait(lambda path=path: _is_there(client, path), "servingruntimes")
        _ask(client, "POST", path, runtime)


def _runs_deployments(client: ApiClient, namespace: str) -> bool:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    labels = {"app": "modelyard-test"}
    pod = {"schedulerName": NOBODYS_SCHEDULER, "containers": [{"name": "none", "image": "example.com/none:1"}]}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    _ask(client, "POST", path, _object("apps/v1", "Deployment", "is-it-run", spec=spec))
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if (_ask(client, "GET", f"{path}/is-it-run").get("status") or {}).get("observedGeneration"):
            return True
        time.sleep(0.2)
    _ask(client, "DELETE", f"{path}/is-it-run")
    return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _SERVED_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"the API server does not serve {what}")
        time.sleep(0.2)
