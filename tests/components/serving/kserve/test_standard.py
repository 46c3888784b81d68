"""What KServe's controller would do wrong in Standard mode, if it were not asked in the right order."""

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.kserve.names import FIELD_MANAGER
from modelyard.components.serving.kserve.notes import Notes
from modelyard.components.serving.kserve.predictors import inference_service
from modelyard.components.serving.target import TargetChanged

pytestmark = pytest.mark.server


@pytest.fixture
def served(serve):
    return serve("standard")


def _deployment(served, version):
    found = served.cluster.all("deployments", {"modelyard.dev/version": version})
    return found[0] if found else None


def _pods(served, version):
    return {pod["metadata"]["uid"] for pod in served.cluster.all("pods", {"modelyard.dev/version": version})}


def test_the_pods_that_were_on_trial_go_on_when_their_version_is_promoted(served):
    served.bring("1", min_replicas=2, node_selector={"disk": "fast"})
    target = served.open(cpu="500m", memory="1Gi", spot=True, timeout_seconds=30)
    target.start_canary("fraud", served.models["2"])
    target.set_share("fraud", 100)
    served.cluster.settle()
    before = _pods(served, "2")
    target.promote("fraud", served.models["2"].digest)
    served.cluster.settle()
    assert _pods(served, "2") <= before
    # What it left out came from the version in charge, as KServe merges them.
    assert served.service()["spec"]["predictor"]["nodeSelector"] == {"disk": "fast"}


def test_replicas_follow_the_share_before_it_rises_and_the_version_in_charge_keeps_its_own(served):
    served.bring("1", min_replicas=4)
    served.cluster.settle()
    target = served.open(min_replicas=4)
    target.start_canary("fraud", served.models["2"])
    seen = []

    def look():
        stable, canary = _deployment(served, "1"), _deployment(served, "2")
        if stable and canary and served.cluster.get("httproutes", "fraud"):
            share = served.cluster.traffic("fraud").get("2", 0)
            seen.append((share, canary["status"]["availableReplicas"], stable["status"]["availableReplicas"]))

    served.cluster.interfere(look, times=1000, method="GET")
    for percent, replicas in ((5, 1), (50, 2), (75, 3), (100, 4), (25, 1)):
        target.set_share("fraud", percent)
        served.cluster.settle()
        assert _deployment(served, "2")["spec"]["replicas"] == replicas
        assert _deployment(served, "1")["spec"]["replicas"] == 4
    assert seen
    for share, on_trial, in_charge in seen:
        assert on_trial >= max(1, 4 * share / 100)
        assert in_charge >= 4
    target.roll_back("fraud")
    served.cluster.settle()
    assert served.service()["spec"]["predictor"]["minReplicas"] == 4
    assert _deployment(served, "2") is None


def test_a_single_replica_in_charge_gets_no_second_one_because_of_a_trial(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 50)
    assert served.service()["spec"]["predictor"]["minReplicas"] == 1
    served.cluster.settle()
    assert len(_pods(served, "1")) == 1


def test_a_share_waits_for_replicas_that_find_no_node_and_stays_as_it_was(serve):
    served = serve("standard", gpus=5)
    served.bring("1", gpus=1, min_replicas=3)
    target = served.open(gpus=1, min_replicas=3, ready_seconds=2)
    target.start_canary("fraud", served.models["2"])
    target.set_share("fraud", 60)
    with pytest.raises(NotAvailable, match=r"3 replicas of version 2.*Insufficient nvidia\.com/gpu"):
        target.set_share("fraud", 90)
    state = served.target.state("fraud")
    assert (state.stable.share, state.canary.share) == (40, 60)
    target.roll_back("fraud")
    assert served.target.state("fraud").stable.share == 100
    assert not served.was_ever_lost()


def test_replicas_that_cannot_be_made_are_told_of(served):
    served.bring("1", min_replicas=3)
    target = served.open(ready_seconds=1)
    target.start_canary("fraud", served.models["2"])
    served.cluster.trouble("2", "refused", "exceeded quota: models")
    with pytest.raises(NotAvailable, match="2 replicas of version 2: its pods cannot be made: exceeded quota"):
        target.set_share("fraud", 60)
    assert served.shares() == [{"1": 100}]


def test_what_an_autoscaler_runs_is_matched_by_the_trial_and_scaled_again_once_promoted(served):
    scaling = {"autoscaler": "hpa", "min_replicas": 2, "max_replicas": 6, "scale_target": 70}
    served.bring("1", **scaling)
    target = served.open(**scaling)
    target.start_canary("fraud", served.models["2"])
    service = served.service()["spec"]
    trial = service["canary"][0]["predictor"]
    assert not {"maxReplicas", "scaleMetric", "scaleTarget", "autoScaling"} & set(trial)
    # More have been needed since the trial began; they stay, however little the version in charge gets for the moment.
    in_charge = _deployment(served, "1")["metadata"]["name"]
    served.cluster.edit("deployments", in_charge, lambda found: found["spec"].update(replicas=5))
    served.cluster.settle()
    target.set_share("fraud", 100)
    served.cluster.settle()
    assert _deployment(served, "2")["spec"]["replicas"] == 5
    # KServe takes the replicas on trial off the least.
    assert served.service()["spec"]["predictor"]["minReplicas"] - 5 == 5
    target.promote("fraud", served.models["2"].digest)
    predictor = served.service()["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["scaleTarget"]) == (2, 6, 70)


def test_without_routes_a_share_does_not_come_into_force_and_it_is_said_why(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.pause()
    for route in ("fraud", "fraud-predictor"):
        served.cluster.delete("httproutes", route)
    with pytest.raises(NotAvailable, match="enableGatewayApi"):
        served.open(obey_seconds=0.3).set_share("fraud", 10)
    served.cluster.resume()


def _add_parent(served, conditions):
    with served.cluster.lock:
        for name in ("fraud", "fraud-predictor"):
            parents = served.cluster.get("httproutes", name)["status"]["parents"]
            status = {"parents": [*parents, {"controllerName": "kuadrant.io/policy-controller", "conditions": conditions}]}
            served.cluster.store.set_status("httproutes", name, "models", status)


def test_what_a_controller_of_policies_says_of_a_route_holds_no_share_up(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    _add_parent(served, [{"type": "kuadrant.io/AuthPolicyAffected", "status": "True", "observedGeneration": 1}])
    served.target.set_share("fraud", 10)
    assert served.shares()[-1] == {"1": 90, "2": 10}


@pytest.mark.parametrize(
    "conditions",
    [
        [],
        [{"type": "ResolvedRefs", "status": "True"}],
        [{"type": "Accepted", "status": "False"}],
        [{"type": "Accepted", "status": "True"}, {"type": "ResolvedRefs", "status": "False"}],
        [{"type": "Accepted", "status": "True", "observedGeneration": 1}],
    ],
)
def test_a_share_is_in_force_once_every_gateway_has_taken_it_up(served, conditions):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    _add_parent(served, conditions)
    with pytest.raises(NotAvailable, match="version 2 to get 20 %"):
        served.open(obey_seconds=0.3).set_share("fraud", 20)


def test_routes_of_which_only_policies_are_told_are_not_in_force(served):
    served.bring("1")
    served.cluster.settle()
    served.cluster.pause()
    policies = [{"controllerName": "kuadrant.io/policy-controller", "conditions": [{"type": "Affected", "status": "True"}]}]
    for name in ("fraud", "fraud-predictor"):
        served.cluster.store.set_status("httproutes", name, "models", {"parents": policies})
    with pytest.raises(NotAvailable, match="version 1 to get all the traffic alone"):
        served.open(obey_seconds=0.3).promote("fraud", served.models["1"].digest)
    served.cluster.resume()


@pytest.mark.parametrize("length", [36, 37, 38, 39])
def test_near_the_limit_of_a_host_every_version_is_still_served(serve, length):
    served = serve("standard", namespace="n" * length)
    served.target.check("fraud")
    served.bring("1")
    served.bring("2")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.previous) == (served.models["2"], 100, served.models["1"])
    digits = served.models["2"].digest.removeprefix("blake3:")[:6]
    assert served.service()["spec"]["predictor"]["name"] == (f"v2-{digits}" if length < 38 else f"v{digits}")
    served.target.restore("fraud", served.models["1"])
    assert served.target.state("fraud").stable.model == served.models["1"]


def test_a_name_for_which_kserve_would_make_no_host_is_refused_before_anything_is_started(serve):
    served = serve("standard", namespace="n" * 40)
    told = r"model_name = 'fraud': .* of at most 4 characters .* namespace of at most 39; .* set serving\.long_hosts to true"
    with pytest.raises(InvalidInput, match=told):
        served.target.check("fraud")
    with pytest.raises(InvalidInput, match=told):
        served.target.start_canary("fraud", served.models["1"])
    assert served.cluster.all("inferenceservices") == served.cluster.all("configmaps") == []


def test_in_knative_mode_no_host_is_made_of_a_version_s_name(serve):
    serve("knative", namespace="n" * 40).target.check("fraud")


def test_a_cluster_that_keeps_name_and_namespace_apart_takes_any_and_need_be_named_so_once(serve):
    served = serve("standard", namespace="n" * 60, domain="{name}.{namespace}.example.com")
    served.open(long_hosts=True).check("fraud")
    served.bring("1", long_hosts=True)
    served.target.check("fraud")
    served.bring("2")
    assert served.target.state("fraud").stable.model == served.models["2"]
    assert served.service()["spec"]["predictor"]["name"].startswith("v2-")


def test_a_version_of_somebody_else_on_trial_is_left_to_them(served):
    served.bring("1")

    def change(service):
        model = {"name": "kserve-container", "modelFormat": {"name": "sklearn"}, "storageUri": "s3://theirs/model"}
        service["spec"]["canary"] = [{"trafficPercent": 0, "predictor": {"name": "theirs", "minReplicas": 1, "model": model}}]

    served.cluster.edit("inferenceservices", "fraud", change)
    served.cluster.settle()
    with pytest.raises(TargetChanged, match="somebody else put a version on trial"):
        served.target.state("fraud")
    with pytest.raises(TargetChanged, match="somebody else put a version on trial"):
        served.target.start_canary("fraud", served.models["2"])


def test_a_rollback_by_another_process_between_reading_and_writing_is_not_undone(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    stable = Notes(served.api(), "fraud").memory().stable
    without = inference_service("fraud", "models", "standard", "fraud", stable.predictor)

    def roll_back():
        served.cluster.store.apply("inferenceservices", "fraud", "models", without, FIELD_MANAGER, force=False)

    served.cluster.interfere(roll_back, method="PATCH", path="inferenceservices")
    with pytest.raises(TargetChanged, match="no version of 'fraud' is on trial any more"):
        served.target.set_share("fraud", 50)
    state = served.target.state("fraud")
    assert (state.stable.model, state.canary) == (served.models["1"], None)


def _fell_over(served, version):
    served.cluster.trouble(version, "crash")
    served.cluster.wait(lambda: not _deployment(served, version)["status"]["availableReplicas"])


def test_a_version_in_charge_that_is_down_is_rolled_back_though_kserve_changes_no_route_then(served):
    served.bring("1", min_replicas=2)
    served.bring("2", min_replicas=2)
    _fell_over(served, "2")
    served.open(min_replicas=2, obey_seconds=3).restore("fraud", served.models["1"])
    served.cluster.settle()
    assert served.cluster.traffic("fraud") == {"1": 100}
    assert _deployment(served, "1")["status"]["availableReplicas"] == 2
    assert _deployment(served, "2") is None


def test_a_trial_beside_a_version_that_is_down_makes_room_for_the_one_before(served):
    served.bring("1")
    served.bring("2")
    served.target.start_canary("fraud", served.models["3"])
    served.target.set_share("fraud", 25)
    _fell_over(served, "2")
    served.open(obey_seconds=3).restore("fraud", served.models["1"])
    served.cluster.settle()
    assert served.cluster.traffic("fraud") == {"1": 100}
    assert _deployment(served, "3") is None


def test_a_trial_is_ended_though_the_version_in_charge_is_down(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 25)
    _fell_over(served, "1")
    served.open(obey_seconds=3).roll_back("fraud")
    assert served.target.state("fraud").canary is None
    served.cluster.mend("1")
    served.cluster.wait(lambda: served.cluster.traffic("fraud") == {"1": 100})


def test_where_too_few_replicas_in_charge_answer_a_version_on_trial_takes_over_all_the_same(serve):
    served = serve("standard", gpus=4)
    scaling = {"gpus": 1, "min_replicas": 2}
    served.bring("2", **scaling)
    target = served.open(**scaling)
    target.start_canary("fraud", served.models["1"])
    target.set_share("fraud", 75)
    served.cluster.settle()
    # A node is lost.
    served.cluster.workloads.gpus = 3
    served.cluster.mend("2")
    served.cluster.wait(lambda: _deployment(served, "2")["status"]["availableReplicas"] == 1)
    served.open(**scaling, obey_seconds=0.5).promote("fraud", served.models["1"].digest)
    assert served.cluster.traffic("fraud") == {"1": 100}


def test_a_version_on_trial_that_crashes_again_and_again_has_failed_though_it_answers_in_between(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    served.cluster.pause()
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    for version in ("1", "2"):
        (pod,) = served.cluster.all("pods", {"modelyard.dev/version": version})
        pod["status"]["containerStatuses"][0].update(restartCount=3, lastState={"terminated": ended})
        served.cluster.store.set_status("pods", pod["metadata"]["name"], "models", pod["status"])
    state = served.target.state("fraud")
    assert state.stable.ready
    assert (state.canary.ready, state.canary.failed) == (False, True)
    assert "OOMKilled" in state.canary.reason


def test_a_share_is_in_force_when_every_gateway_takes_the_route_as_it_is_and_finds_its_backends(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    served.cluster.settle()
    served.cluster.pause()
    target, accepted = served.open(obey_seconds=0.0), {"type": "Accepted", "status": "True"}

    def say(*conditions):
        status = {"parents": [{"conditions": [accepted]}, {"conditions": list(conditions)}]}
        served.cluster.store.set_status("httproutes", "fraud", "models", status)

    say(accepted)
    target.set_share("fraud", 10)
    for conditions in (
        [],
        [{"type": "ResolvedRefs", "status": "True"}],
        [accepted, {"type": "ResolvedRefs", "status": "False"}],
        [{**accepted, "observedGeneration": 0}],
    ):
        say(*conditions)
        with pytest.raises(NotAvailable, match="version 2 to get 10 %"):
            target.set_share("fraud", 10)
