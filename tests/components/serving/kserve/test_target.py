"""The verbs at a cluster, in both modes. Every write is checked against KServe's schemas by the fake cluster."""

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.serving.kserve import target
from modelyard.components.serving.kserve.notes import Notes
from modelyard.components.serving.kserve.predictors import inference_service
from modelyard.components.serving.target import RecordChanged, ServedModel, TargetChanged

pytestmark = pytest.mark.server


def test_nothing_is_served_where_nothing_was_started(served):
    state = served.target.state("fraud")
    assert (state.stable, state.canary, state.previous, state.url) == (None, None, None, "")
    with pytest.raises(TargetChanged, match="no version"):
        served.target.set_share("fraud", 10)
    with pytest.raises(TargetChanged, match="cannot be promoted"):
        served.target.promote("fraud", served.models["1"].digest)
    served.target.roll_back("fraud")
    assert served.cluster.all("inferenceservices") == []


def test_a_first_version_is_on_trial_until_it_is_promoted(served):
    served.target.start_canary("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable, state.canary.model, state.canary.share, state.canary.ready) == (None, served.models["1"], 0, True)
    served.target.set_share("fraud", 100)
    assert served.target.state("fraud").canary.share == 100
    served.target.promote("fraud", served.models["1"].digest)
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary, state.previous) == (served.models["1"], 100, None, None)
    assert state.url.startswith("http://fraud")
    assert served.shares() == [{"1": 100}]


def test_a_first_version_that_is_sent_back_leaves_nothing(served):
    served.target.start_canary("fraud", served.models["1"])
    served.target.roll_back("fraud")
    assert served.cluster.all("inferenceservices") == []
    assert served.target.state("fraud").canary is None
    served.bring("2")
    assert served.target.state("fraud").stable.model == served.models["2"]
    assert served.target.state("fraud").previous is None


def test_a_version_gets_its_shares_and_then_all(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    state = served.target.state("fraud")
    assert (state.stable.share, state.canary.share, state.canary.ready) == (100, 0, True)
    assert state.canary.url
    assert state.canary.url != state.stable.url
    for percent in (10, 50, 5, 100):
        served.target.set_share("fraud", percent)
        state = served.target.state("fraud")
        assert (state.stable.model, state.stable.share) == (served.models["1"], 100 - percent)
        assert (state.canary.model, state.canary.share) == (served.models["2"], percent)
    served.target.promote("fraud", served.models["2"].digest)
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    assert state.previous == served.models["1"]
    assert not served.was_ever_lost()


def test_a_version_that_is_sent_back_never_gets_traffic_again(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 30)
    served.target.roll_back("fraud")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary, state.previous) == (served.models["1"], 100, None, None)
    assert served.shares() == [{"1": 100}, {"1": 70, "2": 30}, {"1": 100}]
    before = served.service()["metadata"]["generation"]
    served.target.roll_back("fraud")
    assert served.service()["metadata"]["generation"] == before


def test_a_version_that_had_all_the_traffic_on_trial_can_still_be_sent_back(served):
    served.bring("1")
    served.bring("2")
    served.target.start_canary("fraud", served.models["3"])
    served.target.set_share("fraud", 100)
    served.target.roll_back("fraud")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    assert state.previous == served.models["1"]
    assert not served.was_ever_lost()
    assert served.shares()[-1] == {"2": 100}


def test_after_a_rollback_another_version_is_tried_against_the_same_one(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.roll_back("fraud")
    served.bring("3")
    state = served.target.state("fraud")
    assert (state.stable.model, state.previous) == (served.models["3"], served.models["1"])
    assert {version for shares in served.shares() for version in shares} == {"1", "3"}


def test_verbs_that_are_repeated_change_nothing(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 20)
    before = served.service()
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 20)
    served.cluster.settle()
    assert served.service()["metadata"]["generation"] == before["metadata"]["generation"]
    served.target.promote("fraud", served.models["2"].digest)
    before = served.service()
    served.target.promote("fraud", served.models["2"].digest)
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    assert served.service()["metadata"]["generation"] == before["metadata"]["generation"]


def test_another_version_is_not_put_on_trial_beside_one_that_is(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    with pytest.raises(
        TargetChanged, match=r"version 2 .* under trial .* split fraud --end --target kserve --namespace models"
    ):
        served.target.start_canary("fraud", served.models["3"])
    with pytest.raises(TargetChanged, match="cannot be promoted"):
        served.target.promote("fraud", served.models["3"].digest)


def test_what_a_release_does_not_say_of_how_a_version_runs_is_as_in_the_version_in_charge(served):
    scaling = {"scale_metric": "cpu", "scale_target": 70, "autoscaler": "hpa"}
    if served.mode == "knative":
        scaling = {"scale_metric": "rps", "scale_target": 100}
    placed = {"cpu": "500m", "memory": "1Gi", "node_selector": {"disk": "fast"}, "service_account": "fetcher", "spot": True}
    own = [{"key": "team", "operator": "Exists"}]
    served.bring("1", min_replicas=2, max_replicas=4, timeout_seconds=30, tolerations=own, gpus=0, **scaling, **placed)
    before = served.service()["spec"]["predictor"]
    # By hand: nothing is said.
    served.bring("2")
    assert _how_it_runs(served) == _how_it_runs_in(before)
    # A release that says something of it, and then the one before by hand, which runs as it did.
    served.bring("3", min_replicas=1, memory="2Gi")
    predictor = served.service()["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    assert predictor["model"]["resources"]["requests"] == {"cpu": "500m", "memory": "2Gi"}
    assert predictor["tolerations"] == before["tolerations"]
    served.bring("2")
    assert _how_it_runs(served) == _how_it_runs_in(before)
    served.bring("3", min_replicas=3)
    predictor = served.service()["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["model"]["resources"]["requests"]["memory"]) == (3, "1Gi")


def _how_it_runs(served):
    return _how_it_runs_in(served.service()["spec"]["predictor"])


def _how_it_runs_in(predictor):
    identity = ("name", "labels", "annotations", "model", "canaryTrafficPercent")
    autoscaler = predictor["annotations"].get("serving.kserve.io/autoscalerClass")
    return {key: value for key, value in predictor.items() if key not in identity}, predictor["model"]["resources"], autoscaler


def test_an_autoscaler_that_a_release_takes_away_takes_its_bounds_along(serve):
    served = serve("standard")
    served.bring("1", autoscaler="hpa", min_replicas=2, max_replicas=4, scale_target=60)
    with pytest.raises(InvalidInput, match=r"serving\.max_replicas.*at least min_replicas, 5"):
        served.open(min_replicas=5).check("fraud")
    served.bring("2", autoscaler="none")
    predictor = served.service()["spec"]["predictor"]
    assert (predictor["minReplicas"], {"maxReplicas", "scaleTarget"} & set(predictor)) == (2, set())


def test_pods_that_cannot_be_made_are_told_and_the_version_starts_when_they_can(served, monkeypatch, capsys):
    monkeypatch.setattr(target, "_TELL_AFTER_SECONDS", 0.2)
    served.bring("1")
    served.cluster.trouble("2", "refused")
    with pytest.raises(NotAvailable, match=r"version 2 .* to be ready: its pods cannot be made: .*looking up service account"):
        served.open(ready_seconds=1).start_canary("fraud", served.models["2"])
    # In the step's log while it waits, once.
    assert capsys.readouterr().out.count("Version 2 of 'fraud' is not ready yet: its pods cannot be made: ") == 1
    canary = served.target.state("fraud").canary
    assert (canary.ready, canary.failed, canary.reason.startswith("its pods cannot be made")) == (False, False, True)
    served.cluster.mend("2")
    served.bring("2")
    assert served.shares()[-1] == {"2": 100}


def test_the_version_before_is_brought_back_as_it_was_run(served):
    served.bring("1", cpu="500m")
    served.bring("2", cpu="750m")
    served.target.restore("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)
    assert state.previous == served.models["2"]
    assert served.service()["spec"]["predictor"]["model"]["resources"]["requests"]["cpu"] == "500m"
    assert not served.was_ever_lost()


def test_a_restoration_ends_a_trial_and_its_version_gets_nothing_more(served):
    served.bring("1")
    served.bring("2")
    served.target.start_canary("fraud", served.models["3"])
    served.target.set_share("fraud", 40)
    served.target.restore("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.canary, state.previous) == (served.models["1"], None, served.models["2"])
    shares = served.shares()
    last = max(at for at, share in enumerate(shares) if "3" in share)
    assert shares[last]["3"] == 40
    assert not served.was_ever_lost()


def test_a_restoration_of_what_is_on_trial_puts_it_in_charge(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.restore("fraud", served.models["2"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.canary, state.previous) == (served.models["2"], None, served.models["1"])


def test_a_restoration_of_what_is_in_charge_ends_a_trial(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    served.target.restore("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)


def test_a_restoration_where_nothing_is_served_starts_the_version(served):
    served.target.restore("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary, state.previous) == (served.models["1"], 100, None, None)


def test_a_restoration_that_cannot_be_leaves_what_is_in_charge(served):
    served.bring("1")
    served.cluster.trouble("2", "load", "the model is not signed by a key that is trusted")
    with pytest.raises(NotAvailable, match="not signed by a key that is trusted"):
        served.target.restore("fraud", served.models["2"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)
    assert served.shares() == [{"1": 100}]


def test_a_restoration_is_not_undone_once_the_version_serves(served):
    served.bring("1")
    served.bring("2")

    def refuse():
        if served.cluster.traffic("fraud") == {"1": 100} and not refused:
            refused.append(True)
            served.cluster.fail(403, method=method, path=path)

    # In Standard mode when names are to change, in Knative mode when all that is left is to write it down.
    method, path = ("PATCH", "inferenceservices") if served.mode == "standard" else ("PUT", "configmaps")
    refused = []
    served.cluster.interfere(refuse, times=1000, method="GET")
    with pytest.raises(NotAvailable, match="does not allow"):
        served.target.restore("fraud", served.models["1"])
    assert served.shares()[-1] == {"1": 100}
    served.target.restore("fraud", served.models["1"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.canary, state.previous) == (served.models["1"], None, served.models["2"])
    assert served.shares()[-1] == {"1": 100}


def test_of_two_who_start_a_version_one_is_told_and_changes_nothing(served, monkeypatch):
    served.bring("1")
    mine, others = served.open(), served.open()
    verified = target._provenance

    def slow(*args):
        monkeypatch.setattr(target, "_provenance", verified)
        others.start_canary("fraud", served.models["2"])
        return verified(*args)

    # While this one downloads and verifies, another begins a trial.
    monkeypatch.setattr(target, "_provenance", slow)
    with pytest.raises(TargetChanged, match="meanwhile"):
        mine.start_canary("fraud", served.models["3"])
    state = others.state("fraud")
    assert (state.stable.model, state.canary.model) == (served.models["1"], served.models["2"])
    assert Notes(served.api(), "fraud").memory().canary.model == served.models["2"]


def test_a_start_does_not_undo_a_promotion_that_came_meanwhile(served, monkeypatch):
    served.bring("1")
    mine, others = served.open(), served.open()
    verified = target._provenance

    def slow(*args):
        monkeypatch.setattr(target, "_provenance", verified)
        others.start_canary("fraud", served.models["2"])
        others.promote("fraud", served.models["2"].digest)
        return verified(*args)

    monkeypatch.setattr(target, "_provenance", slow)
    with pytest.raises(TargetChanged, match="meanwhile"):
        mine.start_canary("fraud", served.models["3"])
    state = others.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    assert state.previous == served.models["1"]


def test_two_who_make_the_service_at_the_same_moment_are_noticed(served):
    predictor = {"model": {"modelFormat": {"name": "modelyard"}, "runtime": "modelyard-predictor", "storageUri": "s3://b/0"}}
    predictor["annotations"] = {"modelyard.dev/model-name": "fraud", "modelyard.dev/model-digest": "blake3:0"}
    theirs = inference_service("fraud", "models", served.mode, "fraud", predictor)
    served.cluster.interfere(
        lambda: served.cluster.apply("inferenceservices", theirs, manager="modelyard"), method="PATCH", path="inferenceservices"
    )
    with pytest.raises(TargetChanged, match="at the same moment"):
        served.target.start_canary("fraud", served.models["1"])


def test_a_service_that_cannot_be_taken_away_is_not_said_to_be_gone(served):
    served.target.start_canary("fraud", served.models["1"])

    def touch():
        served.cluster.edit(
            "inferenceservices", "fraud", lambda found: found["metadata"]["labels"].update(at=str(len(touched)))
        )
        touched.append(True)

    touched = []
    served.cluster.interfere(touch, times=1000, method="DELETE")
    with pytest.raises(NotAvailable, match="changed by others all the time"):
        served.target.roll_back("fraud")
    assert served.target.state("fraud").canary.model == served.models["1"]


def test_a_version_whose_model_is_refused_in_its_pods_has_failed_and_says_why(served):
    served.bring("1")
    served.cluster.trouble("2", "load", "the model is not signed by a key that is trusted")
    served.target.start_canary("fraud", served.models["2"])
    arm = served.target.state("fraud").canary
    assert (arm.ready, arm.failed) == (False, True)
    assert "not signed by a key that is trusted" in arm.reason
    served.target.roll_back("fraud")
    assert served.target.state("fraud").canary is None
    assert served.shares() == [{"1": 100}]


@pytest.mark.parametrize("kind", ["image", "unready", "unschedulable"])
def test_a_version_that_does_not_become_ready_is_waited_for_no_longer_than_was_said(serve, kind):
    served = serve("standard")
    served.bring("1")
    served.cluster.trouble("2", kind)
    with pytest.raises(NotAvailable, match="version 2 of 'fraud' to be ready"):
        served.open(ready_seconds=1).start_canary("fraud", served.models["2"])
    state = served.target.state("fraud")
    assert (state.stable.ready, state.stable.share, state.canary.ready) == (True, 100, False)
    served.cluster.mend("2")
    served.target.start_canary("fraud", served.models["2"])
    assert served.target.state("fraud").canary.ready


def test_a_revision_that_knative_gives_up_has_failed(serve):
    served = serve("knative")
    served.bring("1")
    served.cluster.trouble("2", "unschedulable")
    served.target.start_canary("fraud", served.models["2"])
    arm = served.target.state("fraud").canary
    assert arm.failed
    assert "Insufficient nvidia.com/gpu" in arm.reason
    assert served.shares() == [{"1": 100}]
    served.target.roll_back("fraud")
    assert served.target.state("fraud").stable.ready


def test_a_canary_that_dies_is_not_ready_any_more_and_cannot_be_promoted(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.trouble("2", "crash")
    served.cluster.wait(lambda: _restarts(served, "2") >= 2)
    arm = served.target.state("fraud").canary
    assert (arm.ready, arm.failed) == (False, True)
    assert "golden rows" in arm.reason
    with pytest.raises(NotAvailable, match="golden rows"):
        served.target.promote("fraud", served.models["2"].digest)
    assert served.target.state("fraud").stable.share == 100


def _restarts(served, version):
    return max(
        (
            container.get("restartCount", 0)
            for pod in served.cluster.all("pods", {"modelyard.dev/version": version})
            for container in pod["status"].get("containerStatuses", ())
        ),
        default=0,
    )


def test_a_model_on_this_machine_cannot_be_served_by_a_cluster(served, tmp_path):
    with pytest.raises(InvalidInput, match="publish_model"):
        served.target.start_canary("fraud", ServedModel("1", served.models["1"].digest, str(tmp_path)))
    assert served.cluster.all("inferenceservices") == []
    assert served.cluster.all("configmaps") == []


def test_a_model_that_is_not_what_it_is_said_to_be_never_reaches_the_cluster(served):
    with pytest.raises(VerificationFailed):
        served.target.start_canary("fraud", ServedModel("1", served.models["2"].digest, served.models["1"].uri))
    with pytest.raises(VerificationFailed):
        served.target.start_canary("claims", served.models["1"])
    assert served.cluster.all("inferenceservices") == []


def test_a_copy_of_the_traffic_is_refused(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    with pytest.raises(InvalidInput, match="does not copy traffic"):
        served.target.set_share("fraud", 10, mirror=True)
    with pytest.raises(InvalidInput, match="percent"):
        served.target.set_share("fraud", 101)


def test_a_mode_that_the_model_is_not_served_in_is_refused_and_none_given_takes_what_there_is(served):
    served.bring("1")
    other = "knative" if served.mode == "standard" else "standard"
    with pytest.raises(InvalidInput, match=r"serving\.mode"):
        served.open(mode=other).state("fraud")
    assert served.open(mode="").state("fraud").stable.model == served.models["1"]


def test_an_inference_service_of_somebody_else_is_left_alone(served):
    mode = {"standard": "Standard", "knative": "Knative"}[served.mode]
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "fraud", "annotations": {"serving.kserve.io/deploymentMode": mode}},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://theirs/model"}}},
    }
    served.cluster.apply("inferenceservices", theirs)
    for verb in (
        lambda: served.target.state("fraud"),
        lambda: served.target.start_canary("fraud", served.models["1"]),
        lambda: served.target.roll_back("fraud"),
        lambda: served.target.restore("fraud", served.models["1"]),
    ):
        with pytest.raises(TargetChanged, match="not made by this package"):
            verb()
    assert served.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://theirs/model"


def test_the_arms_are_counted_by_what_runs_them(served):
    assert served.target.counts("fraud").stable is None
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    counted = served.target.counts("fraud")
    assert (counted.stable.answered, counted.canary.answered) == (1, 2)
    stable, canary = served.metrics.asked[-1]
    assert (stable.model_name, stable.version, stable.namespace, stable.service) == ("fraud", "1", "models", "fraud")
    assert canary.version == "2"
    kind = "deployments" if served.mode == "standard" else "revisions"
    assert served.cluster.get(kind, stable.name)
    assert served.cluster.get(kind, canary.name)


def test_a_record_is_kept_beside_the_service_and_written_only_over_what_was_read(served):
    assert served.target.read_record("fraud") is None
    served.target.write_record("fraud", {"revision": 1, "note": "one"}, revision=0)
    with pytest.raises(RecordChanged):
        served.open().write_record("fraud", {"revision": 1, "note": "two"}, revision=0)
    served.target.write_record("fraud", {"revision": 2}, revision=1)
    assert served.open().read_record("fraud") == {"revision": 2}
    served.bring("1")
    assert served.target.read_record("fraud") == {"revision": 2}
    served.target.write_record("fraud", None, revision=2)
    assert served.target.read_record("fraud") is None
    assert served.target.state("fraud").stable.model == served.models["1"]


def test_what_others_have_set_survives_a_whole_rollout(served):
    served.bring("1")

    def change(service):
        service["metadata"]["labels"]["team"] = "risk"
        service["spec"]["predictor"]["containerConcurrency"] = 7

    served.cluster.edit("inferenceservices", "fraud", change)
    served.cluster.settle()
    served.bring("2")
    found = served.service()
    assert found["metadata"]["labels"]["team"] == "risk"
    assert found["spec"]["predictor"]["containerConcurrency"] == 7


def test_a_field_of_ours_that_somebody_else_has_changed_stops_a_rollout_and_is_named(served):
    served.bring("1")

    def change(service):
        service["spec"]["predictor"]["model"]["storageUri"] = "s3://theirs/model"

    served.cluster.edit("inferenceservices", "fraud", change, manager="kubectl-edit")
    served.cluster.settle()
    with pytest.raises(TargetChanged, match=r"spec\.predictor\.model\.storageUri \(by kubectl-edit\)"):
        served.bring("2")


def _scale(served, replicas):
    served.cluster.edit("inferenceservices", "fraud", lambda found: found["spec"]["predictor"].update(minReplicas=replicas))
    served.cluster.settle()


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_replicas_that_somebody_changed_by_hand_stop_neither_a_rollback_nor_a_trial(served, replicas):
    served.bring("1", min_replicas=2)
    served.bring("2", min_replicas=3)
    _scale(served, replicas)
    served.target.restore("fraud", served.models["1"])
    assert served.shares()[-1] == {"1": 100}
    _scale(served, replicas)
    served.target.start_canary("fraud", served.models["3"])
    served.target.set_share("fraud", 10)
    served.target.roll_back("fraud")
    # They are what the version in charge has now, and what the next one has if nothing is said of it.
    assert served.service()["spec"]["predictor"]["minReplicas"] == replicas
    served.bring("3")
    assert served.service()["spec"]["predictor"]["minReplicas"] == replicas
    assert not served.was_ever_lost()


@pytest.mark.parametrize("replicas", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_replicas_that_somebody_changes_during_a_trial_do_not_stop_it(served, replicas):
    served.bring("1", min_replicas=3)
    for last in (served.target.promote, lambda name, _: served.target.roll_back(name)):
        served.target.start_canary("fraud", served.models["2"])
        served.target.set_share("fraud", 20)
        _scale(served, replicas)
        served.target.set_share("fraud", 60)
        _scale(served, replicas)
        last("fraud", served.models["2"].digest)
        state = served.target.state("fraud")
        assert (state.stable.share, state.canary) == (100, None)
        served.target.restore("fraud", served.models["1"])
    assert not served.was_ever_lost()


def test_traffic_is_taken_from_a_canary_whoever_gave_it_and_the_rest_is_left_to_them(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)

    def change(service):
        if served.mode == "standard":
            service["spec"]["canary"][0]["trafficPercent"] = 80
            service["spec"]["predictor"]["annotations"]["modelyard.dev/model-version"] = "mine"
        else:
            service["spec"]["predictor"]["canaryTrafficPercent"] = 80

    served.cluster.edit("inferenceservices", "fraud", change)
    served.cluster.settle()
    assert served.target.state("fraud").canary.share == 80
    with pytest.raises(TargetChanged, match="kubectl-edit"):
        served.target.set_share("fraud", 50)
    served.target.roll_back("fraud")
    assert served.target.state("fraud").canary is None
    assert served.shares()[-1] == ({"mine": 100} if served.mode == "standard" else {"1": 100})


def test_notes_that_were_lost_are_found_again_in_the_cluster(served):
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.target.set_share("fraud", 10)
    served.cluster.delete("configmaps", "fraud-modelyard")
    state = served.target.state("fraud")
    assert (state.stable.model, state.canary.model, state.canary.share) == (served.models["1"], served.models["2"], 10)
    served.target.set_share("fraud", 20)
    served.cluster.delete("configmaps", "fraud-modelyard")
    served.target.roll_back("fraud")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)
    assert not served.was_ever_lost()


def test_a_version_on_trial_whose_notes_were_lost_is_scaled_in_charge_as_the_one_before(serve):
    served = serve("standard")
    served.bring("1", autoscaler="hpa", min_replicas=2, max_replicas=9)
    served.target = served.open(autoscaler="hpa", min_replicas=2, max_replicas=9)
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.delete("configmaps", "fraud-modelyard")
    served.target.promote("fraud", served.models["2"].digest)
    predictor = served.service()["spec"]["predictor"]
    assert predictor["annotations"]["modelyard.dev/model-version"] == "2"
    assert predictor["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    assert (predictor["minReplicas"] >= 2, predictor["maxReplicas"]) == (True, 9)


def test_the_objects_say_which_version_it_is_where_it_comes_from_and_only_there(served):
    served.bring("1")
    found = served.service()
    predictor = found["spec"]["predictor"]
    model = served.models["1"]
    assert predictor["annotations"]["modelyard.dev/model-digest"] == model.digest
    assert predictor["annotations"]["modelyard.dev/run-id"] == "run-1"
    assert predictor["annotations"]["modelyard.dev/signer"]
    assert predictor["annotations"]["modelyard.dev/model-card"] == f"{model.uri}/card/model_card.md"
    assert predictor["model"]["storageUri"] == model.uri
    assert predictor["storageContainerName"] == "modelyard-verified"
    before = found["metadata"]["annotations"], found["metadata"]["labels"]
    served.bring("2")
    after = served.service()["metadata"]
    assert (after["annotations"], after["labels"]) == before


def test_versions_of_different_runtimes_follow_each_other(served):
    for version, runtime in (("1", "predictor"), ("2", "triton"), ("3", "predictor")):
        served.bring(version, runtime=runtime)
        model = served.service()["spec"]["predictor"]["model"]
        assert model["runtime"] == f"modelyard-{runtime}"
        assert {"name": "MODEL_VERSION", "value": version} in model["env"]
        assert served.target.state("fraud").stable.model == served.models[version]
    assert not served.was_ever_lost()
