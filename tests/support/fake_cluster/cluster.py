"""A Kubernetes API with KServe in it, over real HTTP, for tests of what talks to one.

``with FakeCluster(tmp_path) as cluster`` starts it; ``cluster.kubeconfig`` is the file that leads to it. Its controllers replay
what KServe and Knative do, in small steps, by themselves: each step is over before the next request is answered, and the steps
come in the same order always. A test looks at objects (``get``, ``all``), at where the traffic goes (``traffic``, ``history``),
plays another user (``edit``), says what goes wrong: with the API (``fail``, ``drop``, ``delay``), with a version's pods
(``trouble``).
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fake_cluster.api import Api, Meeting
from tests.support.fake_cluster.knative import KnativeController
from tests.support.fake_cluster.predictors import DEFAULT_DOMAIN
from tests.support.fake_cluster.standard import StandardController
from tests.support.fake_cluster.store import RESOURCES, Object, Store
from tests.support.fake_cluster.workloads import Trouble, Workloads

_ANSWERS_WITHIN = 20.0
_TIME_GOES_BY_SECONDS = 0.01


@dataclass(frozen=True)
class Routed:
    """Where a service's traffic went from a moment on: percent by model version, ``""`` for what reaches nothing."""

    name: str
    shares: dict[str, float]


class FakeCluster:
    """The cluster, as a context manager.

    Args:
        folder: where its kubeconfig goes.
        namespace: the kubeconfig's namespace.
        runtimes: the ClusterServingRuntimes that it has.
        gpus: how many GPUs its nodes have, all together.
        step_seconds: how long the controllers rest after a step that changed something.
        controllers: whether there are any; without them it is an API server alone.
        workloads: makes what runs its pods, if they are to be more than a status.
        domain: KServe's template of hosts.

    Attributes:
        kubeconfig: path of the file.
        requests: every request: method, path with query, status it was answered with.
        history: where the traffic went, one entry for each change.
    """

    def __init__(
        self,
        folder: Path,
        *,
        namespace: str = "models",
        runtimes: Iterable[str] = ("modelyard-predictor", "modelyard-triton"),
        gpus: int = 0,
        step_seconds: float = 0.002,
        controllers: bool = True,
        workloads: Callable[[Store], Workloads] | None = None,
        domain: str = DEFAULT_DOMAIN,
    ) -> None:
        self.namespace, self.kubeconfig = namespace, folder / "kubeconfig.json"
        self.requests: list[tuple[str, str, int]] = []
        self.history: list[Routed] = []
        self.lock = threading.RLock()
        self.store = Store()
        self.workloads = workloads(self.store) if workloads else Workloads(self.store, gpus=gpus)
        self._standard = StandardController(self.store, domain)
        self.knative = KnativeController(self.store, self.workloads)
        self._steps: list[Callable[[], None]] = [
            self._standard.begin,
            self._standard.route,
            self._standard.finish,
            self._standard.accept_routes,
            self.knative.reconcile,
            self.knative.make_revisions,
            self.knative.run_revisions,
            self.knative.configure,
            self.knative.route,
            self.workloads.run_deployments,
            self.workloads.run_pods,
        ]
        self._step_seconds = step_seconds
        self._stopped, self._paused = threading.Event(), threading.Event()
        self._has_controllers = controllers
        self._settled_at, self._failure = -1, None
        self._api = Api(self)
        for name in runtimes:
            self._add_runtime(name)

    def _add_runtime(self, name: str) -> None:
        container = {"name": "kserve-container", "image": f"example.com/{name}:1", "args": ["--model_dir=/mnt/models"]}
        model_format = {"name": name.replace("-predictor", ""), "version": "1", "autoSelect": False}
        spec = {"containers": [container], "supportedModelFormats": [model_format], "protocolVersions": ["v2"]}
        self.store.create("clusterservingruntimes", {"metadata": {"name": name}, "spec": spec}, "installer")

    def __enter__(self) -> "FakeCluster":
        started = threading.Event()
        self._server = threading.Thread(target=lambda: asyncio.run(self._api.serve(started, self._stopped)), daemon=True)
        self._server.start()
        if not started.wait(_ANSWERS_WITHIN):
            raise TimeoutError("the fake cluster does not start")
        if self._has_controllers:
            self._controllers = threading.Thread(target=self._control, daemon=True)
            self._controllers.start()
        user = {"name": "tester", "user": {"token": self._api.token}}
        context = {"cluster": "fake", "user": "tester", "namespace": self.namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self._api.url}}],
            "users": [user],
            "contexts": [{"name": "fake", "context": context}],
            "current-context": "fake",
        }
        self.kubeconfig.write_text(json.dumps(content))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._has_controllers:
            self._controllers.join()
        self._server.join()
        if self._failure is not None:
            raise self._failure

    # What it holds

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """A copy of an object. ``kind`` is its plural; Knative's services are ``ksvcs``."""
        with self.lock:
            return self.store.get(kind, name, self._within(kind, namespace))

    def all(self, kind: str, labels: dict[str, str] | None = None) -> list[Object]:
        """Copies of all objects of a kind, by name."""
        with self.lock:
            return self.store.all(kind, self._within(kind, None), labels)

    def traffic(self, name: str, namespace: str | None = None) -> dict[str, float]:
        """Where a service's traffic goes now: percent by model version (``modelyard.dev/model-version``), ``""`` is lost."""
        with self.lock:
            return self._traffic(name, namespace or self.namespace)

    def _traffic(self, name: str, namespace: str) -> dict[str, float]:
        return self._standard.traffic(name, namespace) or self.knative.traffic(name, namespace)

    def _within(self, kind: str, namespace: str | None) -> str:
        return (namespace or self.namespace) if RESOURCES[kind].namespaced else ""

    # What happens to it

    def edit(self, kind: str, name: str, change: Callable[[Object], None], *, manager: str = "kubectl-edit") -> Object:
        """Somebody else changes an object."""
        with self.lock:
            return self.store.edit(kind, name, self._within(kind, None), change, manager)

    def apply(self, kind: str, content: Object, *, manager: str = "kubectl", force: bool = True) -> Object:
        """Somebody else applies an object."""
        with self.lock:
            return self.store.apply(kind, content["metadata"]["name"], self._within(kind, None), content, manager, force=force)[
                0
            ]

    def delete(self, kind: str, name: str) -> None:
        """Somebody else deletes an object."""
        with self.lock:
            self.store.delete(kind, name, self._within(kind, None))

    def trouble(self, version: str, kind: str, message: str = "") -> None:
        """From now on the pods of a version do not start, see ``Trouble``; those that run fall over too."""
        messages = {
            "load": "the model is not signed by a key that is trusted",
            "image": 'Back-off pulling image "example.com/modelyard-predictor:1"',
            "crash": "the golden rows are not answered as they were in training",
            "unready": "",
            "unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            "refused": 'pods "fraud" is forbidden: error looking up service account models/fetcher: not found',
        }
        with self.lock:
            self.workloads.troubles[version] = Trouble(kind, message or messages[kind])
            self._settled_at = -1

    def deny(self, version: str, message: str) -> None:
        """From now on KServe cannot make what would run a version: the API server refuses it."""
        with self.lock:
            for controller in (self._standard, self.knative):
                controller.denied[version] = message
            self._settled_at = -1

    def mend(self, version: str) -> None:
        """The pods of a version start again."""
        with self.lock:
            self.workloads.troubles.pop(version, None)
            for controller in (self._standard, self.knative):
                controller.denied.pop(version, None)
            self._settled_at = -1

    def fail(
        self,
        status: int,
        *,
        times: int = 1,
        method: str = "",
        path: str = "",
        retry_after: float | None = None,
        message: str = "",
        after_work: bool = False,
    ) -> None:
        """The next requests of this method whose path has this part are answered with an error.

        ``after_work``: what they asked for is done all the same.
        """
        self._api.meet(
            Meeting(method, path, times, status=status, retry_after=retry_after, message=message, after_work=after_work)
        )

    def drop(self, *, times: int = 1, method: str = "", path: str = "", after_work: bool = False) -> None:
        """The connection of the next such requests is cut, before or after what they ask for is done."""
        self._api.meet(Meeting(method, path, times, drop=True, after_work=after_work))

    def delay(self, seconds: float, *, times: int = 1, method: str = "", path: str = "") -> None:
        """The next such requests wait so long."""
        self._api.meet(Meeting(method, path, times, seconds=seconds))

    def interfere(self, action: Callable[[], Any], *, times: int = 1, method: str = "", path: str = "", skip: int = 0) -> None:
        """Something happens just before such a request is worked on, after ``skip`` of them."""
        self._api.meet(Meeting(method, path, times, action=action, skip=skip))

    def end_watches(self) -> None:
        """Every watch under way ends, as the API server ends them now and then."""
        self._api.end_watches()

    def pause(self) -> None:
        """The controllers rest until ``resume``."""
        self._paused.set()

    def resume(self) -> None:
        """The controllers go on."""
        self._paused.clear()

    def settle(self, seconds: float = _ANSWERS_WITHIN) -> None:
        """Waits until the controllers have nothing more to do."""
        self.wait(lambda: self._settled_at == self.store.version and not self.workloads.busy(), seconds)

    def wait(self, condition: Callable[[], bool], seconds: float = _ANSWERS_WITHIN) -> None:
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self.lock:
                if condition():
                    return
            time.sleep(0.002)
        raise TimeoutError("the fake cluster does not come to it")

    def _control(self) -> None:
        try:
            while not self._stopped.is_set():
                if self._paused.is_set():
                    time.sleep(self._step_seconds)
                else:
                    self._round()
        except Exception as error:  # noqa: BLE001 (the test gets it when the cluster is left)
            self._failure = error

    def _round(self) -> None:
        began = self.store.version
        with self.lock:
            idle = self._settled_at == began and not self.workloads.busy()
        if idle:
            time.sleep(self._step_seconds)
            return
        for step in self._steps:
            with self.lock:
                before = self.store.version
                step()
                changed = self.store.version != before
                if changed:
                    self._record()
            if changed:
                time.sleep(self._step_seconds)
            if self._stopped.is_set() or self._paused.is_set():
                return
        with self.lock:
            unchanged = self.store.version == began
            self._settled_at = self.store.version if unchanged else -1
        if unchanged:
            # Nothing happens but that time goes by.
            time.sleep(_TIME_GOES_BY_SECONDS)

    def _record(self) -> None:
        for service in self.store.all("inferenceservices"):
            name = service["metadata"]["name"]
            shares = self._traffic(name, service["metadata"]["namespace"])
            last = next((each.shares for each in reversed(self.history) if each.name == name), {})
            if shares != last:
                self.history.append(Routed(name, shares))
