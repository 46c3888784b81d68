import re

import pytest

from modelyard.components.serving.kserve.pods import crashes, is_ready, living, stuck, trouble


def _pod(*, conditions=(), inits=(), containers=(), created="2026-01-01T00:00:00Z"):
    status = {"conditions": list(conditions), "initContainerStatuses": list(inits), "containerStatuses": list(containers)}
    return {"metadata": {"name": "pod", "creationTimestamp": created}, "status": status}


def _container(state, *, name="kserve-container", restarts=0, last=None, ready=False):
    return {
        "name": name,
        "ready": ready,
        "restartCount": restarts,
        "state": state,
        "lastState": {"terminated": last} if last else {},
    }


_ENDED = {"exitCode": 1, "reason": "Error", "message": "digest is blake3:1, not blake3:2\n"}
_BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
_READY = {"type": "Ready", "status": "True"}


def test_pods_that_are_ready_or_on_their_way_are_in_no_trouble():
    assert is_ready(_pod(conditions=[_READY]))
    assert trouble([]) == ("", False)
    assert trouble([_pod(conditions=[_READY])]) == ("", False)
    assert trouble([_pod(inits=[_container({"running": {}}, name="storage-initializer")])]) == ("", False)
    waits = _container({"waiting": {"reason": "PodInitializing"}})
    assert trouble([_pod(containers=[waits])]) == ("", False)
    assert trouble([{"metadata": {}, "status": {}}]) == ("", False)


@pytest.mark.parametrize(
    ("container", "reason", "failed"),
    [
        (_container({"terminated": _ENDED}, name="storage-initializer"), "digest is blake3:1, not blake3:2", False),
        (
            _container(_BACK_OFF, name="storage-initializer", restarts=1, last=_ENDED),
            "storage-initializer failed: digest",
            False,
        ),
        (
            _container(_BACK_OFF, name="storage-initializer", restarts=2, last=_ENDED),
            "storage-initializer failed: digest",
            True,
        ),
        (_container({"running": {}}, restarts=5, last=_ENDED), "kserve-container failed: digest", False),
        (_container(_BACK_OFF, restarts=4, last={"exitCode": 137, "reason": "OOMKilled"}), r"137 \(OOMKilled\)", True),
        (
            _container({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}),
            "cannot be pulled",
            False,
        ),
        (_container({"waiting": {"reason": "InvalidImageName"}}), "cannot be pulled: InvalidImageName", True),
        (
            _container({"waiting": {"reason": "CreateContainerConfigError", "message": 'no secret "keys"'}}),
            'no secret "keys"',
            False,
        ),
    ],
)
def test_what_keeps_a_container_from_running_is_told_and_whether_it_may_pass(container, reason, failed):
    initial = container["name"] == "storage-initializer"
    found, lasting = trouble([_pod(inits=[container]) if initial else _pod(containers=[container])])
    assert re.search(reason, found)
    assert lasting is failed


def test_a_pod_without_a_node_says_what_it_lacks():
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient nvidia.com/gpu"}
    assert trouble([_pod(conditions=[condition])]) == ("no node takes it: Insufficient nvidia.com/gpu", False)


def test_what_will_not_pass_is_told_before_what_may_and_the_newest_pod_first():
    old = _pod(containers=[_container({"waiting": {"reason": "ErrImagePull", "message": "old"}})])
    new = _pod(
        containers=[_container({"waiting": {"reason": "ErrImagePull", "message": "new"}})], created="2026-01-02T00:00:00Z"
    )
    broken = _pod(containers=[_container(_BACK_OFF, restarts=9, last=_ENDED)], created="2025-01-01T00:00:00Z")
    assert trouble([old, new])[0].endswith("new")
    assert trouble([old, new, broken])[1]


def test_a_container_that_crashes_again_and_again_is_told_also_while_it_runs():
    crashed = {"exitCode": 137, "reason": "OOMKilled"}
    runs = _container({"running": {}}, restarts=3, last=crashed, ready=True)
    told = crashes([_pod(conditions=[_READY]), _pod(conditions=[_READY], containers=[runs])])
    assert told == "container kserve-container failed: exit code 137 (OOMKilled); it was started again 3 times"
    assert trouble([_pod(conditions=[_READY], containers=[runs])]) == ("", False)
    # A node or a store may have had a bad moment; and a model that was fetched at the fourth attempt is there.
    assert not crashes([_pod(containers=[{**runs, "restartCount": 2}]), _pod(inits=[{**runs, "name": "storage-initializer"}])])


def test_pods_that_were_evicted_or_are_going_say_nothing():
    broken = _pod(containers=[_container(_BACK_OFF, restarts=9, last=_ENDED)])
    going = {**broken, "metadata": {**broken["metadata"], "deletionTimestamp": "2026-01-02T00:00:00Z"}}
    evicted = {**broken, "status": {**broken["status"], "phase": "Failed", "reason": "Evicted"}}
    assert trouble([going, evicted]) == ("", False)
    assert crashes([going, evicted]) == ""
    assert living([going, broken, evicted]) == [broken]


def test_a_deployment_says_why_it_gets_no_pods_and_that_it_does_not_get_on():
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "it has timed out"}
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: models"}
    assert stuck({"status": {"conditions": [late, refused]}}) == "its pods cannot be made: exceeded quota: models"
    assert stuck({"status": {"conditions": [late]}}) == "it does not get on: it has timed out"
    assert stuck({"status": {"conditions": [{**late, "status": "True"}, {**refused, "status": "False"}]}}) == ""
    assert stuck({}) == stuck(None) == ""
