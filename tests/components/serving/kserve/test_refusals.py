"""Why KServe makes nothing of a version, told by the target in each of the places where KServe says it."""

import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.kserve import target

pytestmark = pytest.mark.server
_DENIED = 'admission webhook "policies.example.com" denied the request: node selectors are not allowed'
_NO_RUNTIME = "No ServingRuntimes or ClusterServingRuntimes with the name: modelyard-triton"


@pytest.fixture
def told_soon(monkeypatch):
    monkeypatch.setattr(target, "_TELL_AFTER_SECONDS", 0.1)


def _arm(served):
    return served.target.state("fraud").canary


def test_the_runtime_of_a_first_version_that_is_not_there_is_named_while_it_is_waited_for(served, told_soon, capsys):
    served.cluster.delete("clusterservingruntimes", "modelyard-predictor")
    told = r"KServe does not start it: Waiting for runtime to become available \(runtime 'modelyard-predictor'\)"
    with pytest.raises(NotAvailable, match=rf"in vain for version 1 .* to be ready: {told}"):
        served.open(ready_seconds=1).start_canary("fraud", served.models["1"])
    assert capsys.readouterr().out.count("is not ready yet: KServe does not start it: Waiting for runtime") == 1
    assert (_arm(served).ready, _arm(served).failed) == (False, False)
    # Once it is there the version comes up by itself.
    served.cluster._add_runtime("modelyard-predictor")
    served.bring("1")
    assert served.shares() == [{"1": 100}]


def test_what_kserve_cannot_make_of_a_first_version_is_told_as_its_condition_says_it(served, told_soon, capsys):
    served.cluster.deny("1", _DENIED)
    told = f"KServe does not start it: fails to reconcile predictor: .*{_DENIED}"
    with pytest.raises(NotAvailable, match=told):
        served.open(ready_seconds=1).start_canary("fraud", served.models["1"])
    assert "node selectors are not allowed" in capsys.readouterr().out
    assert not _arm(served).failed
    served.cluster.mend("1")
    served.bring("1")
    assert served.target.state("fraud").stable.model == served.models["1"]


def test_what_kserve_cannot_make_of_a_version_on_trial_is_told_and_the_one_in_charge_goes_on(served, told_soon, capsys):
    served.bring("1")
    served.cluster.deny("2", _DENIED)
    with pytest.raises(NotAvailable, match=rf"version 2 .* to be ready: KServe does not start it: .*{_DENIED}"):
        served.open(ready_seconds=1).start_canary("fraud", served.models["2"])
    assert "Version 2 of 'fraud' is not ready yet: KServe does not start it" in capsys.readouterr().out
    if served.mode == "standard":
        # Only the event says it.
        conditions = {each["type"]: each["status"] for each in served.service()["status"]["conditions"]}
        assert conditions["PredictorReady"] == "True"
    served.target.roll_back("fraud")
    state = served.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (served.models["1"], 100, None)
    assert not served.was_ever_lost()


@pytest.mark.parametrize(
    ("mode", "runtime", "told"),
    [
        # Of a predictor on trial there is only the event; Knative's is the service's own.
        ("standard", "triton", _NO_RUNTIME),
        ("knative", "predictor", "Waiting for runtime to become available"),
    ],
)
def test_the_runtime_of_a_version_on_trial_that_is_not_there_is_told(serve, mode, runtime, told):
    served = serve(mode)
    served.bring("1")
    served.cluster.delete("clusterservingruntimes", f"modelyard-{runtime}")
    with pytest.raises(NotAvailable, match=f"KServe does not start it: .*{told}"):
        served.open(ready_seconds=1, runtime=runtime).start_canary("fraud", served.models["2"])
    assert served.cluster.traffic("fraud") == {"1": 100}


def _event(served, name, message, time, **changed):
    metadata = served.service()["metadata"]
    involved = {"kind": "InferenceService", "name": "fraud", "uid": metadata["uid"]}
    event = {"involvedObject": involved, "type": "Warning", "reason": "InternalError", "message": message}
    event |= {"metadata": {"name": name, "namespace": "models"}, "lastTimestamp": time, **changed}
    with served.cluster.lock:
        served.cluster.store.create("events", event, "somebody")


def test_only_the_newest_error_of_this_service_since_the_version_was_started_is_told(serve):
    served = serve("standard")
    served.bring("1")
    served.target.start_canary("fraud", served.models["2"])
    served.cluster.settle()
    served.cluster.pause()
    with served.cluster.lock:
        served.cluster.store.delete("deployments", _arm_workload(served), "models")
    _event(served, "old", "of a version before", "2020-01-01T00:00:00Z")
    another = {"kind": "InferenceService", "name": "fraud", "uid": "another"}
    _event(served, "another", "of a service before", "2999-01-01T00:00:00Z", involvedObject=another)
    _event(served, "normal", "no error", "2999-01-01T00:00:00Z", type="Normal")
    _event(served, "else", "another reason", "2999-01-01T00:00:00Z", reason="UpdateFailed")
    assert _arm(served).reason == "it is being started"
    _event(served, "first", "the first error", "2998-01-01T00:00:00Z")
    assert _arm(served).reason == "KServe does not start it: the first error"
    micro = {"lastTimestamp": None, "eventTime": "2998-01-02T00:00:00.250000Z"}
    _event(served, "later", "a later error", None, **micro)
    assert _arm(served).reason == "KServe does not start it: a later error"
    series = {"count": 9, "lastObservedTime": "2998-01-03T00:00:00.250000Z"}
    _event(served, "repeated", "the last error", None, **{**micro, "series": series})
    assert _arm(served).reason == "KServe does not start it: the last error"
    # Without the right to look at events it only is not told.
    served.cluster.fail(403, path="/events")
    assert _arm(served).reason == "it is being started"


def _arm_workload(served):
    return f"fraud-{served.service()['spec']['canary'][0]['predictor']['name']}-predictor"
