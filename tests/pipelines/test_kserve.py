"""The whole of a cluster's part: signed versions in S3, real initializers and predictors, live traffic, a real Prometheus.

Only the API server and KServe's controllers are played; see ``tests.support.live_cluster``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.components.registry.registration import Registered, register_model
from modelyard.components.registry.versions import aliases
from modelyard.components.rollout.component import rollback_model, rollout_model
from modelyard.components.storage import uris
from modelyard.components.tracking.connection import client
from tests.services.prometheus import PrometheusServer, needs_prometheus
from tests.services.servers import rclone_s3
from tests.support.checked_traffic import CheckedTraffic
from tests.support.kfp_runner import run_component
from tests.support.live_cluster import LiveCluster
from tests.support.signed_models import attestations, sign_model, train_small_model

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_prometheus]

ROLLOUT: dict[str, Any] = {
    "model_name": "fraud",
    "target": "kserve",
    "serving": {"namespace": "models", "ready_seconds": 120},
    "steps": [50, 100],
    "bake_seconds": 2.0,
    "min_samples": 40,
    "look_seconds": 0.5,
    "deadline_seconds": 180.0,
    # The models have little in common, and two busy cores no steady latency.
    "limits": {"score_tolerance": 1.0, "max_latency_ratio": 64.0},
}


class Released:
    """Signed versions in a registry, their directories in S3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: dict[str, Registered] = {}

    def release(self, seed: int, against: str = "") -> Registered:
        """Trains, judges, signs and registers one."""
        folder = self.folder / f"seed{seed}"
        model = train_small_model(folder / "model", seed)
        champion = {"version": against, "digest": self.versions[against].digest} if against else None
        papers = attestations(folder / "papers", model, champion=champion)
        sign_model(model, **papers, signed_model=folder / "signed", model_name="fraud")
        made = register_model(folder / "signed", evaluation=papers["evaluation"], model_name="fraud")
        self.versions[made.version] = made
        return made

    def directories(self) -> dict[str, Path]:
        """The versions' directories, fetched from the store."""
        return {name: uris.download(one.uri, self.folder / f"fetched-{name}") for name, one in self.versions.items()}


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[LiveCluster]:
    for variable in [name for name in os.environ if name.startswith(("MODELYARD_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(variable)
    for folder in ("s3", "prometheus", "home"):
        (tmp_path / folder).mkdir()
    prometheus = PrometheusServer(tmp_path / "prometheus")
    prometheus.start()
    try:
        with rclone_s3(tmp_path / "s3") as store:
            for name, value in store.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
            monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://bucket/models")
            with LiveCluster(tmp_path / "cluster", prometheus) as cluster:
                for name, value in cluster.environment.items():
                    monkeypatch.setenv(name, value)
                yield cluster
    finally:
        prometheus.stop()


def _roll_out(folder: Path, version: Registered, **others: Any) -> dict[str, Any]:
    given = {**ROLLOUT, "version": version.version, "digest": version.digest, "uri": version.uri, **others}
    return run_component(rollout_model, folder, **given)


def test_versions_go_live_behind_a_gateway_and_come_back_without_a_failed_request(cluster, tmp_path):
    released = Released(tmp_path / "released")
    first = released.release(0)
    outputs = _roll_out(tmp_path / "first", first)
    assert (outputs["decision"], outputs["outcome"]) == ("pass", "promoted")
    second = released.release(1, against="1")
    with CheckedTraffic(cluster.url, released.directories(), threads=1, pause=0.01) as traffic:
        outputs = _roll_out(tmp_path / "second", second)
        assert (outputs["decision"], outputs["outcome"]) == ("pass", "promoted"), outputs["reasons"]
        assert traffic.ask() == "2"
        back = run_component(rollback_model, tmp_path / "back", model_name="fraud", target="kserve", namespace="models")
        assert (back["version"], back["replaced"]) == ("1", "2")
        assert traffic.ask() == "1"
    assert not traffic.failed
    assert not traffic.wrong
    assert traffic.answered["1"] > 40
    assert traffic.answered["2"] > 40
    assert aliases(client(), "fraud") == {"champion": "1"}


def test_a_version_that_was_altered_in_the_store_never_gets_a_request(cluster, tmp_path):
    released = Released(tmp_path / "released")
    assert _roll_out(tmp_path / "first", released.release(0))["outcome"] == "promoted"
    second = released.release(1, against="1")
    key = second.uri.removeprefix("s3://")
    path = tmp_path / "s3" / "objects" / key / "model.ubj"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    outputs = _roll_out(tmp_path / "second", second)
    assert (outputs["decision"], outputs["outcome"]) == ("fail", "rolled_back")
    assert {tuple(each.shares) for each in cluster.history if each.name == "fraud"} <= {(), ("1",)}
