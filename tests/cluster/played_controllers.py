"""KServe's and Knative's controllers played by the test, on the API server of a real cluster that runs none of them.

They are those of the fake cluster, at work on objects that are read and written over the API. Where the cluster runs
Deployments itself, the test plays the nodes only: no scheduler takes its pods.
"""

import threading
import time
from types import TracebackType
from typing import Any

from kubernetes.client import ApiClient, ApiException

from tests.support.fake_cluster.knative import KnativeController
from tests.support.fake_cluster.predictors import KSERVE
from tests.support.fake_cluster.standard import StandardController
from tests.support.fake_cluster.store import RESOURCES, Object
from tests.support.fake_cluster.workloads import Trouble, Workloads

NOBODYS_SCHEDULER = "modelyard-tests-nobody"
_PAUSE_SECONDS = 0.02
_PASSING = (404, 409, 422)


class RemoteStore:
    """The objects of one namespace, with the methods of the fake cluster's ``Store``."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._written: dict[str, tuple[int, Object]] = {}

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        if not name:
            return None
        try:
            return self._ask("GET", self._path(kind, name))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def all(self, kind: str, namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        resource = RESOURCES[kind]
        selector = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        found = self._ask("GET", self._path(kind), [("labelSelector", selector)] if selector else [])["items"]
        # A list says once what kind its items are.
        items = [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in found or []]
        return sorted(items, key=lambda item: item["metadata"]["name"])

    def holds(self, found: Object, wanted: Object) -> bool:
        # The server fills in defaults, so what it shows is never what was written.
        generation = found["metadata"].get("generation", 0)
        return self._written.get(found["metadata"]["uid"]) == (generation, wanted)

    def create(self, kind: str, content: Object, manager: str) -> Object:
        resource = RESOURCES[kind]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **content}
        if kind == "pods":
            body["spec"] = {**body["spec"], "schedulerName": NOBODYS_SCHEDULER}
        made = self._write("POST", self._path(kind), body, manager)
        if resource.has_status and content.get("status"):
            return self.set_status(kind, made["metadata"]["name"], "", content["status"])
        return made

    def replace(self, kind: str, name: str, namespace: str, content: Object, manager: str) -> Object:
        resource = RESOURCES[kind]
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **content}
        return self._write("PUT", self._path(kind, name), body, manager)

    def set_status(self, kind: str, name: str, namespace: str, status: Object, *, version: str = "") -> Object:
        found = self._ask("GET", self._path(kind, name))
        return self._ask("PUT", self._path(kind, name) + "/status", [("fieldManager", KSERVE)], {**found, "status": status})

    def delete(self, kind: str, name: str, namespace: str = "") -> Object:
        options = {"propagationPolicy": "Background", **({"gracePeriodSeconds": 0} if kind == "pods" else {})}
        return self._ask("DELETE", self._path(kind, name), body=options)

    def _path(self, kind: str, name: str = "") -> str:
        resource = RESOURCES[kind]
        root = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
        within = f"/namespaces/{self._namespace}" if resource.namespaced else ""
        return f"{root}{within}/{resource.plural}" + (f"/{name}" if name else "")

    def _write(self, method: str, path: str, body: Object, manager: str) -> Object:
        written = self._ask(method, path, [("fieldManager", manager)], body)
        self._written[written["metadata"]["uid"]] = (written["metadata"].get("generation", 0), _content(body))
        return written

    def _ask(self, method: str, path: str, query: list[tuple[str, str]] | None = None, body: Any = None) -> Object:
        return self._client.call_api(
            path,
            method,
            query_params=query or [],
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=20,
        )


def _content(body: Object) -> Object:
    return {name: value for name, value in body.items() if name not in ("apiVersion", "kind", "metadata", "status")}


class PlayedControllers:
    """Plays them until it is left.

    Args:
        client: an open client; its own.
        namespace: where it plays.
        runs_deployments: whether the cluster does that itself.
    """

    def __init__(self, client: ApiClient, namespace: str, *, runs_deployments: bool) -> None:
        self.store = store = RemoteStore(client, namespace)
        self.workloads = Workloads(store)
        self._standard, self._knative = StandardController(store), KnativeController(store, self.workloads)
        self._namespace = namespace
        standard, knative = self._standard, self._knative
        self._steps = [
            *(standard.begin, standard.route, standard.finish, standard.accept_routes),
            *(knative.reconcile, knative.make_revisions, knative.run_revisions, knative.configure, knative.route),
            *(() if runs_deployments else (self.workloads.run_deployments,)),
            self.workloads.run_pods,
        ]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> "PlayedControllers":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def trouble(self, version: str, kind: str, message: str) -> None:
        """The pods of a version do not start from now on, see ``Trouble``."""
        self.workloads.troubles[version] = Trouble(kind, message)

    def _play(self) -> None:
        try:
            while not self._stopped.is_set():
                for step in self._steps:
                    try:
                        step()
                    except ApiException as error:
                        # Somebody else wrote meanwhile: the next round sees it.
                        if error.status not in _PASSING:
                            raise
                time.sleep(_PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 (the test gets it when this is left)
            self._failure = error
