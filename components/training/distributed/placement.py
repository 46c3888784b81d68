"""How the nodes of a job are placed on a cluster, as a pipeline's parameter says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelyard.components.errors import InvalidInput
from modelyard.components.training.requested import check_range, whole

MOST_NODES = 1000


@dataclass(frozen=True)
class NodePlacement:
    """What each node gets.

    Attributes:
        namespace: empty for the pod's own, or the kubeconfig's.
        runtime: name of the TrainingRuntime or ClusterTrainingRuntime; empty for the trainer's own.
        image: empty for this release's.
        cpu, memory: as Kubernetes writes quantities.
        service_account: empty for the namespace's default.
        node_selector, tolerations: as in a pod.
        ready_seconds: how long nodes may wait for a machine and their image.
    """

    namespace: str = ""
    runtime: str = ""
    image: str = ""
    cpu: str = "4"
    memory: str = "16Gi"
    service_account: str = ""
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    ready_seconds: int = 3600


def parse_node_placement(cluster: Mapping[str, Any]) -> NodePlacement:
    """Checks the parameter ``cluster``.

    Raises:
        InvalidInput: a key is unknown, or a value is not of its kind.
    """
    known = NodePlacement.__dataclass_fields__
    values: dict[str, Any] = {}
    for name, given in cluster.items():
        if name not in known:
            raise InvalidInput(f"cluster.{name}", given, f"there is no such key; there are {', '.join(known)}")
        value = whole(given)
        if name in ("cpu", "memory") and type(value) in (int, float):
            value = f"{value:g}"
        wanted = {"node_selector": dict, "tolerations": list, "ready_seconds": int}.get(name, str)
        if type(value) is not wanted:
            raise InvalidInput(f"cluster.{name}", given, f"give it as {wanted.__name__}")
        values[name] = value
    placement = NodePlacement(**values)
    check_range("cluster.ready_seconds", placement.ready_seconds, 1)
    if not all(isinstance(toleration, dict) for toleration in placement.tolerations):
        raise InvalidInput("cluster.tolerations", placement.tolerations, "give a list of objects, as in a pod")
    return placement
