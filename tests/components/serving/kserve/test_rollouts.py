"""Whole rollouts at a cluster, by the engine, the real registry and real models on S3; the cluster is the fake one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config
from kubernetes.client.rest import RESTClientObject

from modelyard.components.errors import NotAvailable
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import promote_model
from modelyard.components.registry.registration import register_model
from modelyard.components.rollout.plan import parse_plan
from modelyard.components.rollout.promoting import promote
from modelyard.components.rollout.record import Progress
from modelyard.components.rollout.rollback import roll_back
from modelyard.components.rollout.rolling_out import run_rollout
from modelyard.components.serving.kserve.api import Cluster
from modelyard.components.serving.kserve.placement import parse_placement
from modelyard.components.serving.kserve.target import KServeTarget
from modelyard.components.serving.target import ServedModel, TargetChanged
from modelyard.components.tracking.connection import client as registry
from tests.components.rollout.conftest import _at_home
from tests.services.fixtures import rclone_s3  # noqa: F401 (a fixture)
from tests.support.counted_traffic import CountedTraffic
from tests.support.fake_cluster import FakeCluster
from tests.support.signed_models import attestations, sign_model, train_small_model
from tests.support.simulated_target import Killed, SimulatedTime

PLAN: dict[str, Any] = {
    "steps": [5, 50],
    "bake_seconds": 30,
    "min_samples": 50,
    "look_seconds": 10,
    "deadline_seconds": 600,
    "shadow_seconds": 0,
    "limits": {},
}
MODES = ("standard", "knative")

pytestmark = pytest.mark.server


@dataclass(frozen=True)
class Registry:
    """A registry with three versions on S3: the first is champion, the third was judged against it and challenges."""

    home: Path
    versions: dict[str, ServedModel]


@pytest.fixture(scope="session")
def _template(tmp_path_factory, rclone_s3) -> Registry:  # noqa: F811
    root, made = tmp_path_factory.mktemp("registry"), []
    with pytest.MonkeyPatch.context() as patch:
        _at_home(patch, root / "home")
        _with_store(patch, rclone_s3.environment)
        for seed in (0, 2, 1):
            model = train_small_model(root / f"model{seed}", seed)
            against = {"version": made[0].version, "digest": made[0].digest} if made else None
            papers = attestations(root / f"papers{seed}", model, champion=against)
            sign_model(model, **papers, signed_model=root / f"signed{seed}", model_name="fraud")
            made.append(register_model(root / f"signed{seed}", evaluation=papers["evaluation"], model_name="fraud"))
        promote_model("fraud", made[0].version, made[0].digest)
    return Registry(root / "home", {one.version: ServedModel(one.version, one.digest, one.uri) for one in made})


def _with_store(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.setenv("MODELYARD_MODEL_STORE", "s3://bucket/rollouts")


class Kills:
    """Kills the client at a write to the API: before it is sent, or after it was answered; it stays dead until revived."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.writes, self._at, self._before, self._dead = 0, 0, False, False
        ask = RESTClientObject.request

        def request(rest: RESTClientObject, method: str, *args: Any, **details: Any) -> Any:
            if self._dead:
                raise Killed(method)
            writes = method != "GET"
            self.writes += writes
            mine = writes and self.writes == self._at
            if mine and self._before:
                self._die(method)
            answer = ask(rest, method, *args, **details)
            if mine:
                self._die(method)
            return answer

        patch.setattr(RESTClientObject, "request", request)

    def _die(self, method: str) -> None:
        self._dead = True
        raise Killed(method)

    def at(self, write: int, *, before: bool) -> None:
        """Kills at the write of this number from now."""
        self._at, self._before, self._dead = self.writes + write, before, False

    def revive(self) -> None:
        """Another process takes over."""
        self._at, self._dead = 0, False


class Trial:
    """A cluster that serves version 1, and rollouts at it."""

    def __init__(self, cluster: FakeCluster, found: Registry, mode: str, kills: Kills) -> None:
        self.cluster, self.versions, self.mode, self.kills = cluster, found.versions, mode, kills
        self.time = SimulatedTime()
        self.traffic = CountedTraffic(self.time, lambda: cluster.traffic("fraud"), failing={})
        self.target = self.open()

    def open(self, **serving: Any) -> KServeTarget:
        """A target as another process opens it."""
        opened = Cluster(config.new_client_from_config(str(self.cluster.kubeconfig)), self.cluster.namespace)
        placement = parse_placement({"mode": self.mode, "ready_seconds": 4, **serving})
        return KServeTarget(opened, placement, self.traffic, obey_seconds=20, poll_seconds=0.02)

    def run(self, version: str = "3", **changes: Any) -> Progress:
        """Rolls a version out, in another process each time."""
        self.kills.revive()
        return self._run(version, **changes)

    def _run(self, version: str = "3", **changes: Any) -> Progress:
        model = self.versions[version]
        return run_rollout(
            self.open(),
            parse_plan(**{**PLAN, **changes}),
            model_name="fraud",
            version=model.version,
            digest=model.digest,
            uri=model.uri,
            clock=self.time,
            now=self.time,
            sleep=self.time.sleep,
            replay=lambda *_: "",
        )

    def run_killed(self, write: int, *, before: bool) -> Progress | None:
        """A rollout that is killed at one of its writes; None if it was, else how it ended. Its claim runs out after it."""
        self.kills.at(write, before=before)
        try:
            return self._run()
        except Killed:
            return None
        finally:
            self.kills.revive()
            self.time.sleep(3600)

    def check_nothing_was_lost(self) -> None:
        """At no moment did any traffic reach nobody."""
        self.cluster.settle()
        for routed in self.cluster.history:
            assert "" not in routed.shares, self.cluster.history


@pytest.fixture(params=MODES)
def trial(request, _template, rclone_s3, tmp_path, monkeypatch):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(_template.home / "mlflow.db", home / "mlflow.db")
    shutil.copytree(_template.home / "keys", home / "keys")
    _at_home(monkeypatch, home)
    _with_store(monkeypatch, rclone_s3.environment)
    with FakeCluster(tmp_path) as cluster:
        at = Trial(cluster, _template, request.param, Kills(monkeypatch))
        at.target.restore("fraud", at.versions["1"])
        yield at


def test_a_good_version_gets_all_the_traffic_by_its_steps(trial):
    done = trial.run()
    assert (done.decision, done.outcome) == ("pass", "promoted")
    state = trial.target.state("fraud")
    assert (state.stable.model, state.canary, state.previous) == (trial.versions["3"], None, trial.versions["1"])
    assert [routed.shares for routed in trial.cluster.history] == [
        {"1": 100},
        {"1": 95, "3": 5},
        {"1": 50, "3": 50},
        {"3": 100},
    ]
    assert versions.aliases(registry(), "fraud")["champion"] == "3"


def test_a_version_that_fails_gives_its_traffic_back(trial):
    trial.traffic.failing = {"3": 0.6}
    done = trial.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    state = trial.target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary) == (trial.versions["1"], 100, None)
    trial.check_nothing_was_lost()
    assert [routed.shares for routed in trial.cluster.history] == [{"1": 100}, {"1": 95, "3": 5}, {"1": 100}]
    assert versions.aliases(registry(), "fraud")["champion"] == "1"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("load", "the model is not signed by a key that is trusted"),
        # These two may come right by themselves, so they are waited for.
        pytest.param("image", 'Back-off pulling image "example.com/modelyard-predictor:1"', marks=pytest.mark.slow),
        pytest.param("unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", marks=pytest.mark.slow),
    ],
    ids=["refused", "no_image", "no_gpu"],
)
def test_a_version_that_cannot_start_gets_no_traffic_and_the_report_says_why(trial, kind, message):
    trial.cluster.trouble("3", kind, message)
    done = trial.run()
    assert done.outcome == "rolled_back"
    assert message in " ".join(done.reasons)
    state = trial.target.state("fraud")
    assert (state.stable.model, state.stable.ready, state.canary) == (trial.versions["1"], True, None)
    trial.check_nothing_was_lost()
    assert {version for routed in trial.cluster.history for version in routed.shares} == {"1"}


def test_killed_in_the_middle_a_rollout_goes_on(trial):
    assert trial.run_killed(9, before=False) is None
    assert trial.run().outcome == "promoted"
    assert trial.target.state("fraud").stable.model == trial.versions["3"]
    trial.check_nothing_was_lost()


@pytest.mark.slow
def test_killed_at_one_write_after_the_other_a_rollout_goes_on_and_ends_well(trial):
    for write in range(1, 100):
        done = trial.run_killed(write, before=bool(write % 2))
        if done is not None:
            break
    assert (done.decision, done.outcome) == ("pass", "promoted")
    state = trial.target.state("fraud")
    assert (state.stable.model, state.canary, state.previous) == (trial.versions["3"], None, trial.versions["1"])
    trial.check_nothing_was_lost()
    assert write > 5


@pytest.mark.slow
def test_killed_at_one_write_after_the_other_a_bad_version_still_goes(trial):
    trial.traffic.failing = {"3": 0.6}
    for write in range(1, 100):
        done = trial.run_killed(write, before=not write % 2)
        if done is not None:
            break
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert trial.target.state("fraud").stable.model == trial.versions["1"]
    trial.check_nothing_was_lost()
    assert trial.cluster.traffic("fraud") == {"1": 100}


def test_a_cluster_that_throttles_and_drops_does_not_change_how_it_ends(trial):
    trial.cluster.fail(429, times=2, retry_after=0.1, method="PATCH")
    trial.cluster.fail(503, times=2, method="GET")
    trial.cluster.drop(times=1, method="PATCH", after_work=True)
    assert trial.run().outcome == "promoted"
    trial.check_nothing_was_lost()


def test_a_share_that_somebody_else_sets_ends_the_rollout_and_the_stable_version_serves(trial):
    def meddle() -> None:
        trial.cluster.edit("inferenceservices", "fraud", _share_of(trial.mode, 80))
        trial.cluster.settle()

    trial.time.after(35, meddle)
    done = trial.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    trial.check_nothing_was_lost()
    assert trial.cluster.traffic("fraud") == {"1": 100}


def _share_of(mode: str, percent: int) -> Callable[[dict[str, Any]], None]:
    def change(service: dict[str, Any]) -> None:
        if mode == "standard":
            service["spec"]["canary"][0]["trafficPercent"] = percent
        else:
            service["spec"]["predictor"]["canaryTrafficPercent"] = percent

    return change


def test_a_service_that_somebody_else_deletes_ends_the_rollout(trial):
    trial.time.after(35, lambda: trial.cluster.delete("inferenceservices", "fraud"))
    try:
        done = trial.run()
    except TargetChanged:
        return
    assert done.outcome == "rolled_back"


def test_the_version_on_trial_is_put_in_charge_by_hand_and_taken_back(trial):
    trial.target.start_canary("fraud", trial.versions["3"])
    trial.target.set_share("fraud", 20)
    done = promote("fraud", "", trial.open(), "it cannot wait")
    assert (done.version, done.replaced, trial.cluster.traffic("fraud")) == ("3", "1", {"3": 100})
    assert promote("fraud", "", trial.open()) == done
    assert roll_back("fraud", trial.open(), "complaints").version == "1"
    trial.check_nothing_was_lost()
    assert [routed.shares for routed in trial.cluster.history] == [{"1": 100}, {"1": 80, "3": 20}, {"3": 100}, {"1": 100}]
    assert versions.aliases(registry(), "fraud")["champion"] == "1"


def test_a_version_that_cannot_start_is_not_put_in_charge_by_hand(trial):
    trial.cluster.trouble("3", "load", "the model is not signed by a key that is trusted")
    with pytest.raises(NotAvailable, match=r"cannot be put in charge: .*not signed by a key that is trusted"):
        promote("fraud", "3", trial.open())
    assert (trial.cluster.traffic("fraud"), trial.target.state("fraud").canary) == ({"1": 100}, None)
    assert versions.aliases(registry(), "fraud")["champion"] == "1"


@pytest.mark.slow
def test_killed_at_one_write_after_the_other_a_promotion_by_hand_is_finished(trial):
    for write in range(1, 100):
        trial.kills.at(write, before=bool(write % 2))
        try:
            done = promote("fraud", "3", trial.open())
            break
        except Killed:
            continue
        finally:
            trial.kills.revive()
    assert (done.version, trial.target.state("fraud").stable.model) == ("3", trial.versions["3"])
    trial.check_nothing_was_lost()
    assert write > 3


@pytest.mark.slow
def test_from_the_command_line_a_cluster_is_looked_at_split_promoted_and_rolled_back(trial):
    def run(*words: str) -> str:
        command = [Path(sys.executable).with_name("modelyard"), *words, "--target", "kserve", "--namespace", "models"]
        environment = {**os.environ, "KUBECONFIG": str(trial.cluster.kubeconfig)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "canary    version 3             20 %  ready" in run("split", "fraud", "--version", "3", "--share", "20")
    assert "version 3 is in charge in place of version 1" in run("promote", "fraud")
    assert "previous  version 1  (modelyard rollback fraud --target kserve --namespace models" in run("status", "fraud")
    assert "version 1 is in charge, version 3 was taken back" in run("rollback", "fraud")
    assert trial.cluster.traffic("fraud") == {"1": 100}
