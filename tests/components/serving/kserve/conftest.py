import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from modelyard.components.serving.kserve.api import Cluster
from modelyard.components.serving.kserve.placement import parse_placement
from modelyard.components.serving.kserve.target import KServeTarget
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.target import ArmCounts, Counts, ServedModel
from modelyard.components.storage import uris
from tests.support.fake_cluster import FakeCluster
from tests.support.signed_models import make_signed_model

MODES = ("standard", "knative")


@dataclass(frozen=True)
class Released:
    """Signed models, by version, and their directories by URI; ``test_rollouts`` fetches them from a real S3."""

    models: dict[str, ServedModel]
    directories: dict[str, Path]
    home: Path


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    root = tmp_path_factory.mktemp("released")
    found = Released({}, {}, root / "home")
    with pytest.MonkeyPatch.context() as patch:
        _settings(patch, found)
        for seed, version in enumerate(("1", "2", "3")):
            made = make_signed_model(root / version, seed=seed, run_id=f"run-{version}")
            uri = f"s3://models/fraud/{made.model_digest.removeprefix('blake3:')}"
            found.models[version] = ServedModel(version, made.model_digest, uri)
            found.directories[uri] = root / version / "signed"
    return found


def _settings(patch: pytest.MonkeyPatch, found: Released) -> None:
    for variable in [name for name in os.environ if name.startswith(("MODELYARD_", "MLFLOW_"))]:
        patch.delenv(variable)
    patch.setenv("MODELYARD_HOME", str(found.home))
    patch.setattr(uris, "download", lambda uri, destination: Path(shutil.copytree(found.directories[uri], destination)))


class AskedMetrics:
    """A metrics source that writes down which workloads it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Workload | None, Workload | None]] = []

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        self.asked.append((stable, canary))
        return ArmCounts(Counts(answered=1) if stable else None, Counts(answered=2) if canary else None)


class Served:
    """A cluster, and targets in it as processes open them."""

    def __init__(self, cluster: FakeCluster, models: dict[str, ServedModel], mode: str) -> None:
        self.cluster, self.models, self.mode = cluster, models, mode
        self.metrics = AskedMetrics()
        self.target = self.open()

    def api(self, patience: float = 60.0) -> Cluster:
        configuration = client.Configuration()
        config.load_kube_config(str(self.cluster.kubeconfig), client_configuration=configuration)
        configuration.retries = False
        return Cluster(client.ApiClient(configuration), self.cluster.namespace, patience=patience)

    def open(self, *, obey_seconds: float = 20.0, patience: float = 60.0, **serving: Any) -> KServeTarget:
        placement = parse_placement({"mode": self.mode, "ready_seconds": 20, **serving})
        return KServeTarget(self.api(patience), placement, self.metrics, obey_seconds=obey_seconds, poll_seconds=0.03)

    def bring(self, version: str, **serving: Any) -> None:
        """Puts a version in charge by the way that a rollout goes."""
        target = self.open(**serving)
        target.start_canary("fraud", self.models[version])
        target.set_share("fraud", 100)
        target.promote("fraud", self.models[version].digest)

    def shares(self) -> list[dict[str, float]]:
        """Where the traffic has gone, one entry for each change."""
        self.cluster.settle()
        return [routed.shares for routed in self.cluster.history]

    def was_ever_lost(self) -> bool:
        """Whether any traffic reached nobody at any moment."""
        return any("" in shares for shares in self.shares())

    def service(self) -> dict[str, Any]:
        found = self.cluster.get("inferenceservices", "fraud")
        assert found is not None
        return found


@pytest.fixture
def serve(released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    _settings(monkeypatch, released)
    opened: list[FakeCluster] = []

    def start(mode: str, **details: Any) -> Served:
        cluster = FakeCluster(tmp_path, **details)
        cluster.__enter__()
        opened.append(cluster)
        return Served(cluster, released.models, mode)

    yield start
    for cluster in opened:
        cluster.__exit__()


@pytest.fixture(params=MODES)
def served(request: pytest.FixtureRequest, serve: Any) -> Served:
    """A cluster that serves nothing yet."""
    started: Served = serve(request.param)
    return started
