"""Where and how a model's predictors run in a cluster: the pipelines' parameter ``serving``, checked.

    >>> parse_placement({"cpu": 2, "memory": "4Gi", "max_replicas": 6, "autoscaler": "hpa"}).max_replicas
    6

| key | means | default |
|---|---|---|
| ``namespace`` | where it is served | the pod's own, or that of the kubeconfig's context |
| ``mode`` | ``standard`` (Deployments behind the Gateway API) or ``knative`` | as it is served already, else ``standard`` |
| ``runtime`` | ``predictor``, or ``triton`` | ``predictor`` |
| ``cpu``, ``memory`` | requests and limits of a replica, such as ``500m`` and ``2Gi`` | KServe's |
| ``gpus`` | GPUs of a replica (``nvidia.com/gpu``) | 0 |
| ``min_replicas``, ``max_replicas`` | replicas; a maximum needs an autoscaler | 1, none |
| ``autoscaler`` | ``none``, ``hpa`` or ``keda``; in Knative mode its own | ``none`` |
| ``scale_metric`` | ``cpu`` or ``memory``; in Knative mode ``concurrency`` or ``rps`` | ``cpu``; ``concurrency`` |
| ``scale_target`` | percent of what is requested; in Knative mode requests | 80; Knative's |
| ``node_selector`` | labels that a node must have | any node |
| ``tolerations`` | tolerations, as Kubernetes writes them | none |
| ``spot`` | prefer spot nodes, and tolerate the taints that clouds give them | false |
| ``service_account`` | whose credentials the model is fetched with | the namespace's default |
| ``timeout_seconds`` | after which a request is given up | KServe's |
| ``ready_seconds`` | in which a version must become ready | 900 |
| ``long_hosts`` | KServe's ``domainTemplate`` is not its default, so that names need no room for the namespace | false |

How a version runs comes key by key from the version in charge where a key is not given, scaling included; only ``runtime`` and
``gpus`` are said each time. A version that is brought back without any key runs as it did. In Standard mode KServe
gives a version on trial whatever the version in charge has and it leaves empty: a node selector, tolerations or a service
account can be replaced by a release there, but not removed.

A release needs room: in Standard mode for the replicas on trial beside all those in charge, at 100 % as many again; with
``min_replicas`` above 1 for one more while the first of them starts. With ``keda`` for one more after the promotion, too, GPUs
included: KEDA takes no version on trial, so the promoted version's pods are replaced, one by one.
Standard mode needs Kubernetes 1.30: pods that end go on answering for a moment (``lifecycle.preStop.sleep``).

In Standard mode the service's name and the namespace may have 44 characters together. KServe makes a host of each version's
Deployment, by default ``fraud-v7-5f3c2a-predictor-models``, whose parts between dots have 63 at most, and starts nothing where
one has more; near the limit the version's number is left out of it (``fraud-v5f3c2a-predictor-models``). Where the
``domainTemplate`` in KServe's ConfigMap ``inferenceservice-config`` keeps the two apart, such as
``{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}``, say ``long_hosts``: a step cannot read it. Nothing need be said where the
version in charge has such a host already.

In Standard mode the gateway gives up requests to both arms after the ``timeout_seconds`` of the version in charge, since they
share a rule: those of a version on trial come into force there once it is promoted.

In Knative mode the ConfigMap ``config-features`` of Knative must enable what a pod is told about nodes, all of it disabled by
default: ``kubernetes.podspec-nodeselector`` for ``node_selector``, ``kubernetes.podspec-tolerations`` for ``tolerations``, and
this one and ``kubernetes.podspec-affinity`` for ``spot``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.kserve.names import RUNTIMES

STANDARD, KNATIVE = "standard", "knative"
NONE, HPA, KEDA = "none", "hpa", "keda"
_AUTOSCALERS = {STANDARD: (NONE, HPA, KEDA), KNATIVE: (KNATIVE,)}
_SCALE_METRICS = {STANDARD: ("cpu", "memory"), KNATIVE: ("concurrency", "rps")}
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SERVICE_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# Some of it at least: of cores a thousandth, of memory that is given in bytes a megabyte.
_CPU = re.compile(r"(?=.*[1-9])([0-9]+(\.[0-9]{1,3})?|[0-9]+m)")
_MEMORY = re.compile(r"(?=.*[1-9])[0-9]+(\.[0-9]+)?([MGT]i?|Ki|k)|[1-9][0-9]{6,17}")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_MOST_REPLICAS = 10_000
# These say nothing of how a version runs.
_OF_THE_RELEASE = ("namespace", "mode", "ready_seconds", "long_hosts")
# Here none is a value.
_EMPTY_COUNTS = ("min_replicas", "spot")
_SCALING_KEYS = ("max_replicas", "scale_metric", "scale_target")


@dataclass(frozen=True)
class Placement:
    """Where and how predictors run; see the module. Empty and 0 mean "not given".

    Attributes:
        given: the keys that say how a version runs and were given; the others come from the version in charge.
    """

    namespace: str = ""
    mode: str = ""
    runtime: str = "predictor"
    cpu: str = ""
    memory: str = ""
    gpus: int = 0
    min_replicas: int = 1
    max_replicas: int = 0
    autoscaler: str = ""
    scale_metric: str = ""
    scale_target: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    spot: bool = False
    service_account: str = ""
    timeout_seconds: int = 0
    ready_seconds: int = 900
    long_hosts: bool = False
    given: frozenset[str] = frozenset()


def parse_placement(serving: Mapping[str, Any]) -> Placement:
    """Checks the parameter ``serving``.

    Args:
        serving: by the keys that the module lists; one that is empty counts as not given.

    Raises:
        InvalidInput: a key that there is not, or a value that cannot be used.
    """
    known = [*_READERS]
    given = {}
    for key, value in serving.items():
        if key not in known:
            raise InvalidInput(f"serving.{key}", value, f"there is no such key; use {', '.join(known)}")
        if value not in (None, "", [], {}):
            given[key] = _READERS[key](f"serving.{key}", value)
    told = {key for key, value in given.items() if value or key in _EMPTY_COUNTS}
    placement = Placement(**given, given=frozenset(told.difference(_OF_THE_RELEASE)))
    modes = (placement.mode,) if placement.mode else (STANDARD, KNATIVE)
    problems = [problem for mode in modes if (problem := scaling_problem(placement, mode))]
    if len(problems) == len(modes):
        raise problems[0]
    return placement


def completed(placement: Placement, mode: str, in_charge: Mapping[str, Any]) -> Placement:
    """A placement with what was not given taken from the one of the version in charge, by its keys."""
    taken = {key: value for key, value in in_charge.items() if key not in placement.given}
    if mode == STANDARD and taken.get("autoscaler", placement.autoscaler) not in (HPA, KEDA):
        # Nobody would scale by them.
        taken = {key: value for key, value in taken.items() if key not in _SCALING_KEYS}
    return replace(placement, **taken)


def scaling_problem(placement: Placement, mode: str) -> InvalidInput | None:
    """What is wrong with what a placement says of scaling, in this mode; None if nothing is."""
    for key, allowed in (("autoscaler", _AUTOSCALERS[mode]), ("scale_metric", _SCALE_METRICS[mode])):
        value = getattr(placement, key)
        if value and value not in allowed:
            return InvalidInput(f"serving.{key}", value, f"in {mode} mode use {_either(allowed)}")
    if placement.max_replicas and placement.max_replicas < placement.min_replicas:
        remedy = f"give at least min_replicas, {placement.min_replicas}"
        return InvalidInput("serving.max_replicas", placement.max_replicas, remedy)
    if mode == KNATIVE:
        return None
    if placement.min_replicas < 1:
        return InvalidInput("serving.min_replicas", placement.min_replicas, "give at least 1; only Knative starts from none")
    if placement.autoscaler not in (HPA, KEDA):
        for key in ("max_replicas", "scale_metric", "scale_target"):
            if value := getattr(placement, key):
                return InvalidInput(f"serving.{key}", value, "give serving.autoscaler hpa or keda with it: else nothing scales")
        return None
    if not placement.max_replicas:
        return InvalidInput("serving.max_replicas", 0, f"say how many replicas {placement.autoscaler} may start")
    if placement.scale_target > 100:
        return InvalidInput("serving.scale_target", placement.scale_target, "give a percentage, 1 to 100")
    if placement.scale_metric == "memory" and not placement.scale_target:
        return InvalidInput("serving.scale_target", 0, "give the percentage of memory at which to scale")
    return None


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _one_of(*names: str) -> Any:
    def read(name: str, value: Any) -> str:
        if value not in names:
            raise InvalidInput(name, value, f"use {_either(names)}")
        return str(value)

    return read


def _text(pattern: re.Pattern[str], remedy: str) -> Any:
    def read(name: str, value: Any) -> str:
        text = value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # A pipeline hands numbers over as floats.
            text = f"{value:g}" if value % 1 else str(int(value))
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise InvalidInput(name, value, remedy)
        return text

    return read


def _whole(low: int, high: int) -> Any:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value != int(value):
            raise InvalidInput(name, value, f"give a whole number from {low} to {high}")
        return int(value)

    return read


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(name, value, "give true or false")
    return value


def _labels(name: str, value: Any) -> dict[str, str]:
    remedy = "give a map of node labels, from key to value"
    if not isinstance(value, Mapping):
        raise InvalidInput(name, value, remedy)
    for key, entry in value.items():
        texts = isinstance(key, str) and isinstance(entry, str)
        if not (texts and _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(entry)):
            raise InvalidInput(name, {key: entry}, remedy)
    return dict(value)


def _tolerations(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidInput(name, value, "give a list of tolerations, each with key, operator, value and effect")
    return tuple(_toleration(name, entry) for entry in value)


def _toleration(name: str, entry: Any) -> dict[str, Any]:
    keys = ("key", "operator", "value", "effect", "tolerationSeconds")
    if not isinstance(entry, Mapping) or not entry or not set(entry) <= set(keys):
        raise InvalidInput(name, entry, f"give each toleration by {', '.join(keys)}")
    key, value = entry.get("key", ""), entry.get("value", "")
    operator, effect = entry.get("operator", "Equal"), entry.get("effect", "")
    texts = isinstance(key, str) and isinstance(value, str)
    if not texts or not _LABEL_VALUE.fullmatch(value) or (key and not _LABEL_KEY.fullmatch(key)):
        raise InvalidInput(name, entry, "give key and value of a taint as Kubernetes writes them")
    if operator not in ("Equal", "Exists") or effect not in _EFFECTS:
        raise InvalidInput(name, entry, f"use operator Equal or Exists and an effect of {', '.join(_EFFECTS[1:])}")
    if operator == "Exists" and value:
        raise InvalidInput(name, entry, "a toleration with operator Exists has no value")
    if operator == "Equal" and not key:
        raise InvalidInput(name, entry, "a toleration without a key needs the operator Exists")
    read = dict(entry)
    if "tolerationSeconds" in entry:
        if effect != "NoExecute":
            raise InvalidInput(name, entry, "tolerationSeconds is only for the effect NoExecute")
        read["tolerationSeconds"] = _whole(0, 10**9)(f"{name}.tolerationSeconds", entry["tolerationSeconds"])
    return read


_READERS: dict[str, Any] = {
    "namespace": _text(_NAMESPACE, "give the name of a namespace"),
    "mode": _one_of(STANDARD, KNATIVE),
    "runtime": _one_of(*RUNTIMES),
    "cpu": _text(_CPU, "give cores, such as 2 or 500m, 1m at least"),
    "memory": _text(_MEMORY, "give an amount of memory, such as 2Gi, or bytes"),
    "gpus": _whole(0, 64),
    "min_replicas": _whole(0, _MOST_REPLICAS),
    "max_replicas": _whole(0, _MOST_REPLICAS),
    "autoscaler": _one_of(NONE, HPA, KEDA, KNATIVE),
    "scale_metric": _one_of("cpu", "memory", "concurrency", "rps"),
    "scale_target": _whole(0, 1_000_000),
    "node_selector": _labels,
    "tolerations": _tolerations,
    "spot": _flag,
    "service_account": _text(_SERVICE_ACCOUNT, "give the name of a service account"),
    "timeout_seconds": _whole(0, 86_400),
    "ready_seconds": _whole(1, 86_400),
    "long_hosts": _flag,
}
