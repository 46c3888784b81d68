"""A job on a cluster: a TrainJob of Kubeflow Trainer, through the Kubeflow SDK.

Its name follows from the training, so a step that was killed finds the job that it had started. The pods run this package's own
image and ``node``; nothing is installed in them. What they are told is no secret: credentials come from their service account,
or from the Secret ``modelyard-storage``, which is mounted as files because Kubeflow Trainer lets nobody add a Secret's
variables to its own container.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.images import image as own_image
from modelyard.components.training.distributed.job import JobState
from modelyard.components.training.distributed.node import MOUNTED_CREDENTIALS
from modelyard.components.training.distributed.placement import NodePlacement

Answer = TypeVar("Answer")

STORAGE_SECRET = "modelyard-storage"  # noqa: S105
# What a node needs to know of the step's own configuration; none of it is a secret.
PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "GOOGLE_CLOUD_PROJECT",
    "STORAGE_EMULATOR_HOST",
)
_PATIENCE_SECONDS = 300.0
_GONE_SECONDS = 180.0
_SHOWN_LINES = 60
_SHOWN_EVENTS = 10
_MAX_FAILURES = {429, 500, 502, 503, 504}


class ClusterJob:
    """See ``job.Job``.

    Args:
        name: of the job; the same for the same training.
        trainer: ``xgboost`` or ``torch``.
        nodes: how many.
        device: ``cpu`` or ``cuda``.
        folder: URI of the job's folder in an object store.
        model_name: for a label.
        placement: where and with what the nodes run.
        timeout_seconds: after which Kubernetes itself ends the job.
    """

    def __init__(
        self,
        name: str,
        trainer: str,
        nodes: int,
        device: str,
        folder: str,
        model_name: str,
        placement: NodePlacement,
        timeout_seconds: int,
    ) -> None:
        self.name = name
        self._trainer, self._nodes, self._device, self._folder = trainer, nodes, device, folder
        self._model_name = model_name
        self._placement = placement
        self._timeout_seconds = timeout_seconds
        self._connected: Any = None

    @property
    def _client(self) -> Any:
        if self._connected is None:
            self._connected = _patiently(lambda: _connect(self._placement.namespace), "the cluster")
        return self._connected

    def start(self) -> None:
        found = self._find()
        if found is not None and found.status == "Failed":
            print(f"TrainJob {self.name} had failed: it is started anew, from its last checkpoint.", flush=True)
            self.stop()
            found = None
        if found is not None:
            print(f"TrainJob {self.name} was started by an earlier attempt: waiting for it.", flush=True)
            return
        self._create()
        print(f"TrainJob {self.name} is started on {self._nodes} nodes.", flush=True)

    def state(self) -> JobState:
        found = self._find()
        if found is None:
            return JobState("failed", f"TrainJob {self.name} was deleted by someone else; run the step again to go on")
        if found.status == "Failed":
            return JobState("failed", self._why(found))
        if found.status == "Complete":
            return JobState("completed")
        waiting = [step.name for step in found.steps if step.status == "Pending"]
        begun = sum(step.status in ("Running", "Succeeded", "Failed") for step in found.steps)
        age = (datetime.now(UTC) - found.creation_timestamp).total_seconds()
        if begun < self._nodes and age > self._placement.ready_seconds:
            reason = f"{self._nodes - begun} of {self._nodes} nodes ({', '.join(waiting) or 'without a pod'}) did not start in "
            reason += f"{self._placement.ready_seconds} s\n{self._events()}"
            self.stop()
            return JobState("failed", reason)
        return JobState("running")

    def stop(self) -> None:
        def delete() -> None:
            try:
                self._client.delete_job(self.name)
            except RuntimeError as error:
                if _status(error) != 404:
                    raise

        _patiently(delete, f"TrainJob {self.name}")
        ends = time.monotonic() + _GONE_SECONDS
        while self._find() is not None:
            if time.monotonic() > ends:
                raise NotAvailable(f"TrainJob {self.name} is deleted but not gone: see what holds it (its finalizers)")
            time.sleep(1)

    def _create(self) -> None:
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options.common import Name
        from kubeflow.trainer.options.kubernetes import ActiveDeadlineSeconds, Labels, TrainerCommand

        runtime = self._placement.runtime or f"{self._trainer}-distributed"
        resources: dict[str, Any] = {"cpu": self._placement.cpu, "memory": self._placement.memory}
        if self._device == "cuda":
            resources["gpu"] = 1
        trainer = CustomTrainerContainer(
            image=self._placement.image or own_image("torch" if self._trainer == "torch" else "train"),
            num_nodes=self._nodes,
            resources_per_node=resources,
            env={name: os.environ[name] for name in PASSED_ON if os.environ.get(name)} | {"PYTHONUNBUFFERED": "1"},
        )
        options = [
            Name(self.name),
            Labels({"app.kubernetes.io/managed-by": "modelyard", "modelyard.dev/model": _label(self._model_name)}),
            TrainerCommand(["python", "-m", "modelyard.components.training.distributed.node", self._folder]),
            ActiveDeadlineSeconds(self._timeout_seconds),
            self._patch(),
        ]

        def create() -> None:
            try:
                self._client.train(runtime=runtime, trainer=trainer, options=options)
            except RuntimeError as error:
                if _status(error) == 404:
                    raise NotAvailable(
                        f"the cluster has no runtime {runtime}: install Kubeflow Trainer with its runtimes, or name another in "
                        f"cluster.runtime ({error})"
                    ) from error
                # An answer that was lost, or another attempt of this very step: the job is there.
                if _status(error) != 409:
                    raise

        _patiently(create, f"TrainJob {self.name}")

    def _patch(self) -> Any:
        from kubeflow.trainer.options import kubernetes as patches

        placement = self._placement
        volume = "modelyard-storage"
        pod = patches.PodSpecPatch(
            service_account_name=placement.service_account or None,
            volumes=[{"name": volume, "secret": {"secretName": STORAGE_SECRET, "optional": True}}],
            containers=[
                patches.ContainerPatch(
                    name="node",
                    volume_mounts=[{"name": volume, "mountPath": str(MOUNTED_CREDENTIALS), "readOnly": True}],
                    security_context={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                )
            ],
            security_context={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            node_selector=placement.node_selector or None,
            tolerations=placement.tolerations or None,
        )
        job = patches.ReplicatedJobPatch(
            name="node",
            template=patches.JobTemplatePatch(spec=patches.JobSpecPatch(template=patches.PodTemplatePatch(spec=pod))),
        )
        return patches.RuntimePatch(
            patches.TrainingRuntimeSpecPatch(
                template=patches.JobSetTemplatePatch(spec=patches.JobSetSpecPatch(replicated_jobs=[job]))
            )
        )

    def _find(self) -> Any:
        """The job as the SDK shows it; None if there is none."""

        def get() -> Any:
            try:
                return self._client.get_job(self.name)
            except RuntimeError as error:
                if _status(error) == 404 and "TrainJob" in str(error):
                    return None
                raise

        return _patiently(get, f"TrainJob {self.name}")

    def _why(self, found: Any) -> str:
        failed = [step for step in found.steps if step.status == "Failed"] or found.steps
        parts = []
        for step in failed:
            try:
                lines = list(self._client.get_job_logs(self.name, step=step.name))
            except RuntimeError as error:
                lines = [f"(its log cannot be read: {error})"]
            parts += [f"[{step.name}] {line}" for line in lines[-_SHOWN_LINES:] or ["(it left no log)"]]
        return "\n".join([*parts, self._events()])

    def _events(self) -> str:
        try:
            events = self._client.get_job_events(self.name)
        except (RuntimeError, OSError) as error:
            return f"(its events cannot be read: {error})"
        shown = [f"{event.involved_object_name}: {event.reason}: {event.message}" for event in events[-_SHOWN_EVENTS:]]
        return "\n".join(shown) or "the cluster reports no events"


def _connect(namespace: str) -> Any:
    from kubeflow.trainer import TrainerClient
    from kubernetes.config import ConfigException

    from kubeflow.common.types import KubernetesBackendConfig  # isort: skip

    # It warns of a ConfigMap that says nothing but a version.
    logging.getLogger("kubeflow.trainer").setLevel(logging.ERROR)
    try:
        return TrainerClient(backend_config=KubernetesBackendConfig(namespace=namespace or None))
    except ConfigException as error:
        raise NotAvailable(f"there is no cluster: {error}. Set KUBECONFIG, or backend to local") from error


def _label(name: str) -> str:
    """``name``, which is one of a model, as a label's value."""
    return name[:63].strip("-_.")


def _status(error: BaseException) -> int:
    """Status of the API's answer that an error of the SDK comes from; 0 if there was none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(status := getattr(cause, "status", None), int):
            return status
        cause = cause.__cause__
    return 0


def _patiently(call: Callable[[], Answer], what: str) -> Answer:
    """What ``call`` gives; it is repeated for some minutes where the API server is busy or not to be reached.

    Raises:
        InvalidInput: the API server refuses the request as it is.
        NotAvailable: it does not let us in, or gave no useful answer for that long.
    """
    from urllib3.exceptions import HTTPError

    ends = time.monotonic() + _PATIENCE_SECONDS
    wait = 0.5
    while True:
        try:
            return call()
        except (RuntimeError, TimeoutError, HTTPError, OSError) as error:
            if isinstance(error, NotAvailable):
                raise
            status = _status(error)
            if status in (401, 403):
                raise NotAvailable(f"{what}: the cluster does not let this account in ({_reason(error)})") from error
            if status in (400, 422):
                raise InvalidInput("cluster", what, f"Kubernetes refuses it: {_reason(error)}") from error
            if (status and status not in _MAX_FAILURES) or time.monotonic() > ends:
                raise NotAvailable(f"{what}: the API server does not answer as it should ({_reason(error)})") from error
            time.sleep(max(_asked_to_wait(error), wait * (0.5 + random.random())))  # noqa: S311
            wait = min(wait * 2, 15)


def _asked_to_wait(error: BaseException) -> float:
    cause: BaseException | None = error
    while cause is not None:
        headers = getattr(cause, "headers", None)
        if headers is not None:
            value = str(headers.get("Retry-After", ""))
            return min(float(value), 60) if value.isdigit() else 0
        cause = cause.__cause__
    return 0


def _reason(error: BaseException) -> str:
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    body = getattr(last, "body", None)
    return f"{error}; {' '.join(str(body or last).split())[:500]}"
