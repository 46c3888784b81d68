"""What scaled a version in Standard mode goes when the version does, which KServe does not see to."""

import pytest

from modelyard.components.serving.kserve.api import POD_AUTOSCALER, SCALED_OBJECT, Cluster
from tests.support.fake_cluster.predictors import KSERVE

pytestmark = pytest.mark.server
_SCALING = {
    "hpa": {"autoscaler": "hpa", "min_replicas": 1, "max_replicas": 3},
    "keda": {"autoscaler": "keda", "min_replicas": 1, "max_replicas": 3},
}
_KINDS = {"hpa": POD_AUTOSCALER[1], "keda": SCALED_OBJECT[1]}


@pytest.fixture
def served(serve):
    return serve("standard")


@pytest.fixture(params=list(_SCALING))
def scaler(request):
    return request.param


def _scaled(served, scaler):
    """The versions that an autoscaler scales."""
    served.cluster.settle()
    return [found["metadata"]["labels"]["modelyard.dev/version"] for found in served.cluster.all(_KINDS[scaler])]


def test_a_version_that_was_replaced_keeps_no_autoscaler(served, scaler):
    served.bring("1", **_SCALING[scaler])
    assert _scaled(served, scaler) == ["1"]
    served.bring("2", **_SCALING[scaler])
    assert _scaled(served, scaler) == ["2"]


def test_a_version_that_was_sent_back_keeps_no_autoscaler(served, scaler):
    served.bring("1", **_SCALING[scaler])
    served.open(**_SCALING[scaler]).start_canary("fraud", served.models["2"])
    # KEDA scales none on trial.
    assert sorted(_scaled(served, scaler)) == (["1", "2"] if scaler == "hpa" else ["1"])
    served.target.roll_back("fraud")
    assert _scaled(served, scaler) == ["1"]


def test_a_version_that_was_sent_back_while_the_one_in_charge_is_down_keeps_no_autoscaler(served):
    served.bring("1", **_SCALING["hpa"])
    served.open(**_SCALING["hpa"]).start_canary("fraud", served.models["2"])
    served.cluster.trouble("1", "crash")
    deployed = {"modelyard.dev/version": "1"}
    served.cluster.wait(lambda: not served.cluster.all("deployments", deployed)[0]["status"]["availableReplicas"])
    served.open(obey_seconds=3).roll_back("fraud")
    assert _scaled(served, "hpa") == ["1"]


def test_a_version_that_is_restored_is_not_scaled_by_what_scaled_it_before(served, scaler):
    served.bring("1", **_SCALING[scaler])
    workload = served.cluster.all(_KINDS[scaler])[0]
    served.bring("2", autoscaler="none", min_replicas=1)
    # As it was left behind by whoever did not see to it.
    del workload["metadata"]["uid"], workload["metadata"]["resourceVersion"]
    with served.cluster.lock:
        served.cluster.store.create(_KINDS[scaler], workload, KSERVE)
    seen = []

    def look():
        trials = served.service()["spec"].get("canary") or []
        if trials:
            seen.append(served.cluster.all(_KINDS["keda"]))

    served.cluster.interfere(look, times=10000, method="GET")
    served.target.restore("fraud", served.models["1"])
    assert seen
    if scaler == "keda":
        # On trial its replicas are fixed; in charge KEDA scales it again.
        assert seen[0] == []
    assert _scaled(served, scaler) == ["1"]


def test_what_belongs_to_somebody_else_or_to_another_part_of_the_service_stays(served):
    served.bring("1", **_SCALING["hpa"])
    found = served.cluster.all("horizontalpodautoscalers")[0]
    mine = found["metadata"]["ownerReferences"]
    labels = found["metadata"]["labels"]
    for name, owners, component in (
        ("theirs", [{**mine[0], "uid": "another"}], "predictor"),
        ("nobodys", [], "predictor"),
        ("fraud-transformer", mine, "transformer"),
    ):
        metadata = {"name": name, "namespace": "models", "ownerReferences": owners}
        metadata["labels"] = {**labels, "component": component}
        with served.cluster.lock:
            served.cluster.store.create("horizontalpodautoscalers", {"metadata": metadata, "spec": found["spec"]}, "kubectl")
    served.bring("2", **_SCALING["hpa"])
    served.cluster.settle()
    names = {each["metadata"]["name"] for each in served.cluster.all("horizontalpodautoscalers")}
    assert names >= {"theirs", "nobodys", "fraud-transformer"}
    assert len(names) == 4
    assert found["metadata"]["name"] not in names


def test_a_cluster_without_keda_is_served_all_the_same(served):
    served.cluster.fail(404, times=10000, path="keda.sh")
    served.bring("1", **_SCALING["hpa"])
    served.bring("2", **_SCALING["hpa"])
    assert _scaled(served, "hpa") == ["2"]


def test_one_that_changes_while_it_is_taken_away_goes_too(served):
    served.bring("1", **_SCALING["hpa"])
    name = served.cluster.all("horizontalpodautoscalers")[0]["metadata"]["name"]
    status = {"currentReplicas": 3}
    served.cluster.interfere(
        lambda: served.cluster.store.set_status("horizontalpodautoscalers", name, "models", status),
        method="DELETE",
        path="horizontalpodautoscalers",
    )
    served.bring("2", **_SCALING["hpa"])
    assert _scaled(served, "hpa") == ["2"]


class _Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


@pytest.mark.parametrize("verb", ["promote", "roll_back", "restore"])
def test_killed_before_an_autoscaler_is_taken_away_the_same_call_takes_it_away(served, monkeypatch, verb):
    served.bring("1", **_SCALING["hpa"])
    target = served.open(**_SCALING["hpa"])
    target.start_canary("fraud", served.models["2"])
    target.set_share("fraud", 100 if verb == "promote" else 30)

    def call():
        if verb == "promote":
            served.open().promote("fraud", served.models["2"].digest)
        elif verb == "roll_back":
            served.open().roll_back("fraud")
        else:
            served.open().restore("fraud", served.models["1"])

    def kill(cluster, kind, *args, **details):
        assert kind == POD_AUTOSCALER
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "delete", kill)
        with pytest.raises(_Killed):
            call()
    assert sorted(_scaled(served, "hpa")) == ["1", "2"]
    call()
    assert _scaled(served, "hpa") == (["2"] if verb == "promote" else ["1"])
