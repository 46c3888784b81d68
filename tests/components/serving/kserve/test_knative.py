"""What KServe's controller would do wrong in Knative mode, if it were not asked in the right order."""

import pytest

from modelyard.components.errors import NotAvailable

pytestmark = pytest.mark.server


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
    before = _component(served)["previousRolledoutRevision"]

    def fall_back():
        # As it does when the new share reaches the route before the new template makes a revision.
        status = served.service()["status"]
        status["components"]["predictor"]["latestRolledoutRevision"] = before
        served.cluster.store.set_status("inferenceservices", "fraud", "models", status)

    served.cluster.interfere(fall_back, method="GET", path="inferenceservices", skip=2)
    with pytest.raises(NotAvailable, match="KServe gave the traffic to another version"):
        served.target.start_canary("fraud", served.models["3"])
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["2"], 100, None)
    served.target.start_canary("fraud", served.models["3"])
    assert served.target.state("fraud").stable.model == served.models["2"]


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
