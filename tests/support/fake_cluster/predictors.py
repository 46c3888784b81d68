"""What KServe makes of a predictor in both modes: names, pod template, the canary's predictor, the state of the model."""

import copy
import hashlib
from typing import Any

from tests.support.fake_cluster.store import Object, Store, now
from tests.support.fake_cluster.workloads import condition_of, is_ready, with_condition

OWNER = "serving.kserve.io/inferenceservice"
KSERVE = "kserve-controller"
_NOT_IN_TEMPLATES = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "autoscaling.knative.dev/min-scale",
    "autoscaling.knative.dev/max-scale",
)
# Of a predictor: everything else is the pod's spec.
_NOT_OF_THE_POD = (
    *("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "containerConcurrency"),
    *("timeout", "canaryTrafficPercent", "logger", "batcher", "labels", "annotations", "deploymentStrategy", "model", "name"),
    *("storageUris", "storageContainerName", "workerSpec", "containers"),
)
_NOT_OF_THE_CONTAINER = ("modelFormat", "storageUri", "storage", "runtime", "runtimeVersion", "protocolVersion", "name")
DEFAULT_DOMAIN = "{name}-{namespace}.example.com"


class Refused(Exception):
    """KServe cannot make what runs a predictor; it tries again and again."""


class NoRuntime(Refused):
    """The predictor's ServingRuntime is not there."""


def service_name(service: Object, predictor: Object) -> str:
    """Name of what runs a predictor: its Deployment and Service, or its Knative service."""
    name = predictor.get("name", "")
    return "-".join(part for part in (service["metadata"]["name"], name, "predictor") if part)


def template_of(store: Store, service: Object, predictor: Object) -> Object:
    """The pod template of a predictor: metadata of the service under the predictor's own, the runtime's container merged in."""
    metadata, model = service["metadata"], predictor["model"]
    runtime = model.get("runtime", "")
    found = store.get("servingruntimes", runtime, metadata["namespace"]) or store.get("clusterservingruntimes", runtime)
    if found is None:
        raise NoRuntime(f"No ServingRuntimes or ClusterServingRuntimes with the name: {runtime}")
    annotations = {
        **found["spec"].get("annotations", {}),
        **{name: value for name, value in metadata.get("annotations", {}).items() if name not in _NOT_IN_TEMPLATES},
        **({"internal.serving.kserve.io/storage-initializer-sourceuri": model["storageUri"]} if "storageUri" in model else {}),
        **predictor.get("annotations", {}),
    }
    if predictor.get("storageContainerName"):
        annotations["internal.serving.kserve.io/storage-container-name"] = predictor["storageContainerName"]
    labels = {
        **found["spec"].get("labels", {}),
        **metadata.get("labels", {}),
        **predictor.get("labels", {}),
        OWNER: metadata["name"],
        "component": "predictor",
    }
    container = {
        **copy.deepcopy(found["spec"]["containers"][0]),
        **{name: value for name, value in model.items() if name not in _NOT_OF_THE_CONTAINER},
    }
    spec = {name: value for name, value in predictor.items() if name not in _NOT_OF_THE_POD}
    volumes = [*found["spec"].get("volumes", []), *spec.get("volumes", [])]
    if volumes:
        spec["volumes"] = list({each["name"]: each for each in volumes}.values())
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": {**spec, "containers": [container]}}


def merged_predictor(stable: Object, canary: Object, replicas: int) -> Object:
    """The canary's predictor as KServe runs it: the stable one, the canary's fields over it where they are not empty."""
    merged = _merged(stable, canary)
    for name in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
        merged.pop(name, None)
    return {**merged, "minReplicas": replicas}


def _merged(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {
            name: _merged(under[name], over[name])
            if name in under and name in over
            else copy.deepcopy(over.get(name, under.get(name)))
            for name in {**under, **over}
        }
    return copy.deepcopy(over if over not in (None, "", 0, False, [], {}) else under)


def observe_model(status: Object, pods: list[Object], *, loaded: bool, given_up: bool = False) -> None:
    """What ``status.modelStatus`` says of the latest predictor, from its pods, in place."""
    model = status.setdefault("modelStatus", {})
    model["copies"] = {"failedCopies": 0, "totalCopies": sum(is_ready(pod) for pod in pods)}
    if not pods:
        _set_model(model, "FailedToLoad" if given_up else "Pending")
        return
    failure = _failure(pods[0], "initContainerStatuses", "storage-initializer")
    if failure:
        _set_model(model, "FailedToLoad", failure)
        return
    inits = pods[0]["status"].get("initContainerStatuses", [])
    if any("running" in each["state"] for each in inits):
        _set_model(model, "Loading")
        return
    if loaded:
        _set_model(model, "Loaded")
        return
    failure = _failure(pods[0], "containerStatuses", "kserve-container")
    if failure:
        _set_model(model, "FailedToLoad", failure)
    elif pods[0]["status"].get("containerStatuses"):
        _set_model(model, "Pending")


def _failure(pod: Object, field: str, container: str) -> Object | None:
    for each in pod["status"].get(field, []):
        ended = each["state"].get("terminated") or {}
        if each["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            ended = each["lastState"]["terminated"]
        if each["name"] == container and ended.get("reason") == "Error":
            return {"reason": "ModelLoadFailed", "message": ended["message"], "exitCode": ended["exitCode"]}
    return None


def _set_model(model: Object, state: str, failure: Object | None = None) -> None:
    states = model.setdefault("states", {"activeModelState": ""})
    states["targetModelState"] = state
    transition = {"Loaded": "UpToDate", "FailedToLoad": "BlockedByFailedLoad"}.get(state, "InProgress")
    model["transitionStatus"] = transition
    if state == "Loaded":
        states["activeModelState"] = "Loaded"
    if failure:
        model["lastFailureInfo"] = failure


def refuse_spec(status: Object) -> None:
    """What status says where the service's own predictor has no runtime, in place: no condition says it."""
    model = status.setdefault("modelStatus", {})
    model.setdefault("states", {"activeModelState": ""})["targetModelState"] = "FailedToLoad"
    model["transitionStatus"] = "InvalidSpec"
    model["lastFailureInfo"] = {"reason": "RuntimeNotRecognized", "message": "Waiting for runtime to become available"}


def refuse_predictor(status: Object, refused: Refused) -> None:
    """What status says where the service's own predictor cannot be made, in place."""
    with_condition(status, "PredictorReady", "False", "ReconcileFailed", str(refused))


def record_error(store: Store, service: Object, refused: Refused) -> None:
    """The event that KServe leaves of every pass that fails; here once for each generation of the service."""
    metadata, message = service["metadata"], str(refused)
    digest = hashlib.sha256(f"{metadata['uid']}/{metadata['generation']}/{message}".encode()).hexdigest()[:16]
    name, time = f"{metadata['name']}.{digest}", now()
    if store.get("events", name, metadata["namespace"]) is not None:
        return
    involved = {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
    }
    event = {
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": involved,
        "type": "Warning",
        "reason": "InternalError",
        "message": message,
        "source": {"component": "v1beta1Controllers"},
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
    }
    store.create("events", event, KSERVE)


def sum_up(status: Object, mode: str) -> None:
    """The service's own condition ``Ready``, and the mode, in place."""
    states = {condition_of(status, kind)["status"] for kind in ("PredictorReady", "IngressReady")}
    with_condition(status, "Ready", "False" if "False" in states else "Unknown" if "Unknown" in states else "True")
    status["deploymentMode"] = mode


def replicas_of(predictor: Object, annotations: dict[str, str]) -> int:
    """How many replicas a predictor has when nothing scales it: fixed without an autoscaler, else at least one."""
    least = predictor.get("minReplicas", 1)
    scaler = annotations.get("serving.kserve.io/autoscalerClass", "hpa")
    return least if scaler in ("none", "keda") else max(1, least)


def host(name: str, service: Object, domain: str = DEFAULT_DOMAIN) -> str:
    """Host name under which the gateway knows something of a service, by KServe's template."""
    return domain.format(name=name, namespace=service["metadata"]["namespace"])
