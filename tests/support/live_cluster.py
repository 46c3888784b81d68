"""The fake cluster with pods that are alive: real initializers and predictors, an Envoy for a gateway, a real Prometheus.

What a cluster's own parts would do is played by ``FakeCluster``; what this project puts into a cluster runs for real, from the
manifests it ships: the storage initializer's process fetches from the object store, the runtime's command serves, and live
requests go through Envoy by the weights of the HTTPRoutes. Standard mode, one replica a version.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modelyard.components.errors import ModelyardError
from modelyard.components.serving.local.proxy import Backend, Proxy, Route
from tests.services.prometheus import PrometheusServer
from tests.services.servers import free_port
from tests.support.fake_cluster.cluster import FakeCluster
from tests.support.fake_cluster.store import Object
from tests.support.fake_cluster.workloads import Trouble, Workloads, is_ready, pod_status_of

MANIFESTS = Path(__file__).parents[2] / "manifests" / "components" / "serving"
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
_POLL_SECONDS = 0.05
# Looked up by every process whose PYTHONPATH names its folder: services' names lead to the pods behind them.
_NAMES = """
import json, os, socket

_ask = socket.getaddrinfo

def _answer(host, port, *more, **others):
    if isinstance(host, str) and host.endswith(".svc"):
        with open(os.environ["CLUSTER_NAMES"]) as file:
            return _ask("127.0.0.1", json.load(file)[host], *more, **others)
    return _ask(host, port, *more, **others)

socket.getaddrinfo = _answer
"""


@dataclass
class LivePod:
    """The processes of one pod."""

    name: str
    folder: Path
    pod: Object
    initializer: subprocess.Popen[bytes] | None = None
    predictor: subprocess.Popen[bytes] | None = None
    port: int = 0
    trouble: Trouble | None = None
    ready: bool = False
    asked_at: float = 0.0

    def advance(self) -> None:
        """One look: the next process is started when the one before has done its work."""
        if self.trouble is not None:
            return
        if self.initializer is None:
            self.folder.mkdir(parents=True)
            (self.folder / "models").mkdir()
            annotations = self.pod["metadata"]["annotations"]
            self.initializer = self._run(
                [*_command(_container_of("storage-container.yaml")), annotations[_SOURCE], str(self.folder / "models")],
                _downward(_container_of("storage-container.yaml"), annotations),
            )
        elif self.predictor is None:
            if (status := self.initializer.poll()) is None:
                return
            if status:
                self.trouble = Trouble("load", (self.folder / "log").read_text(errors="replace").strip().splitlines()[-1])
                return
            self.port = free_port()
            container = self.pod["spec"]["containers"][0]
            environment = {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
            environment.pop("TMPDIR", None)
            command = [
                re.sub(r"\$\((\w+)\)", lambda name: environment[name.group(1)], part)
                .replace("/mnt/models", str(self.folder / "models"))
                .replace("--http_port=8080", f"--http_port={self.port}")
                for part in (*container["command"], *container["args"])
            ]
            self.predictor = self._run([sys.executable, *command[1:]], environment)
        elif self.predictor.poll() is not None:
            self.ready = False
            self.trouble = Trouble("crash", f"it ended with {self.predictor.returncode}")
        elif time.monotonic() - self.asked_at > 2 * _POLL_SECONDS:
            self.asked_at = time.monotonic()
            self.ready = self._answers()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def end(self) -> None:
        """Asks what runs to end."""
        for process in (self.initializer, self.predictor):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Waits until nothing runs."""
        for process in (self.initializer, self.predictor):
            if process is not None:
                process.wait(30)


@dataclass
class LiveWorkloads(Workloads):
    """Deployments whose pods are processes."""

    folder: Path = Path()
    live: dict[str, LivePod] = field(default_factory=dict)
    gone: list[LivePod] = field(default_factory=list)
    _looked_at: float = 0.0

    def run_pods(self) -> None:
        """One look at every pod."""
        self._looked_at = time.monotonic()
        pods = {pod["metadata"]["uid"]: pod for pod in self.store.all("pods")}
        for uid in set(self.live) - set(pods):
            self.live[uid].end()
            self.gone.append(self.live.pop(uid))
        for uid, pod in pods.items():
            name = pod["metadata"]["name"]
            live = self.live.setdefault(uid, LivePod(name, self.folder / f"{name}-{uid[:8]}", pod))
            live.advance()
            status = pod_status_of(live.trouble, 3 if live.trouble else 0, 1, live.ready)
            if status != pod["status"]:
                self.store.set_status("pods", name, pod["metadata"]["namespace"], status)

    def busy(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._looked_at > _POLL_SECONDS

    def port_of(self, pod: Object) -> int:
        """Where a pod listens."""
        live = self.live.get(pod["metadata"]["uid"])
        return live.port if live else 0


class LiveCluster(FakeCluster):
    """The cluster, as a context manager; see the module.

    Args:
        folder: for everything that it writes.
        prometheus: which scrapes every predictor; started and stopped by the caller.

    Attributes:
        url: base URL of the gateway.
    """

    def __init__(self, folder: Path, prometheus: PrometheusServer) -> None:
        (folder / "pods").mkdir(parents=True)
        super().__init__(folder, runtimes=(), workloads=lambda store: LiveWorkloads(store, folder=folder / "pods"))
        for path in ("predictor-runtime.yaml", "triton-runtime.yaml"):
            self.store.create("clusterservingruntimes", yaml.safe_load((MANIFESTS / path).read_text()), "installer")
        self._prometheus, self._names = prometheus, folder / "names.json"
        self._names.write_text("{}")
        (folder / "path").mkdir()
        (folder / "path" / "sitecustomize.py").write_text(_NAMES)
        self.environment = {
            "KUBECONFIG": str(self.kubeconfig),
            "CLUSTER_NAMES": str(self._names),
            "PYTHONPATH": str(folder / "path"),
            "MODELYARD_PROMETHEUS_URL": prometheus.url,
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._proxy = Proxy(folder / "gateway", port)
        self._applied: list[Route] = []
        self._over = threading.Event()
        self._gateway = threading.Thread(target=self._keep_up, daemon=True)
        self.problems: list[str] = []

    def __enter__(self) -> "LiveCluster":
        super().__enter__()
        self._proxy.start()
        self._gateway.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        self._gateway.join()
        try:
            super().__exit__(*details)
        finally:
            self._proxy.stop()
            pods = [*self.workloads.live.values(), *self.workloads.gone]
            for pod in pods:
                pod.end()
            for pod in pods:
                pod.wait()

    def _keep_up(self) -> None:
        """The gateway, the names and what is scraped follow the objects."""
        scraped: dict[str, dict[str, str]] = {}
        while not self._over.wait(_POLL_SECONDS):
            with self.lock:
                routes, names, targets = self._routes(), self._leads(), self._targets()
            if names != json.loads(self._names.read_text()):
                partial = self._names.with_suffix(".new")
                partial.write_text(json.dumps(names))
                partial.replace(self._names)
            if targets != scraped:
                self._prometheus.scrape(targets)
                scraped = targets
            if routes != self._applied:
                try:
                    self._proxy.apply(routes)
                    self._applied = routes
                except ModelyardError as error:
                    self.problems.append(str(error))

    def _routes(self) -> list[Route]:
        found = []
        for service in self.store.all("inferenceservices"):
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            route = self.store.get("httproutes", name, namespace)
            if route is None:
                continue
            backends = []
            for backend in route["spec"]["rules"][0]["backendRefs"]:
                for pod in self._pods_behind(backend["name"], namespace)[:1]:
                    backends.append(
                        (Backend(pod["metadata"]["name"], self.workloads.port_of(pod)), backend.get("weight", 1), pod)
                    )
            if backends:
                model_name = backends[0][2]["metadata"]["annotations"]["modelyard.dev/model-name"]
                canary = backends[1] if len(backends) > 1 else None
                found.append(Route(model_name, backends[0][0], canary and canary[0], canary[1] if canary else 0))
        return found

    def _pods_behind(self, service: str, namespace: str) -> list[Object]:
        exposed = self.store.get("services", service, namespace)
        pods = self.store.all("pods", namespace, exposed["spec"]["selector"]) if exposed else []
        return [pod for pod in pods if is_ready(pod)]

    def _leads(self) -> dict[str, int]:
        return {
            f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc": self.workloads.port_of(pod)
            for service in self.store.all("services")
            for pod in self._pods_behind(service["metadata"]["name"], service["metadata"]["namespace"])[:1]
        }

    def _targets(self) -> dict[str, dict[str, str]]:
        return {
            f"127.0.0.1:{self.workloads.port_of(pod)}": {
                "namespace": pod["metadata"]["namespace"],
                "pod": pod["metadata"]["name"],
            }
            for pod in self.store.all("pods")
            if is_ready(pod)
        }


def _container_of(manifest: str) -> dict[str, Any]:
    container: dict[str, Any] = yaml.safe_load((MANIFESTS / manifest).read_text())["spec"]["container"]
    return container


def _command(container: dict[str, Any]) -> list[str]:
    return [sys.executable, *container["command"][1:]]


def _downward(container: dict[str, Any], annotations: dict[str, str]) -> dict[str, str]:
    """What the pod's annotations say, by the variables that the manifest names for them."""
    found = {}
    for each in container["env"]:
        if path := each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"):
            found[each["name"]] = annotations.get(path.removeprefix("metadata.annotations['").removesuffix("']"), "")
    return found
