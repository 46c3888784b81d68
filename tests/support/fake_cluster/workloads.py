"""Deployments and their pods, and what can befall a pod: the part of a cluster that is not KServe's."""

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_cluster.store import Object, Store, now

VERSION = "modelyard.dev/model-version"
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the pods of a version.

    Attributes:
        kind: ``load`` (the storage initializer fails), ``image`` (cannot be pulled), ``crash`` (the server crashes again and
            again), ``unready`` (it runs and never answers its probe), ``unschedulable`` (no node has what it asks for),
            ``refused`` (pods cannot be made at all: a quota, a service account that there is not, a pod security standard).
        message: what it says.
    """

    kind: str
    message: str


@dataclass
class Workloads:
    """Runs pods.

    Attributes:
        troubles: by model version.
        gpus: how many GPUs the nodes have, all together.
        rounds_to_start: rounds of the controllers until a pod is ready.
        rounds_to_give_up: rounds until what does not start is given up.
    """

    store: Store
    troubles: dict[str, Trouble] = field(default_factory=dict)
    gpus: int = 0
    rounds_to_start: int = 2
    rounds_to_give_up: int = 100
    _ages: dict[str, int] = field(default_factory=dict)
    _on_their_way: bool = False

    def run_deployments(self) -> None:
        """One round of the Deployments' controller: pods of the template come, and when enough are ready, others go."""
        deployments = self.store.all("deployments")
        for deployment in deployments:
            self._run(deployment)
        uids = {deployment["metadata"]["uid"] for deployment in deployments}
        for pod in self.store.all("pods"):
            owner = pod["metadata"]["ownerReferences"][0]
            if owner["kind"] == "Deployment" and owner["uid"] not in uids:
                self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _run(self, deployment: Object) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        namespace, template = metadata["namespace"], digest_of(spec["template"])
        pods = [pod for pod in self.store.all("pods", namespace) if owned_by(pod, deployment)]
        mine = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == template]
        others = [pod for pod in pods if pod not in mine]
        refused = self.refusal(spec["template"])
        for _ in range(0 if refused else spec["replicas"] - len(mine)):
            labels = {**spec["template"]["metadata"]["labels"], "pod-template-hash": template}
            mine.append(self.start(f"{metadata['name']}-{template}", deployment, spec["template"], labels))
        for pod in sorted(mine, key=lambda pod: not is_ready(pod))[spec["replicas"] :]:
            self._stop(pod)
            mine.remove(pod)
        ready = sum(is_ready(pod) for pod in mine)
        surplus = max(0, ready + sum(is_ready(pod) for pod in others) - spec["replicas"])
        for pod in sorted(others, key=is_ready)[: len(others) if ready >= spec["replicas"] else surplus]:
            self._stop(pod)
            others.remove(pod)
        available = ready + sum(is_ready(pod) for pod in others)
        complete = ready >= spec["replicas"] and not others
        age = self._grow(f"{metadata['uid']}/{template}") if not complete else 0
        least = spec["replicas"] - math.floor(spec["replicas"] * 0.25)
        status = {
            "observedGeneration": metadata["generation"],
            "replicas": len(mine) + len(others),
            "updatedReplicas": len(mine),
            "readyReplicas": available,
            "availableReplicas": available,
            "unavailableReplicas": max(0, spec["replicas"] - available),
            "conditions": [
                {
                    "type": "Available",
                    "status": "True" if available >= least else "False",
                    "reason": "MinimumReplicasAvailable" if available >= least else "MinimumReplicasUnavailable",
                    "message": f"Deployment has {'' if available >= least else 'not '}minimum availability.",
                },
                self._progress(complete, age, metadata["name"]),
                *([replica_failure(refused)] if refused and len(mine) < spec["replicas"] else []),
            ],
        }
        if status != deployment.get("status"):
            self.store.set_status("deployments", metadata["name"], namespace, status)

    def refusal(self, template: Object) -> str:
        """Why the pods of a template cannot be made; empty if they can."""
        trouble = self.troubles.get(template["metadata"].get("annotations", {}).get(VERSION, ""))
        return trouble.message if trouble and trouble.kind == "refused" else ""

    def _progress(self, complete: bool, age: int, name: str) -> Object:
        if complete:
            return {
                "type": "Progressing",
                "status": "True",
                "reason": "NewReplicaSetAvailable",
                "message": "It has progressed.",
            }
        if age > self.rounds_to_give_up:
            told = f'ReplicaSet "{name}" has timed out progressing.'
            return {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": told}
        return {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "It is progressing."}

    def start(self, prefix: str, owner: Object, template: Object, labels: dict[str, str]) -> Object:
        """Makes a pod of a template."""
        metadata = owner["metadata"]
        self._ages[prefix] = number = self._ages.get(prefix, 0) + 1
        pod = {
            "metadata": {
                "name": f"{prefix}-{number}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": copy.deepcopy(template["metadata"].get("annotations", {})),
                "ownerReferences": [owned_reference(owner)],
            },
            "spec": copy.deepcopy(template["spec"]),
            "status": {"phase": "Pending", "conditions": []},
        }
        return self.store.create("pods", pod, "kube-controller-manager")

    def _stop(self, pod: Object) -> None:
        self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def run_pods(self) -> None:
        """One round of the nodes: every pod that starts gets on, or shows what is wrong with it."""
        left, self._on_their_way = self.gpus, False
        for pod in sorted(self.store.all("pods"), key=lambda pod: not is_ready(pod)):
            metadata = pod["metadata"]
            trouble = self.troubles.get(metadata.get("annotations", {}).get(VERSION, ""))
            trouble = None if trouble and trouble.kind == "refused" else trouble
            asked = sum(
                int(container.get("resources", {}).get("limits", {}).get(_GPU, 0)) for container in pod["spec"]["containers"]
            )
            if asked > left and trouble is None:
                trouble = Trouble("unschedulable", f"0/3 nodes are available: 3 Insufficient {_GPU}.")
            else:
                left -= asked
            age = self._grow(metadata["uid"]) if trouble or not is_ready(pod) else 0
            self._on_their_way |= 0 < age <= self.rounds_to_give_up
            status = pod_status_of(trouble, age, self.rounds_to_start, is_ready(pod))
            if status != pod["status"]:
                self.store.set_status("pods", metadata["name"], metadata["namespace"], status)

    def busy(self) -> bool:
        """Whether a pod is on its way, so that the next round is another one."""
        return self._on_their_way

    def _grow(self, name: str) -> int:
        self._ages[name] = age = self._ages.get(name, 0) + 1
        return age


def replica_failure(message: str) -> Object:
    """What a Deployment says whose pods cannot be made."""
    return {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}


def pod_status_of(trouble: Trouble | None, age: int, rounds_to_start: int, was_ready: bool) -> Object:
    """The status of a pod of this age, in rounds."""
    scheduled = {"type": "PodScheduled", "status": "True"}
    initialized = {"type": "Initialized", "status": "True"}
    loaded = {"name": "storage-initializer", "ready": True, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}
    waits = {"name": "kserve-container", "ready": False, "state": {"waiting": {"reason": "PodInitializing"}}}
    runs = {"name": "kserve-container", "ready": False, "state": {"running": {}}}
    if trouble is None:
        if was_ready or age >= rounds_to_start:
            conditions = [scheduled, initialized, {"type": "Ready", "status": "True"}]
            return _pod_status("Running", conditions, [loaded], [{**runs, "ready": True}])
        loading = {"name": "storage-initializer", "ready": False, "state": {"running": {}}}
        return _pod_status("Pending", [scheduled, {"type": "Ready", "status": "False"}], [loading], [waits])
    not_ready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    if trouble.kind == "unschedulable":
        refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": trouble.message}
        return {"phase": "Pending", "conditions": [refused]}
    if trouble.kind == "image":
        pulls = {
            "name": "kserve-container",
            "ready": False,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": trouble.message}},
        }
        return _pod_status("Pending", [scheduled, initialized, not_ready], [loaded], [pulls])
    if trouble.kind == "unready":
        return _pod_status("Running", [scheduled, initialized, not_ready], [loaded], [runs])
    ended = {"terminated": {"reason": "Error", "exitCode": 1, "message": trouble.message}}
    # An odd round it has just ended, an even one it waits to be tried again.
    again = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}
    state = {"state": ended} if age <= 1 else {"state": again, "lastState": ended}
    if trouble.kind == "load":
        fails = {"name": "storage-initializer", "ready": False, "restartCount": min(age, 2), **state}
        return _pod_status("Pending", [scheduled, not_ready], [fails], [waits])
    crashes = {"name": "kserve-container", "ready": False, "restartCount": min(age, 2), **state}
    return _pod_status("Running", [scheduled, initialized, not_ready], [loaded], [crashes])


def _pod_status(phase: str, conditions: list[Object], inits: list[Object], containers: list[Object]) -> Object:
    return {"phase": phase, "conditions": conditions, "initContainerStatuses": inits, "containerStatuses": containers}


def is_ready(pod: Object) -> bool:
    """Whether a pod may get traffic."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def owned_by(content: Object, owner: Object) -> bool:
    """Whether an object belongs to another."""
    uid = owner["metadata"]["uid"]
    return any(reference["uid"] == uid for reference in content["metadata"].get("ownerReferences", ()))


def owned_reference(owner: Object) -> Object:
    """What an object's owner is written down as."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def digest_of(template: Any) -> str:
    """A short hash of a pod template."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def put(store: Store, kind: str, name: str, namespace: str, content: Object, manager: str) -> Object:
    """Creates an object, or makes it what it should be; no write where it is so already."""
    found = store.get(kind, name, namespace)
    metadata = {**content.get("metadata", {}), "name": name, "namespace": namespace}
    if found is None:
        return store.create(kind, {**content, "metadata": metadata}, manager)
    wanted = {key: value for key, value in content.items() if key != "metadata"}
    kept = {key: value for key, value in found["metadata"].items() if key in metadata}
    if kept == metadata and store.holds(found, wanted):
        return found
    return store.replace(kind, name, namespace, {**wanted, "metadata": {**found["metadata"], **metadata}}, manager)


def with_condition(status: Object, kind: str, state: str, reason: str = "", message: str = "") -> None:
    """Sets a condition, in place; its time changes only with its state."""
    conditions = [each for each in status.get("conditions", []) if each["type"] != kind]
    before = next((each for each in status.get("conditions", []) if each["type"] == kind), None)
    condition = {"type": kind, "status": state, "lastTransitionTime": now()}
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    if before and before["status"] == state:
        condition["lastTransitionTime"] = before["lastTransitionTime"]
    status["conditions"] = sorted([*conditions, condition], key=lambda each: each["type"])


def condition_of(status: Object, kind: str) -> Object:
    """A condition; one that is unknown if it is not there."""
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), {"type": kind, "status": "Unknown"})
