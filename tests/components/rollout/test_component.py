from pathlib import Path

import pytest

from modelyard.components.registry.versions import aliases
from modelyard.components.rollout.component import promote_served_model, rollback_model, rollout_model
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.tracking.connection import client
from tests.services.servers import free_port
from tests.support.checked_traffic import CheckedTraffic
from tests.support.kfp_runner import run_component


@pytest.fixture
def target(laptop, monkeypatch):
    monkeypatch.setenv("MODELYARD_SERVING_PORT", str(free_port()))
    target = LocalTarget()
    yield target
    target.stop()


@pytest.mark.server
def test_as_pipeline_steps_a_version_is_rolled_out_under_live_traffic_and_back_and_another_promoted(laptop, target, tmp_path):
    target.restore("fraud", laptop.versions["1"])
    model = laptop.versions["3"]
    folders = {version: Path(model.uri) for version, model in laptop.versions.items()}
    with CheckedTraffic(target.state("fraud").url, folders, threads=1, pause=0.01) as traffic:
        rolled_out = run_component(
            rollout_model,
            tmp_path / "rollout",
            model_name="fraud",
            version=model.version,
            digest=model.digest,
            uri=model.uri,
            steps=[50.0, 100.0],
            bake_seconds=1.0,
            min_samples=20,
            look_seconds=0.5,
            deadline_seconds=120.0,
            # The two models have little in common, and two busy cores no steady latency.
            limits={"score_tolerance": 1.0, "max_latency_ratio": 64.0},
        )
        assert (rolled_out["decision"], rolled_out["outcome"]) == ("pass", "promoted")
        assert "Promoted" in Path(rolled_out["report"].path).read_text()
        assert Path(rolled_out["timeline"].path).is_file()
        assert aliases(client(), "fraud") == {"champion": "3", "previous": "1"}
        assert traffic.ask() == "3"
        back = run_component(rollback_model, tmp_path / "rollback", model_name="fraud", reason="complaints")
        assert (back["version"], back["replaced"]) == ("1", "3")
        assert traffic.ask() == "1"
        target.start_canary("fraud", laptop.versions["2"])
        target.set_share("fraud", 10)
        put = run_component(promote_served_model, tmp_path / "promotion", model_name="fraud", reason="it cannot wait")
        assert (put["version"], put["digest"], put["replaced"]) == ("2", laptop.versions["2"].digest, "1")
        assert traffic.ask() == "2"
    assert aliases(client(), "fraud") == {"champion": "2", "previous": "1"}
    assert not traffic.failed
    assert not traffic.wrong
    assert traffic.answered["3"] > 40
