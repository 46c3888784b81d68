"""What KServe's controller would do wrong in Knative mode, if it were not asked in the right order."""

import pytest

from modelyard.components.errors import NotAvailable

pytestmark = pytest.mark.server
_REVISION = "serving.knative.dev/revision"


@pytest.fixture
def served(serve):
    return serve("knative")


def _predictor(served):
    return served.service()["spec"]["predictor"]


def _component(served):
    return served.service()["status"]["components"]["predictor"]


def test_a_version_on_trial_is_written_together_with_no_share(served):
    served.bring("1")
    written = []
    served.cluster.interfere(lambda: written.append(_predictor(served)), times=100, method="GET", path="inferenceservices")
    served.target.start_canary("fraud", served.models["2"])
    of_version = {
        (predictor["annotations"]["modelyard.dev/model-version"], predictor.get("canaryTrafficPercent"))
        for predictor in written
    }
    assert of_version == {("1", None), ("2", 0)}


def test_the_bad_version_does_not_stay_in_the_service_and_gets_nothing_on_the_way(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 25)
    served.target.roll_back("fraud")
    predictor = _predictor(served)
    assert predictor["annotations"]["modelyard.dev/model-version"] == "1"
    assert "canaryTrafficPercent" not in predictor
    assert served.shares() == [{"1": 100}, {"1": 75, "2": 25}, {"1": 100}]
    component = _component(served)
    assert component["latestCreatedRevision"] == component["latestReadyRevision"] == component["latestRolledoutRevision"]


def test_a_version_that_cannot_come_back_yet_leaves_the_traffic_where_it_is(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 25)
    # Its running pods go on; new ones find no room.
    served.cluster.interfere(
        lambda: served.cluster.trouble("1", "unschedulable"), method="PATCH", path="inferenceservices", skip=1
    )
    with pytest.raises(NotAvailable, match="version 1"):
        served.open(ready_seconds=1).roll_back("fraud")
    assert not served.was_ever_lost()
    assert served.cluster.traffic("fraud") == {"1": 100}
    served.cluster.mend("1")
    served.target.roll_back("fraud")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)
    assert "canaryTrafficPercent" not in _predictor(served)


def test_at_all_the_traffic_a_version_is_still_on_trial(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 100)
    served.cluster.settle()
    assert _component(served)["latestRolledoutRevision"] == _component(served)["latestCreatedRevision"]
    state = served.open().state("fraud")
    assert (state.stable.model, state.stable.share) == (served.models["1"], 0)
    assert (state.canary.model, state.canary.share) == (served.models["2"], 100)
    served.target.set_share("fraud", 40)
    state = served.target.state("fraud")
    assert (state.stable.share, state.canary.share) == (60, 40)


def test_a_revision_that_kserve_falls_back_to_by_itself_is_noticed_and_the_right_one_brought_back(served):
    served.bring("1")
    served.bring("2")
    before, fallen = _component(served)["previousRolledoutRevision"], []

    def fall_back():
        if fallen or _predictor(served)["annotations"]["modelyard.dev/model-version"] != "3":
            return
        fallen.append(True)
        status = served.service()["status"]
        status["components"]["predictor"]["latestRolledoutRevision"] = before
        served.cluster.store.set_status("inferenceservices", "fraud", "models", status)

    served.cluster.interfere(fall_back, times=1000, method="GET", path="inferenceservices")
    with pytest.raises(NotAvailable, match="KServe gave the traffic to another version"):
        served.target.start_canary("fraud", served.models["3"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    served.target.start_canary("fraud", served.models["3"])
    assert served.target.state("fraud").stable.model == served.models["2"]


def test_a_version_taken_back_gets_nothing_where_the_share_is_split_before_there_is_a_revision(served):
    served.bring("1")
    served.bring("2")
    served.target.restore("fraud", served.models["1"])
    served.cluster.settle()
    served.cluster.knative.routes_first = True
    before = len(served.shares())
    served.target.start_canary("fraud", served.models["3"])
    served.target.set_share("fraud", 25)
    assert served.shares()[before - 1 :] == [{"1": 100}, {"1": 75, "3": 25}]
    served.target.roll_back("fraud")
    served.target.start_canary("fraud", served.models["3"])
    assert served.shares()[before + 1 :] == [{"1": 100}]


def test_no_version_gets_all_the_traffic_on_the_word_of_a_status_that_speaks_of_an_older_revision(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    status = served.service()["status"]
    old = served.cluster.all("revisions", {"modelyard.dev/version": "1"})[0]["metadata"]["name"]
    status["components"]["predictor"].update(latestCreatedRevision=old, latestReadyRevision=old)

    def speak_of_old():
        served.cluster.pause()
        served.cluster.store.set_status("inferenceservices", "fraud", "models", status)

    # The version in charge is written again, and the controllers have not come to it.
    served.cluster.interfere(speak_of_old, method="GET", path="inferenceservices", skip=3)
    with pytest.raises(NotAvailable, match="waited 1 s in vain for version 1 to be ready"):
        served.open(ready_seconds=1).roll_back("fraud")
    assert _predictor(served)["canaryTrafficPercent"] == 0


def test_a_version_in_charge_that_cannot_be_made_again_keeps_its_traffic_and_nothing_is_on_trial(served):
    served.bring("1")
    served.bring("2")
    served.cluster.interfere(lambda: served.cluster.trouble("2", "unschedulable"), method="PATCH", path="inferenceservices")
    with pytest.raises(NotAvailable, match="version 2, which is in charge"):
        served.open(ready_seconds=1).start_canary("fraud", served.models["3"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    served.cluster.mend("2")
    served.target.start_canary("fraud", served.models["3"])
    assert served.target.state("fraud").canary.ready
    assert {version for shares in served.shares()[1:] for version in shares} == {"2"}


def test_what_knative_has_given_up_is_told_as_kserve_saw_it_last(served):
    served.bring("1")
    served.cluster.trouble("2", "load", "the model is not signed by a key that is trusted")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.wait(lambda: not served.cluster.all("pods", {"modelyard.dev/version": "2"}))
    arm = served.target.state("fraud").canary
    assert arm.failed
    assert "Knative gave it up" in arm.reason
    assert "not signed by a key that is trusted" in arm.reason


def test_pods_of_another_revision_of_the_same_version_do_not_speak_for_the_one_that_is_waited_for(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    other = served.cluster.all("pods", {"modelyard.dev/version": "1"})[0]
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "an older one's"}}
    container = {"name": "kserve-container", "ready": False, "restartCount": 9, "state": ended}
    metadata = {**other["metadata"], "name": "other", "labels": {**other["metadata"]["labels"], _REVISION: "older"}}
    metadata["ownerReferences"] = [{**metadata["ownerReferences"][0], "kind": "ReplicaSet", "uid": "another"}]
    del metadata["uid"], metadata["resourceVersion"]
    with served.cluster.lock:
        served.cluster.store.create("pods", {**other, "metadata": metadata}, "kubelet")

    def fall_over():
        served.cluster.store.set_status("pods", "other", "models", {"containerStatuses": [container]})

    served.cluster.interfere(fall_over, times=1000, method="GET", path="pods")
    assert not served.target.state("fraud").stable.failed
    served.target.roll_back("fraud")
    assert served.target.state("fraud").canary is None


def test_a_canary_that_crashes_again_and_again_has_failed_though_it_is_ready_in_between(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    pod = served.cluster.all("pods", {"modelyard.dev/version": "2"})[0]
    for container in pod["status"]["containerStatuses"]:
        container["restartCount"] = 3
    served.cluster.pause()
    with served.cluster.lock:
        served.cluster.store.set_status("pods", pod["metadata"]["name"], "models", pod["status"])
    arm = served.target.state("fraud").canary
    assert (arm.ready, arm.failed) == (False, True)
    assert "started again 3 times" in arm.reason


def test_a_version_on_trial_has_an_address_of_its_own_inside_the_cluster_and_outside(served, monkeypatch):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    assert served.target.state("fraud").canary.url == "http://latest-fraud-predictor-models.example.com"
    monkeypatch.delenv("MODELYARD_HOME")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert served.target.state("fraud").canary.url == "http://latest-fraud-predictor.models.svc.cluster.local"


def test_metadata_of_the_service_never_changes_so_that_no_revision_is_made_of_it(served):
    served.bring("1")
    before = served.service()["metadata"]
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    served.target.set_share("fraud", 20)
    served.target.promote("fraud", served.models["2"].digest)
    after = served.service()["metadata"]
    assert (before["annotations"], before["labels"]) == (after["annotations"], after["labels"])
    served.cluster.settle()
    assert len(served.cluster.all("revisions")) == 2


def test_a_share_is_in_force_when_the_gateway_has_it_and_not_when_it_is_only_written_down(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    served.cluster.settle()
    served.cluster.pause()
    target, status = served.open(obey_seconds=0.0), served.service()["status"]

    def say(*conditions):
        others = [each for each in status["conditions"] if each["type"] != "PredictorRouteReady"]
        said = {**status, "conditions": [*others, *conditions]}
        served.cluster.store.set_status("inferenceservices", "fraud", "models", said)

    for state in ("Unknown", "False"):
        say({"type": "PredictorRouteReady", "status": state, "reason": "IngressNotConfigured"})
        with pytest.raises(NotAvailable, match="the traffic to be split, 10 %"):
            target.set_share("fraud", 10)
    say()
    target.set_share("fraud", 10)


def test_a_share_that_is_given_reaches_the_version_before_the_call_returns(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    for percent in (10, 60, 100, 30):
        served.target.set_share("fraud", percent)
        assert served.cluster.traffic("fraud").get("2", 0) == percent
