"""A job on a cluster: a TrainJob of Kubeflow Trainer, through the Kubeflow SDK.

Its name follows from the training, so a step that was killed finds the job that it had started. The pods run this package's own
image and ``node``; nothing is installed in them. What they are told is no secret: credentials come from their service account,
or from the Secret ``modelyard-storage``, which is mounted as files because Kubeflow Trainer lets nobody add a Secret's
variables to its own container.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
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
# To connect, and between two pieces of an answer; the SDK itself sets none where it writes.
_TIMEOUT_SECONDS = (5.0, 15.0)
# A pod that is asked to end has half a minute as a rule, in which its job must be deleted.
_LOOK_SECONDS = 0.5
_GONE_SECONDS = 180.0
_SHOWN_LINES = 60
_SHOWN_EVENTS = 10
_PASSING = {429, 500, 502, 503, 504}


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
        stop_if_asked: raises if the step was asked to stop; ``start`` and ``state`` call it while they wait for the API server.
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
        stop_if_asked: Callable[[], None],
    ) -> None:
        self.name = name
        self._trainer, self._nodes, self._device, self._folder = trainer, nodes, device, folder
        self._model_name = model_name
        self._placement = placement
        self._timeout_seconds = timeout_seconds
        self._stop_if_asked = stop_if_asked
        self._missing_since: float | None = None

    @cached_property
    def _client(self) -> Any:
        return _connect(self._placement.namespace)

    def start(self) -> None:
        found = self._find(self._stop_if_asked)
        if found is not None and found.status in ("Failed", "Complete"):
            ended = "had failed" if found.status == "Failed" else "was complete, but its result is gone"
            print(f"TrainJob {self.name} {ended}: it is started anew, from its last checkpoint.", flush=True)
            self._remove(self._stop_if_asked)
            found = None
        if found is not None:
            print(f"TrainJob {self.name} was started by an earlier attempt: waiting for it.", flush=True)
            return
        self._create()
        print(f"TrainJob {self.name} is started on {self._nodes} nodes.", flush=True)

    def state(self) -> JobState:
        found = self._find(self._stop_if_asked)
        if found is None:
            return JobState("failed", f"TrainJob {self.name} was deleted by someone else; run the step again to go on")
        if found.status == "Failed":
            return JobState("failed", self._why(found))
        if found.status == "Complete":
            return JobState("completed")
        waiting = [step.name for step in found.steps if step.status == "Pending"]
        begun = sum(step.status in ("Running", "Succeeded", "Failed") for step in found.steps)
        # Counted from when a node began to be missing, for one may be lost, and be replaced, long after the job's start.
        if begun >= self._nodes:
            self._missing_since = None
            return JobState("running")
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since > self._placement.ready_seconds:
            reason = f"{self._nodes - begun} of {self._nodes} nodes ({', '.join(waiting) or 'without a pod'}) did not start in "
            reason += f"{self._placement.ready_seconds} s\n{self._events()}"
            self._remove(self._stop_if_asked)
            return JobState("failed", reason)
        return JobState("running")

    def stop(self) -> None:
        # Also what is done when the step was asked to stop: it must not give up because of that.
        self._remove(_go_on)

    def _remove(self, stop_if_asked: Callable[[], None]) -> None:
        def delete() -> None:
            try:
                self._client.delete_job(self.name)
            except RuntimeError as error:
                if _status(error) != 404:
                    raise

        _patiently(delete, f"TrainJob {self.name}", stop_if_asked)
        ends = time.monotonic() + _GONE_SECONDS
        while self._find(stop_if_asked) is not None:
            if time.monotonic() > ends:
                raise NotAvailable(f"TrainJob {self.name} is deleted but not gone: see what holds it (its finalizers)")
            _wait(1, stop_if_asked)

    def _create(self) -> None:
        from kubeflow.trainer import CustomTrainerContainer, TrainerType
        from kubeflow.trainer.options.common import Name
        from kubeflow.trainer.options.kubernetes import ActiveDeadlineSeconds, Labels, TrainerCommand

        own = f"{self._trainer}-distributed"
        runtime, advice = self._placement.runtime or own, f"give one whose trainer can be replaced, such as {own}"
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
            found = self._runtime(runtime, advice)
            if found.trainer.trainer_type is not TrainerType.CUSTOM_TRAINER:
                raise InvalidInput("cluster.runtime", runtime, f"it has a trainer of its own; {advice}")
            try:
                self._client.train(runtime=found, trainer=trainer, options=options)
            except RuntimeError as error:
                # An answer that was lost, or another attempt of this very step: the job is there.
                if _status(error) != 409:
                    raise

        _patiently(create, f"TrainJob {self.name}", self._stop_if_asked)

    def _runtime(self, name: str, advice: str) -> Any:
        try:
            return self._client.get_runtime(name)
        except RuntimeError as error:
            if _status(error) == 404:
                raise NotAvailable(
                    f"the cluster has no runtime {name}: install Kubeflow Trainer with its runtimes, or name another in "
                    f"cluster.runtime ({error})"
                ) from error
            if not _status(error) and not _unreached(error):
                raise InvalidInput("cluster.runtime", name, f"{_reason(error)}; {advice}") from error
            raise

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

    def _find(self, stop_if_asked: Callable[[], None]) -> Any:
        """The job as the SDK shows it; None if there is none."""

        def get() -> Any:
            try:
                return self._client.get_job(self.name)
            except RuntimeError as error:
                if _status(error) == 404 and "TrainJob" in str(error):
                    return None
                raise

        return _patiently(get, f"TrainJob {self.name}", stop_if_asked)

    def _why(self, found: Any) -> str:
        failed = [step for step in found.steps if step.status == "Failed"] or found.steps
        parts = []
        for step in failed:
            try:
                lines = list(self._client.get_job_logs(self.name, step=step.name))
            except (RuntimeError, OSError) as error:
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
    from kubeflow.common.types import KubernetesBackendConfig
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
    from kubernetes.config import ConfigException

    class Backend(KubernetesBackend):
        """What ``TrainerClient`` goes through, with a timeout for every request."""

        def verify_backend(self) -> None:
            # What it reads, without a timeout and in a namespace of others, is a version that it does nothing with.
            _set_timeout(self.core_api.api_client.rest_client)

    try:
        return Backend(KubernetesBackendConfig(namespace=namespace or None))
    except ConfigException as error:
        raise NotAvailable(f"there is no cluster: {error}. Set KUBECONFIG, or backend to local") from error


def _set_timeout(http: Any) -> None:
    """Lets no request of a client wait for ever, nor be repeated where nobody looks whether the step was asked to stop."""
    request = http.request

    def in_time(*arguments: Any, **options: Any) -> Any:
        return request(*arguments, **{**options, "_request_timeout": options.get("_request_timeout") or _TIMEOUT_SECONDS})

    http.request = in_time
    http.pool_manager.connection_pool_kw["retries"] = 0


def _label(name: str) -> str:
    """``name``, which is one of a model, as a label's value."""
    return name[:63].strip("-_.")


def _status(error: BaseException) -> int:
    """Status of the API's answer that an error of the SDK comes from; 0 if there was none."""
    return next((status for cause in _causes(error) if isinstance(status := getattr(cause, "status", None), int)), 0)


def _go_on() -> None:
    """For what is done whether or not the step was asked to stop."""


def _wait(seconds: float, stop_if_asked: Callable[[], None]) -> None:
    ends = time.monotonic() + seconds
    stop_if_asked()
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))
        stop_if_asked()


def _patiently(call: Callable[[], Answer], what: str, stop_if_asked: Callable[[], None]) -> Answer:
    """What ``call`` gives; it is repeated for some minutes where the API server is busy or not to be reached.

    Args:
        call: asks the API server.
        what: what it asks about.
        stop_if_asked: raises in order to end the waiting.

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
        except ModelyardError:
            raise
        except (RuntimeError, HTTPError, OSError) as error:
            status = _status(error)
            if status in (401, 403):
                raise NotAvailable(f"{what}: the cluster does not let this account in ({_reason(error)})") from error
            if status in (400, 422):
                raise InvalidInput("cluster", what, f"Kubernetes refuses it: {_reason(error)}") from error
            if not (status in _PASSING or (not status and _unreached(error))) or time.monotonic() > ends:
                raise NotAvailable(f"{what}: the API server does not answer as it should ({_reason(error)})") from error
            _wait(max(_asked_to_wait(error), wait * (0.5 + random.random())), stop_if_asked)  # noqa: S311
            wait = min(wait * 2, 15)


def _unreached(error: BaseException) -> bool:
    """Whether an error of the SDK comes from the connection, and not from what was answered or is done with it."""
    from urllib3.exceptions import HTTPError

    return any(isinstance(cause, (HTTPError, ConnectionError, TimeoutError)) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _asked_to_wait(error: BaseException) -> float:
    for cause in _causes(error):
        headers = getattr(cause, "headers", None)
        if headers is not None:
            value = str(headers.get("Retry-After", ""))
            return min(float(value), 60) if value.isdigit() else 0
    return 0


def _reason(error: BaseException) -> str:
    *_, last = _causes(error)
    body = getattr(last, "body", None)
    return f"{error}; {' '.join(str(body or last).split())[:500]}"
