"""One model's InferenceService: read, written over what was read, and waited for."""

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.kserve.api import EVENT, INFERENCE_SERVICE, POD, Cluster, FieldsTaken, Object, Stale
from modelyard.components.serving.kserve.names import DIGEST_LABEL, FIELD_MANAGER, digest_label, identity, service_name
from modelyard.components.serving.kserve.notes import Memory, Version
from modelyard.components.serving.kserve.placement import NONE
from modelyard.components.serving.kserve.predictors import AUTOSCALER, SCALING, inference_service, on_trial
from modelyard.components.serving.target import Arm, ServedModel, TargetChanged

OWNER_LABEL = "serving.kserve.io/inferenceservice"
_ATTEMPTS = 30
_NOT_RECONCILED = "ReconcileFailed"


@dataclass(frozen=True)
class SeenArm:
    """An arm as it is served, and the name of what runs it: a Deployment, or a revision."""

    arm: Arm
    workload: str = ""


@dataclass(frozen=True)
class Seen:
    """What is served.

    Attributes:
        stable: the version in charge.
        canary: the version on trial.
        settled: whether nothing is left to be undone of a trial that ended.
    """

    stable: SeenArm | None = None
    canary: SeenArm | None = None
    settled: bool = True

    @property
    def stable_digest(self) -> str:
        return self.stable.arm.model.digest if self.stable else ""

    @property
    def canary_digest(self) -> str:
        return self.canary.arm.model.digest if self.canary else ""


class Service:
    """The InferenceService of a model.

    Args:
        cluster: where it is.
        model_name: the served model.
        ready_seconds: in which a version must become ready.
        obey_seconds: in which a change of shares must be in force.
        poll_seconds: between two looks.
    """

    def __init__(
        self, cluster: Cluster, model_name: str, *, ready_seconds: float, obey_seconds: float, poll_seconds: float
    ) -> None:
        self.cluster, self.model_name, self.name = cluster, model_name, service_name(model_name)
        self.ready_seconds, self.obey_seconds = ready_seconds, obey_seconds
        self._poll_seconds = poll_seconds

    def live(self) -> Object | None:
        """The object as it is now; None if there is none, or it is being deleted.

        Raises:
            TargetChanged: an object of that name is there which is not this model's.
        """
        found = self.cluster.get(INFERENCE_SERVICE, self.name)
        if found is None:
            return None
        owner = identity(found["spec"]["predictor"].get("annotations"))[0]
        if owner != self.model_name:
            what = f"serves the model {owner!r}" if owner else "was not made by this package, or lost its annotations"
            raise TargetChanged(
                f"InferenceService {self.cluster.namespace}/{self.name} {what}: take it away, or serve {self.model_name!r} "
                f"in another namespace"
            )
        return None if found["metadata"].get("deletionTimestamp") else found

    def edit(self, decide: Callable[[Object | None], Object | None], *, ours: str = "") -> Object | None:
        """Applies what ``decide`` makes of the object as it is, and returns the object; None from it changes nothing.

        Scaling that somebody else has set stops nothing: it is left to them, but for replicas that are fewer than needed.

        Args:
            decide: called with the object as it was just read; again if somebody was faster.
            ours: path of a field that is taken back if somebody else has set it; what else they set is left as it is then.

        Raises:
            TargetChanged: somebody else has set fields of ours, the message names both; or made the object at the same moment.
        """
        for _ in range(_ATTEMPTS):
            live = self.live()
            if live is None:
                self.await_deleted()
            wanted = decide(live)
            if wanted is None:
                return live
            if live is not None:
                wanted["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
            try:
                applied = self._apply(wanted, live, ours)
            except Stale:
                self._pause()
                continue
            if live is None and applied["metadata"].get("generation", 1) > 1:
                # Applied over nothing it would be the first.
                raise TargetChanged(f"somebody else made InferenceService {self.name} at the same moment: end that trial first")
            return applied
        raise NotAvailable(f"InferenceService {self.name} is changed by others all the time")

    def _apply(self, wanted: Object, live: Object | None, ours: str) -> Object:
        try:
            return self.cluster.apply(INFERENCE_SERVICE, wanted)
        except FieldsTaken as taken:
            if live is None or not (ours or all(_is_scaling(field) for field in taken.fields)):
                told = f"InferenceService {self.name}: {taken}. Put that back as it was"
                raise TargetChanged(told) from taken
            predictor = wanted["spec"]["predictor"]
            # While a trial goes on, and for a version that comes into charge, they are counted; alone it may have any.
            least = 0 if ours else predictor.get("minReplicas", 0)
            for field in taken.fields:
                if field != ours:
                    _leave(wanted, live, field)
            predictor["minReplicas"] = max(predictor.get("minReplicas", 0), least)
            if "maxReplicas" in predictor:
                predictor["maxReplicas"] = max(predictor["maxReplicas"], predictor["minReplicas"])
            return self.cluster.apply(INFERENCE_SERVICE, wanted, force=True)

    def remove(self, digest: str) -> None:
        """Takes the service away, if this version is still the only one in it.

        Raises:
            TargetChanged: it is not.
        """
        for _ in range(_ATTEMPTS):
            live = self.live()
            if live is None:
                return self.await_deleted()
            if model_of(live["spec"]["predictor"]).digest != digest or live["spec"].get("canary"):
                raise TargetChanged(f"somebody else changed the versions of {self.model_name!r} meanwhile")
            try:
                self.cluster.delete(INFERENCE_SERVICE, live)
            except Stale:
                self._pause()
        raise NotAvailable(f"InferenceService {self.name} is changed by others all the time")

    def _pause(self) -> None:
        time.sleep(min(self._poll_seconds, 0.2))

    def await_deleted(self) -> None:
        """Waits until an object that is being deleted is gone."""

        def gone() -> bool:
            found = self.cluster.get(INFERENCE_SERVICE, self.name)
            return found is None or not found["metadata"].get("deletionTimestamp")

        self.wait(gone, f"InferenceService {self.name} to be deleted", self.obey_seconds)

    def manifest(self, mode: str, predictor: Object, **trial: Any) -> Object:
        """See ``inference_service``."""
        return inference_service(self.name, self.cluster.namespace, mode, self.model_name, predictor, **trial)

    def wait(self, so: Callable[[], bool], what: str, seconds: float, why: Callable[[], str] = str) -> None:
        """Waits until something is so.

        Raises:
            NotAvailable: it is not in time.
        """
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                told = why()
                raise NotAvailable(f"waited {seconds:.0f} s in vain for {what}" + (f": {told}" if told else ""))
            time.sleep(self._poll_seconds)

    def pods(self, digest: str) -> list[Object]:
        """The pods of a version."""
        return self.cluster.select(POD, {OWNER_LABEL: self.name, DIGEST_LABEL: digest_label(digest)})

    def refusal(self, live: Object) -> str:
        """Why KServe makes nothing of what was written last, as far as it says so; it goes on trying all the time.

        A predictor that it cannot run makes a condition, one whose runtime does not fit is told in the state of the model, and
        of one on trial in Standard mode it leaves nothing but an event.
        """
        status = live.get("status") or {}
        for condition in status.get("conditions") or ():
            told = str(condition.get("message") or "").strip()
            if told and (condition["type"], condition.get("reason")) == ("PredictorReady", _NOT_RECONCILED):
                return f"KServe does not start it: {told}"
        model = status.get("modelStatus") or {}
        told = str((model.get("lastFailureInfo") or {}).get("message") or "").strip()
        if told and model.get("transitionStatus") == "InvalidSpec":
            runtime = live["spec"]["predictor"].get("model", {}).get("runtime", "")
            return f"KServe does not start it: {told}" + (f" (runtime {runtime!r})" if runtime else "")
        told = self._last_error(live)
        return f"KServe does not start it: {told}" if told else ""

    def _last_error(self, live: Object) -> str:
        """The newest error that KServe had with the service since we wrote it last, so not with a version before this one."""
        metadata = live["metadata"]
        wanted = {"involvedObject.uid": metadata["uid"], "reason": "InternalError", "type": "Warning"}
        found: list[Object] = []
        # Why it takes long is worth a look, but not the wait.
        with suppress(NotAvailable):
            found = self.cluster.select(EVENT, fields=wanted)
        newest = max(found, key=_last_time, default=None)
        return str(newest.get("message") or "").strip() if newest and _last_time(newest) >= _written_at(metadata) else ""


def _last_time(event: Object) -> str:
    """When an event happened last, to the second; newer clients of the API say it elsewhere than older ones."""
    repeated = (event.get("series") or {}).get("lastObservedTime")
    found = repeated or event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(found or "")[: len("2006-01-02T15:04:05")]


def _written_at(metadata: Object) -> str:
    """When we changed an object last, by the API server's clock, to the second."""
    ours = [
        str(entry.get("time") or "")
        for entry in metadata.get("managedFields") or ()
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
    ]
    found = max(ours, default="") or str(metadata.get("creationTimestamp") or "")
    return found[: len("2006-01-02T15:04:05")]


def _is_scaling(field: str) -> bool:
    above, name = "spec.predictor.", field.split(".")[2:3]
    return field.startswith(above) and name[0].partition("[")[0] in SCALING


def adopt_scaling(version: Version, live: Object) -> Version:
    """A version in charge alone, with what the object says of its replicas now: somebody may have changed that by hand."""
    predictor, ours = live["spec"]["predictor"], _our_fields(live)
    theirs = {key: copy.deepcopy(predictor[key]) for key in SCALING if key in predictor and f"f:{key}" not in ours}
    return replace(version, predictor={**version.predictor, **theirs})


def _our_fields(live: Object) -> dict[str, Any]:
    """The fields of the predictor that are ours, as Kubernetes keeps them."""
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            ours: dict[str, Any] = entry["fieldsV1"].get("f:spec", {}).get("f:predictor", {})
            return ours
    return {}


def _leave(wanted: Object, live: Object, path: str) -> None:
    """Gives the field at a path the value it has now. Names of fields may have dots in them, too."""
    for name in [*wanted]:
        if path == name:
            if name in live:
                wanted[name] = live[name]
            else:
                del wanted[name]
        elif path.startswith(f"{name}[") and name in live:
            # An entry of a list: the list is left as a whole.
            wanted[name] = live[name]
        elif path.startswith(f"{name}.") and isinstance(wanted[name], dict) and isinstance(live.get(name), dict):
            _leave(wanted[name], live[name], path.removeprefix(f"{name}."))


def model_of(predictor: Object, annotations: dict[str, str] | None = None) -> ServedModel:
    """Which version a predictor runs."""
    _, version, digest = identity(annotations if annotations is not None else predictor.get("annotations"))
    return ServedModel(version, digest, predictor.get("model", {}).get("storageUri", ""))


def recover(live: Object, memory: Memory, role: str = "stable") -> Version:
    """The version in charge or on trial and how it is run: from the notes, else from the fields of the object that are ours."""
    predictor = live["spec"]["predictor"]
    trial = live["spec"].get("canary")
    if role == "canary" and trial:
        predictor = copy.deepcopy(trial[0]["predictor"])
        predictor["model"].pop("name", None)
        if memory.stable is not None:
            predictor = _scaled_like(memory.stable.predictor, predictor)
    model = model_of(predictor)
    known = memory.find(model.digest)
    if known is not None:
        return known
    # What is on trial in Standard mode is one list, and as a whole ours or not.
    if not (role == "canary" and trial):
        predictor = _extract(predictor, _our_fields(live))
    return Version(model, {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"})


def _scaled_like(stable: Object, trial: Object) -> Object:
    """A predictor on trial as it is in charge, with the scaling that it has to go without on trial."""
    kept = on_trial(stable, 0)
    scaling = {name: value for name, value in stable.items() if name not in kept or name == "minReplicas"}
    annotations = {**trial["annotations"], AUTOSCALER: stable["annotations"].get(AUTOSCALER, NONE)}
    trial = {name: value for name, value in trial.items() if name != "minReplicas"}
    return {**trial, **copy.deepcopy(scaling), "annotations": annotations}


def _extract(value: Any, fields: dict[str, Any]) -> Any:
    named = {name[2:]: inner for name, inner in fields.items() if name.startswith("f:")}
    if not named or not isinstance(value, dict):
        return value
    return {name: _extract(value[name], inner) for name, inner in named.items() if name in value}


def refuse_local(uri: str) -> None:
    """Checks that a cluster can fetch a version.

    Raises:
        InvalidInput: it is kept on this machine.
    """
    if not uri.startswith(("s3://", "gs://")):
        raise InvalidInput(
            "uri",
            uri,
            "a cluster fetches models from s3:// or gs://: publish it with publish_model, or set MODELYARD_MODEL_STORE",
        )
