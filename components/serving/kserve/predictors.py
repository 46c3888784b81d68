"""The objects that are written: predictors, and the InferenceService around them. Pure: from facts to dicts.

A predictor says all that there is to say of one version. In Standard mode KServe merges the predictor of a version on trial
over that of the version in charge, so ``inherit`` does the same before it is written: then what is promoted is, field for
field, what has been on trial, and its pods go on as they are.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from modelyard.components.serving.kserve.names import (
    DIGEST_LABEL,
    GIT_SHA,
    LAYOUT,
    LONGEST_LABEL,
    MANAGED_BY_LABEL,
    MODEL_CARD,
    MODEL_DIGEST,
    MODEL_LABEL,
    MODEL_NAME,
    MODEL_VERSION,
    RUN_ID,
    RUNTIMES,
    SIGNER,
    STORAGE_CONTAINER,
    VERSION_LABEL,
    digest_label,
    predictor_name,
    service_name,
    version_label,
)
from modelyard.components.serving.kserve.placement import HPA, KEDA, KNATIVE, NONE, STANDARD, Placement
from modelyard.components.serving.target import ServedModel
from modelyard.components.signing.provenance import Provenance

Object = dict[str, Any]

DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
MODES = {"Standard": STANDARD, "RawDeployment": STANDARD, "Knative": KNATIVE, "Serverless": KNATIVE}
_MODE_NAMES = {STANDARD: "Standard", KNATIVE: "Knative"}
AUTOSCALER = "serving.kserve.io/autoscalerClass"
_TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
# A cached copy on the nodes would be served without passing the storage container that verifies it.
_NO_LOCAL_CACHE = "serving.kserve.io/disable-localmodel"
_GPU = "nvidia.com/gpu"
_CONTAINER = "kserve-container"
_LEAVING_SECONDS = 5
# Longer than a predictor takes to answer what is in flight and to write its log.
_GRACE_SECONDS = 60
_CARD = "card/model_card.md"
_ABSENT = "none"
# What clouds and Karpenter call a spot node, as a taint and as a label.
_SPOT = {
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
}
_SPOT_TOLERATIONS = [{"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT.items()]
_DEFAULT_UTILIZATION = 80
# What a predictor says of replicas is not in its pods, and no business of another version's.
SCALING = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "autoScaling")


def build_predictor(
    placement: Placement, mode: str, model_name: str, model: ServedModel, provenance: Provenance, room: int = LONGEST_LABEL
) -> Object:
    """The predictor of a version.

    Args:
        placement: where and how it runs.
        mode: ``standard`` or ``knative``.
        model_name: the served model.
        model: the version; its URI is in an object store.
        provenance: what its verified directory says.
        room: how many characters its name may have, see ``predictor_name``.
    """
    runtime, model_format, layout = RUNTIMES[placement.runtime]
    annotations = {
        MODEL_NAME: model_name,
        MODEL_VERSION: model.version,
        MODEL_DIGEST: model.digest,
        SIGNER: provenance.signer or _ABSENT,
        RUN_ID: provenance.run_id or _ABSENT,
        GIT_SHA: provenance.code_revision or _ABSENT,
        MODEL_CARD: f"{model.uri.rstrip('/')}/{_CARD}",
        LAYOUT: layout,
    }
    if mode == STANDARD:
        annotations[AUTOSCALER] = placement.autoscaler or NONE
    predictor: Object = {
        "labels": {
            MODEL_LABEL: service_name(model_name),
            VERSION_LABEL: version_label(model.version),
            DIGEST_LABEL: digest_label(model.digest),
        },
        "annotations": annotations,
        "storageContainerName": STORAGE_CONTAINER,
        # Both runtimes speak it; one that is not named KServe takes from the version in charge, whose runtime may be the other.
        "model": {
            "modelFormat": {"name": model_format},
            "protocolVersion": "v2",
            "runtime": runtime,
            "storageUri": model.uri,
        },
        **_scaling(placement, mode),
        **_nodes(placement),
    }
    # The pod's annotations say the same, but Knative lets no container of a runtime read them. Triton does not ask for it;
    # without it, KServe would give it what the version in charge says of itself.
    named = {"MODEL_DIGEST": model.digest, "MODEL_NAME": model_name, "MODEL_VERSION": model.version}
    predictor["model"]["env"] = [{"name": name, "value": value} for name, value in named.items()]
    if mode == STANDARD:
        # In Knative mode a name would be that of another service.
        predictor["name"] = predictor_name(model.version, model.digest, room)
        # Requests come for a moment yet after a pod is told to end. Knative sees to both by itself, and takes neither.
        predictor["model"]["lifecycle"] = {"preStop": {"sleep": {"seconds": _LEAVING_SECONDS}}}
        predictor["terminationGracePeriodSeconds"] = _GRACE_SECONDS
    if resources := _resources(placement):
        predictor["model"]["resources"] = resources
    if placement.service_account:
        predictor["serviceAccountName"] = placement.service_account
    if placement.timeout_seconds:
        predictor["timeout"] = placement.timeout_seconds
    return predictor


def placement_of(predictor: Mapping[str, Any]) -> Object:
    """How a predictor of ours runs, by the keys of a placement; what it leaves to KServe is not among them, nor are GPUs."""
    requests = predictor["model"].get("resources", {}).get("requests", {})
    metrics = (predictor.get("autoScaling") or {}).get("metrics") or [{}]
    resource = metrics[0].get("resource") or {}
    tolerations = list(predictor.get("tolerations") or ())
    spot = "affinity" in predictor
    found = {
        "cpu": requests.get("cpu"),
        "memory": requests.get("memory"),
        "min_replicas": predictor.get("minReplicas"),
        "max_replicas": predictor.get("maxReplicas"),
        "autoscaler": predictor["annotations"].get(AUTOSCALER),
        "scale_metric": predictor.get("scaleMetric") or resource.get("name"),
        "scale_target": predictor.get("scaleTarget") or resource.get("target", {}).get("averageUtilization"),
        "node_selector": predictor.get("nodeSelector"),
        "tolerations": tuple(each for each in tolerations if not (spot and each in _SPOT_TOLERATIONS)),
        "spot": spot,
        "service_account": predictor.get("serviceAccountName"),
        "timeout_seconds": predictor.get("timeout"),
    }
    return {key: value for key, value in found.items() if value or (key == "min_replicas" and value is not None)}


def _resources(placement: Placement) -> Object:
    amounts: Object = {}
    for name, amount in (("cpu", placement.cpu), ("memory", placement.memory)):
        if amount:
            amounts[name] = amount
    resources: Object = {"requests": dict(amounts), "limits": dict(amounts)}
    if placement.gpus:
        resources["limits"][_GPU] = str(placement.gpus)
    return {side: amounts for side, amounts in resources.items() if amounts}


def _scaling(placement: Placement, mode: str) -> Object:
    scaling: Object = {"minReplicas": placement.min_replicas}
    if placement.max_replicas:
        scaling["maxReplicas"] = placement.max_replicas
    if mode == STANDARD and placement.autoscaler == KEDA:
        target = {"type": "Utilization", "averageUtilization": placement.scale_target or _DEFAULT_UTILIZATION}
        resource = {"name": placement.scale_metric or "cpu", "target": target}
        scaling["autoScaling"] = {"metrics": [{"type": "Resource", "resource": resource}]}
    elif mode == KNATIVE or placement.autoscaler == HPA:
        if placement.scale_metric:
            scaling["scaleMetric"] = placement.scale_metric
        if placement.scale_target:
            scaling["scaleTarget"] = placement.scale_target
    return scaling


def _nodes(placement: Placement) -> Object:
    nodes: Object = {}
    tolerations = [dict(toleration) for toleration in placement.tolerations]
    if placement.spot:
        tolerations += copy.deepcopy(_SPOT_TOLERATIONS)
        preferred = [
            {"weight": 1, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
            for key, value in _SPOT.items()
        ]
        nodes["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    if tolerations:
        nodes["tolerations"] = tolerations
    if placement.node_selector:
        nodes["nodeSelector"] = dict(placement.node_selector)
    return nodes


def inherit(stable: Mapping[str, Any], predictor: Mapping[str, Any]) -> Object:
    """A predictor with what KServe gives it from the one in charge: whatever it leaves empty, maps key by key.

    GPUs that the one in charge has are not wanted again only because nothing is said of them.
    """
    inherited = _merge({key: value for key, value in stable.items() if key not in SCALING}, predictor)
    limits = inherited["model"].get("resources", {}).get("limits", {})
    if _GPU in limits and _GPU not in predictor["model"].get("resources", {}).get("limits", {}):
        limits[_GPU] = "0"
    return inherited


def _merge(under: Any, over: Any) -> Any:
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        merged = {key: copy.deepcopy(value) for key, value in under.items() if key not in over}
        return {**merged, **{key: _merge(under.get(key), value) for key, value in over.items()}}
    return copy.deepcopy(over if over not in (None, "", 0, False, [], {}) else under)


def is_scaled(predictor: Mapping[str, Any]) -> bool:
    """Whether an autoscaler decides how many replicas a predictor of Standard mode has."""
    return predictor["annotations"].get(AUTOSCALER, NONE) != NONE


def canary_replicas(replicas: int, percent: int) -> int:
    """Replicas of a version on trial that gets ``percent`` of what ``replicas`` answer."""
    return max(1, math.ceil(replicas * percent / 100))


def on_trial(predictor: Mapping[str, Any], replicas: int) -> Object:
    """A predictor as KServe takes it for a version on trial: with a fixed number of replicas."""
    trial = {key: copy.deepcopy(value) for key, value in predictor.items() if key not in SCALING}
    if trial["annotations"].get(AUTOSCALER) == KEDA:
        # KServe would make it a ScaledObject without triggers, which KEDA refuses.
        trial["annotations"][AUTOSCALER] = NONE
    # Required on a trial by the schema, and refused elsewhere; it is what the container is called in any case.
    trial["model"]["name"] = _CONTAINER
    return {**trial, "minReplicas": replicas}


def beside_trial(predictor: Mapping[str, Any], replicas: int, needed: int) -> Object:
    """The predictor in charge while a version with so many replicas is on trial.

    As soon as the trial is ready KServe takes its replicas off the least of those in charge, who get most of the traffic still,
    or all of it again in a moment; only the last one it leaves. So the least is raised by as many, and stays what it is. An
    autoscaler's is what answers all the traffic (``needed``): it would scale down whoever gets less for the moment.
    """
    least = predictor.get("minReplicas", 1)
    if is_scaled(predictor):
        raised = max(least, needed) + replicas
        return {**predictor, "minReplicas": raised, "maxReplicas": max(predictor.get("maxReplicas", 0), raised)}
    return {**predictor, "minReplicas": least + replicas if least > 1 else max(least, replicas)}


def inference_service(
    name: str,
    namespace: str,
    mode: str,
    model_name: str,
    predictor: Mapping[str, Any],
    *,
    canary: Mapping[str, Any] | None = None,
    percent: int | None = None,
) -> Object:
    """The InferenceService as it is applied.

    Args:
        name: its name.
        namespace: where.
        mode: ``standard`` or ``knative``.
        model_name: the served model.
        predictor: the predictor in charge; in Knative mode the newest one.
        canary: Standard mode: the predictor on trial.
        percent: share of the one on trial; None for Knative's own way, all to the newest one that is ready.
    """
    # KServe copies these to all pods, and a change restarts them: here is only what never changes.
    annotations = {DEPLOYMENT_MODE: _MODE_NAMES[mode], _NO_LOCAL_CACHE: "true"}
    if mode == KNATIVE:
        annotations[_TAG_ROUTING] = "true"
    spec: Object = {"predictor": copy.deepcopy(dict(predictor))}
    if mode == STANDARD:
        trial = [{"trafficPercent": percent or 0, "predictor": copy.deepcopy(dict(canary))}] if canary else []
        # Said even if there is none, so that nobody else puts one there unnoticed.
        spec["canary"] = trial
    elif percent is not None:
        spec["predictor"]["canaryTrafficPercent"] = percent
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": annotations,
            "labels": {MANAGED_BY_LABEL: "modelyard", MODEL_LABEL: service_name(model_name)},
        },
        "spec": spec,
    }
