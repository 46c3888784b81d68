"""What KServe's webhooks do to an InferenceService: defaults filled in, and the rules by which a write is refused."""

import re
from typing import Any

from tests.support.fake_cluster.errors import ApiError

Object = dict[str, Any]

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_IMPLEMENTATIONS = (
    *("model", "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle"),
)
_NOT_ON_A_CANARY = ("scaleTarget", "scaleMetric", "autoScaling")


def mode_of(service: Object) -> str:
    """``Standard`` or ``Knative``."""
    mode = service["metadata"].get("annotations", {}).get(MODE, "Standard")
    return {"RawDeployment": "Standard", "Serverless": "Knative"}.get(mode, mode)


def fill_in(service: Object) -> None:
    """The defaults of the mutating webhook, in place: the mode, the resources, no token of the service account."""
    annotations = service["metadata"].setdefault("annotations", {})
    annotations[MODE] = mode_of(service)
    predictor = service.get("spec", {}).get("predictor")
    if isinstance(predictor, dict) and isinstance(predictor.get("model"), dict):
        resources = predictor["model"].setdefault("resources", {})
        for side in ("requests", "limits"):
            resources[side] = {"cpu": "1", "memory": "2Gi", **resources.get(side, {})}
        predictor.setdefault("automountServiceAccountToken", False)


def refusal(service: Object, old: Object | None) -> str:
    """Why the validating webhook refuses a write; empty if it does not."""
    predictor, annotations = service["spec"]["predictor"], service["metadata"].get("annotations", {})
    if old is not None:
        served_in = old.get("status", {}).get("deploymentMode", "")
        if served_in and mode_of(service) != served_in:
            return f"update rejected: deploymentMode cannot be changed from '{served_in}' to '{mode_of(service)}'"
        was = old["spec"]["predictor"]
        if was.get("name", "") != predictor.get("name", "") and _uri(was) == _uri(predictor):
            return "predictor.name change requires a model change (e.g. storageUri)"
    if not _NAME.fullmatch(service["metadata"]["name"]):
        return f'the InferenceService "{service["metadata"]["name"]}" is invalid: the name must match {_NAME.pattern}'
    if annotations.get(AUTOSCALER, "none") not in ("hpa", "keda", "external", "none"):
        return f"[{annotations[AUTOSCALER]}] is not a supported autoscaler class type"
    # On a canary the schema requires it, as the name of the container.
    if predictor.get("model", {}).get("name"):
        return "the 'name' field is not allowed in standard predictor"
    return _wrong_predictor(predictor) or _wrong_scaling(service) or _wrong_canary(service)


def _uri(predictor: Object) -> str:
    return predictor.get("model", {}).get("storageUri", "")


def _wrong_predictor(predictor: Object) -> str:
    given = [name for name in _IMPLEMENTATIONS if name in predictor]
    if len(given) != 1 and not (not given and predictor.get("containers")):
        return f"exactly one of {list(_IMPLEMENTATIONS)} must be specified in predictor"
    if "storageUris" in predictor and _uri(predictor):
        return "storageUri and storageUris cannot both be set"
    least, most = predictor.get("minReplicas"), predictor.get("maxReplicas", 0)
    if (least or 0) < 0:
        return "MinReplicas cannot be less than 0"
    if most < 0:
        return "MaxReplicas cannot be less than 0"
    if least is not None and most and least > most:
        return "MinReplicas cannot be greater than MaxReplicas"
    if predictor.get("containerConcurrency", 0) < 0:
        return "Parallelism cannot be less than 0"
    return ""


def _wrong_scaling(service: Object) -> str:
    predictor = service["spec"]["predictor"]
    metric, target = predictor.get("scaleMetric"), predictor.get("scaleTarget")
    scaler = service["metadata"].get("annotations", {}).get(AUTOSCALER, "")
    if mode_of(service) == "Standard":
        if scaler == "hpa":
            if metric not in (None, "cpu", "memory"):
                return f"[{metric}] is not a supported metric"
            if target is not None and ((metric in (None, "cpu") and target < 1) or target > 100):
                return "the target utilization percentage should be a [1-100] integer"
        if scaler == "keda" and metric is not None:
            return "ScaleMetric is not supported for KEDA"
        return ""
    if "deploymentStrategy" in predictor:
        return "customizing deploymentStrategy is only supported for raw deployment mode"
    if metric not in (None, "concurrency", "rps"):
        return f"[{metric}] is not a supported metric"
    if metric == "rps" and target is not None and target < 1:
        return "the target for rps should be greater than 1"
    return ""


def _wrong_canary(service: Object) -> str:
    canaries, stable = service["spec"].get("canary") or [], service["spec"]["predictor"]
    if canaries and mode_of(service) != "Standard":
        return "canary is only supported in Standard deployment mode"
    names: set[str] = set()
    for at, canary in enumerate(canaries):
        predictor = canary["predictor"]
        name = predictor.get("name", "")
        if not name:
            return f"canary[{at}] predictor.name is required"
        if name in names:
            return f'canary predictor.name "{name}" is duplicated'
        names.add(name)
        if name == stable.get("name", ""):
            return f'canary predictor.name "{name}" conflicts with stable predictor name'
        wrong = _wrong_predictor(predictor)
        if wrong:
            return f'canary "{name}" predictor: {wrong}'
        if "workerSpec" in predictor:
            return f'canary "{name}" must not set workerSpec (multi-node is not yet supported for canary)'
        if predictor.get("maxReplicas", 0) > 0:
            return f'canary "{name}" must not set maxReplicas (canary uses fixed replicas)'
        for field in _NOT_ON_A_CANARY:
            if predictor.get(field) is not None:
                return f'canary "{name}" must not set {field} (canary uses fixed replicas)'
        replicas, most = predictor.get("minReplicas"), stable.get("minReplicas", 1)
        if replicas is not None and replicas > most:
            return f'canary "{name}" minReplicas ({replicas}) must not exceed stable predictor minReplicas ({most})'
    total = sum(canary["trafficPercent"] for canary in canaries)
    if total > 100:
        return f"sum of canary trafficPercent values ({total}) must be <= 100"
    return ""


def check_config_map(content: Object) -> None:
    """Nothing but strings in ``data``, as the API server decodes a ConfigMap."""
    unknown = set(content) - {"apiVersion", "kind", "metadata", "data", "binaryData", "immutable"}
    if unknown:
        raise ApiError(400, "BadRequest", "strict decoding error: " + ", ".join(f'unknown field "{name}"' for name in unknown))
    for name, value in (content.get("data") or {}).items():
        if not isinstance(value, str):
            raise ApiError(
                400, "BadRequest", f"json: cannot unmarshal into Go struct field ConfigMap.data.{name} of type string"
            )
