"""Why a version is not ready, told from its pods, or from the Deployment that gets none: the InferenceService speaks of the
newest predictor only, and shortly.
"""

from collections.abc import Iterable, Mapping
from typing import Any

_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable")
_NEVER = ("InvalidImageName", "ErrImageNeverPull")
_WAITS = ("PodInitializing", "ContainerCreating", "CrashLoopBackOff")
# What failed three times will fail again; what failed once may have met a store or a node at a bad moment.
_MOST_RESTARTS = 2


def living(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pods that count: not those that are being deleted, or that their node has evicted."""
    return [pod for pod in pods if not _is_over(pod)]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod gets requests."""
    return any(found["type"] == "Ready" and found["status"] == "True" for found in _conditions(pod))


def trouble(pods: Iterable[Mapping[str, Any]]) -> tuple[str, bool]:
    """Why none of a version's pods is ready, in words; and whether that will not pass by itself.

    Both are empty where a pod is on its way.
    """
    newest_first = sorted(living(pods), key=lambda pod: pod["metadata"].get("creationTimestamp") or "", reverse=True)
    found = [_of_pod(pod) for pod in newest_first if not is_ready(pod)]
    told = [entry for entry in found if entry[0]]
    return next((entry for entry in told if entry[1]), told[0] if told else ("", False))


def stuck(deployment: Mapping[str, Any] | None) -> str:
    """Why a Deployment gets no pods, or does not get on; empty if it does.

    A quota or a service account can still come, and then it goes on by itself: so nothing has failed.
    """
    said = {found["type"]: found for found in ((deployment or {}).get("status") or {}).get("conditions") or ()}
    refused, progress = said.get("ReplicaFailure", {}), said.get("Progressing", {})
    if refused.get("status") == "True":
        return f"its pods cannot be made: {refused.get('message') or refused.get('reason') or 'no reason given'}"
    if progress.get("status") == "False":
        return f"it does not get on: {progress.get('message') or progress.get('reason') or 'no reason given'}"
    return ""


def crashes(pods: Iterable[Mapping[str, Any]]) -> str:
    """Which container of a version fails again and again, and why, also while it runs in between; empty if none does."""
    for pod in living(pods):
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            if container.get("restartCount", 0) > _MOST_RESTARTS:
                told = _of_container(container)[0] or f"container {container['name']} failed"
                return f"{told}; it was started again {container['restartCount']} times"
    return ""


def _is_over(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"] or (pod.get("status") or {}).get("phase") == "Failed"


def _of_pod(pod: Mapping[str, Any]) -> tuple[str, bool]:
    for condition in _conditions(pod):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"no node takes it: {condition.get('message') or condition.get('reason')}", False
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if container.get("ready"):
            continue
        reason, failed = _of_container(container)
        if reason:
            return reason, failed
    return "", False


def _of_container(container: Mapping[str, Any]) -> tuple[str, bool]:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    why = waiting.get("reason", "")
    if why in _NO_IMAGE:
        return f"its image cannot be pulled: {waiting.get('message') or why}", why in _NEVER
    if why and why not in _WAITS:
        return f"container {container['name']} cannot start: {waiting.get('message') or why}", False
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended.get("exitCode"):
        return "", False
    told = (ended.get("message") or "").strip() or f"exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
    # One that runs again may get further this time.
    failed = "running" not in state and container.get("restartCount", 0) >= _MOST_RESTARTS
    return f"container {container['name']} failed: {told}", failed


def _conditions(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (pod.get("status") or {}).get("conditions") or []
