"""A Kubernetes API with Kubeflow Trainer's objects, over HTTP by kmock; the test plays the controller.

``with FakeTrainer(folder) as cluster``: ``cluster.kubeconfig`` leads to it, ``cluster.jobs`` are the TrainJobs as they were
written, and ``run``, ``complete``, ``fail`` give them pods and status. A TrainJob is refused as Trainer's webhooks refuse it.
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp.web
import kmock
from kubeflow_trainer_api import models

Object = dict[str, Any]
NAMESPACE = "training"
_JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
_RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/"
# For ``refuse``, in a status's place: no answer.
SILENCE = -1
_RESERVED = re.compile(r"DMLC_|PET_")


# The last has a trainer that takes the place of ours, and the one before is none of Trainer's.
_KNOWN_RUNTIMES = ("xgboost-distributed", "torch-distributed", "unlabelled", "torchtune-llama")


class _Handler(kmock.RawHandler):
    answer: Any = None

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        return await self.answer(request)


class FakeTrainer:
    """See the module.

    Attributes:
        kubeconfig: path of the file.
        jobs: TrainJobs by name.
        deleted: names of deleted ones, in order.
        logs: log of each pod by its name.
        requests: every request, method and path.
        lingering: whether a deleted job stays, as one does whose pods are not gone yet.
    """

    def __init__(self, folder: Path, runtimes: tuple[str, ...] = _KNOWN_RUNTIMES) -> None:
        self.kubeconfig = folder / "kubeconfig.json"
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, list[Object]] = {}
        self.logs: dict[str, str] = {}
        self.events: list[Object] = []
        self.deleted: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.refusals: list[tuple[str, int, dict[str, str]]] = []
        self.lingering = False
        self.on_create: Callable[[Object], None] | None = None
        self.on_delete: Callable[[Object], None] | None = None
        self._runtimes = runtimes
        self._lock = threading.RLock()
        self._started, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "FakeTrainer":
        self._thread.start()
        assert self._started.wait(20)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}}],
            "current-context": "fake",
        }
        self.kubeconfig.write_text(json.dumps(content))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(20)

    def refuse(self, method: str, status: int, times: int = 1, **headers: str) -> None:
        """The next requests of a method about TrainJobs meet with a status.

        0 is a connection that is cut after the work is done, ``SILENCE`` is no answer.
        """
        self.refusals += [(method, status, headers)] * times

    def run(self, name: str, phases: list[str]) -> None:
        """Gives the job a pod for each phase."""
        with self._lock:
            self.pods[name] = [_pod(name, rank, phase) for rank, phase in enumerate(phases)]

    def complete(self, name: str) -> None:
        """The job is done."""
        self._conclude(name, "Complete", "Succeeded")

    def fail(self, name: str, rank: int, log: str) -> None:
        """A node failed, having said ``log``."""
        with self._lock:
            self.logs[f"{name}-node-0-{rank}-x"] = log
            self._conclude(name, "Failed", "Succeeded")
            self.pods[name][rank] = _pod(name, rank, "Failed")

    def _conclude(self, name: str, condition: str, phase: str) -> None:
        with self._lock:
            job = self.jobs[name]
            self.run(name, [phase] * job["spec"]["trainer"]["numNodes"])
            told = {"type": condition, "status": "True", "reason": "Fake", "message": "", "lastTransitionTime": _now()}
            job["status"] = {"conditions": [told]}

    async def _serve(self) -> None:
        handler = _Handler()
        handler.answer = self._answer
        async with handler, kmock.Server(handler) as server:
            self.url = str(server.url).rstrip("/")
            self._started.set()
            while not self._stopped.is_set():
                await asyncio.sleep(0.02)

    async def _answer(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        method, path = request.method.value.upper(), request.url.path
        self.requests.append((method, path))
        if path.startswith(_JOBS):
            for refusal in self.refusals:
                if refusal[0] == method:
                    self.refusals.remove(refusal)
                    if refusal[1] == SILENCE:
                        while not self._stopped.is_set():
                            await asyncio.sleep(0.05)
                    if not refusal[1]:
                        with self._lock:
                            self._work(method, path, request)
                        request._raw_request.transport.abort()
                        return aiohttp.web.Response()
                    return _failure(refusal[1], "told to refuse", refusal[2])
        with self._lock:
            return self._work(method, path, request)

    def _work(self, method: str, path: str, request: kmock.Request) -> aiohttp.web.StreamResponse:
        name = path.rsplit("/", 1)[1]
        if path == _JOBS and method == "POST":
            return self._create(json.loads(request.body))
        if path.startswith(_JOBS):
            if name not in self.jobs:
                return _failure(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
            if method == "DELETE":
                if self.on_delete is not None:
                    self.on_delete(self.jobs[name])
                self.deleted.append(name)
                if not self.lingering:
                    del self.jobs[name]
                    self.pods.pop(name, None)
                return aiohttp.web.json_response({"kind": "Status", "status": "Success"})
            return aiohttp.web.json_response(self.jobs[name])
        if path.startswith(_RUNTIMES) and name in self._runtimes:
            return aiohttp.web.json_response(_runtime(name))
        if path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            wanted = re.search(r"jobset-name=([^,]+)", request.params["labelSelector"])
            items = self.pods.get(wanted.group(1), []) if wanted else []
            return aiohttp.web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
        if path.endswith("/log"):
            return aiohttp.web.Response(text=self.logs.get(path.split("/")[-2], ""))
        if path == f"/api/v1/namespaces/{NAMESPACE}/events":
            return aiohttp.web.json_response({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self.events})
        return _failure(404, f"{path} not found")

    def _create(self, job: Object) -> aiohttp.web.StreamResponse:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return _failure(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        wrong = _wrong(job)
        if wrong:
            return _failure(422, wrong)
        job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": _now(), "uid": "0"}
        self.jobs[name] = job
        if self.on_create is not None:
            self.on_create(job)
        return aiohttp.web.json_response(job, status=201)


def _wrong(job: Object) -> str:
    """What Trainer's schema and webhooks say against it."""
    known = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert known is not None
    if known.to_dict() != job:
        return "unknown fields"
    for variable in job["spec"]["trainer"].get("env", []):
        if _RESERVED.match(variable["name"]):
            return f"{variable['name']} is reserved"
    for patch in job["spec"].get("runtimePatches", []):
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            for container in replicated["template"]["spec"]["template"]["spec"].get("containers", []):
                if container.get("env"):
                    return "must not have envs for the dataset-initializer, model-initializer, node containers"
    return ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _failure(status: int, message: str, headers: dict[str, str] | None = None) -> aiohttp.web.StreamResponse:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": message}
    return aiohttp.web.json_response(told, status=status, headers=headers)


def _pod(job: str, rank: int, phase: str) -> Object:
    return {
        "metadata": {
            "name": f"{job}-node-0-{rank}-x",
            "namespace": NAMESPACE,
            "creationTimestamp": _now(),
            "labels": {
                "jobset.sigs.k8s.io/jobset-name": job,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(rank),
            },
        },
        "spec": {"containers": [{"name": "node", "image": "an-image"}]},
        "status": {"phase": phase},
    }


def _runtime(name: str) -> Object:
    framework = name.partition("-")[0]
    labels = {} if name == "unlabelled" else {"trainer.kubeflow.org/framework": framework}
    container = {"name": "node", "image": "an-image"}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "mlPolicy": {"numNodes": 1, framework: {}},
            "template": {
                "spec": {
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {
                                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                                "spec": {"template": {"spec": {"containers": [container]}}},
                            },
                        }
                    ]
                }
            },
        },
    }
