"""The flows of serving at the API of a cluster, in both modes; KServe's controllers are played by the test.

With ``KUBECONFIG`` they run at that cluster's API server, in a namespace that is made for them and taken away after.
"""

from collections.abc import Callable

import pytest

from modelyard.components.publishing.publishing import publish_model
from modelyard.components.serving.kserve.api import Cluster
from modelyard.components.serving.kserve.placement import parse_placement
from modelyard.components.serving.kserve.target import KServeTarget
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.target import ArmCounts, Counts, RecordChanged, ServedModel, TargetChanged
from tests.support.signed_models import make_signed_model

pytestmark = pytest.mark.server


class Counted:
    """Counts nothing, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Workload | None, Workload | None]] = []

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        self.asked.append((stable, canary))
        return ArmCounts(*(Counts(origin=arm.name) if arm else None for arm in (stable, canary)))


@pytest.fixture(scope="module")
def models(rclone_s3, tmp_path_factory):
    """Three signed versions on S3, by version."""
    root, made = tmp_path_factory.mktemp("models"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(root / "home"))
        for name, value in rclone_s3.environment.items():
            patch.setenv(name, value)
        for version in ("1", "2", "3"):
            make_signed_model(root / version, seed=int(version))
            found = publish_model(root / version / "signed", model_name="fraud", destination="s3://bucket/flows")
            made[version] = ServedModel(version, found.digest, found.uri)
        yield made


@pytest.fixture(params=["standard", "knative"])
def opened(request, api_server, controllers, models) -> Callable[..., KServeTarget]:
    """Opens the target, each time as another process would; what it served is taken away in the end."""
    mode = request.param

    def open_it(metrics: Counted | None = None) -> KServeTarget:
        cluster = Cluster(api_server.connect(), api_server.namespace)
        return KServeTarget(cluster, parse_placement({"mode": mode}), metrics or Counted(), poll_seconds=0.05)

    yield open_it
    store = controllers.store
    for kind in ("inferenceservices", "configmaps"):
        for found in store.all(kind):
            if found["metadata"]["name"].startswith("fraud"):
                store.delete(kind, found["metadata"]["name"])
    # An API server alone collects no garbage.
    for kind in ("ksvcs", "revisions", "deployments", "httproutes", "services", "pods"):
        for found in store.all(kind):
            if any(owner["uid"] for owner in found["metadata"].get("ownerReferences", ())):
                store.delete(kind, found["metadata"]["name"])


def arms(target: KServeTarget) -> tuple[tuple[str, int] | None, tuple[str, int] | None, str]:
    """Version and share of both arms, and the version before."""
    state = target.state("fraud")
    stable, canary = ((arm.model.version, arm.share) if arm else None for arm in (state.stable, state.canary))
    return stable, canary, state.previous.version if state.previous else ""


def test_a_version_is_tried_promoted_and_taken_back(opened, models):
    opened().restore("fraud", models["1"])
    assert arms(opened()) == (("1", 100), None, "")
    opened().start_canary("fraud", models["2"])
    assert arms(opened()) == (("1", 100), ("2", 0), "")
    for share in (10, 50, 0, 100):
        opened().set_share("fraud", share)
        assert arms(opened()) == (("1", 100 - share), ("2", share), "")
    opened().promote("fraud", models["2"].digest)
    assert arms(opened()) == (("2", 100), None, "1")
    opened().restore("fraud", models["1"])
    assert arms(opened()) == (("1", 100), None, "2")


def test_a_trial_that_is_ended_leaves_the_stable_version_alone(opened, models):
    opened().restore("fraud", models["1"])
    opened().start_canary("fraud", models["2"])
    opened().set_share("fraud", 25)
    opened().roll_back("fraud")
    assert arms(opened()) == (("1", 100), None, "")
    opened().start_canary("fraud", models["3"])
    opened().set_share("fraud", 25)
    assert arms(opened()) == (("1", 75), ("3", 25), "")


def test_a_version_whose_model_is_refused_has_failed_and_says_why(opened, controllers, models):
    controllers.trouble("2", "load", "the model is not signed by a key that is trusted")
    opened().restore("fraud", models["1"])
    opened().start_canary("fraud", models["2"])
    canary = opened().state("fraud").canary
    assert (canary.ready, canary.failed) == (False, True)
    assert "not signed" in canary.reason
    opened().roll_back("fraud")
    assert arms(opened()) == (("1", 100), None, "")


def test_another_version_on_trial_is_not_replaced(opened, models):
    opened().restore("fraud", models["1"])
    opened().start_canary("fraud", models["2"])
    with pytest.raises(TargetChanged):
        opened().start_canary("fraud", models["3"])
    assert arms(opened()) == (("1", 100), ("2", 0), "")


def test_metrics_are_asked_for_what_runs_each_arm(opened, models):
    metrics = Counted()
    opened().restore("fraud", models["1"])
    opened().start_canary("fraud", models["2"])
    counts = opened(metrics).counts("fraud")
    ((stable, canary),) = metrics.asked
    assert (stable.version, canary.version) == ("1", "2")
    assert (counts.stable.origin, counts.canary.origin) == (stable.name, canary.name)
    assert stable.name != canary.name


def test_a_record_is_written_over_the_one_that_was_read(opened, models):
    opened().restore("fraud", models["1"])
    assert opened().read_record("fraud") is None
    opened().write_record("fraud", {"revision": 1, "step": 0}, revision=0)
    opened().write_record("fraud", {"revision": 2, "step": 1}, revision=1)
    with pytest.raises(RecordChanged):
        opened().write_record("fraud", {"revision": 2, "step": 5}, revision=1)
    assert opened().read_record("fraud") == {"revision": 2, "step": 1}
    opened().write_record("fraud", None)
    assert opened().read_record("fraud") is None
