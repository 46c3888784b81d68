"""The demo as the README gives it, and what it leaves behind for other programs to read."""

import json
import subprocess
from pathlib import Path

import pytest

from modelyard.components.signing.verification import verify_model
from modelyard.scripts import demo

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_promotes_two_models_and_writes_down_what_happened(tmp_path, monkeypatch):
    home = tmp_path / "home"
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    # Servers and stores of the user's must not be touched: nothing listens there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://nobody-has-this-bucket")
    finished = subprocess.run(
        [ROOT / "scripts" / "demo", "--home", home], check=False, capture_output=True, text=True, cwd=elsewhere
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr

    told = json.loads((home / "demo.json").read_text())
    assert told["transactions"] >= 300_000
    assert [release["version"] for release in told["releases"]] == ["1", "2"]
    assert [release["outcome"] for release in told["releases"]] == ["promoted", "promoted"]
    for release in told["releases"]:
        assert {"pr_auc", "roc_auc", "recall_at_precision", "brier"} <= set(release["metrics"])
        monkeypatch.setenv("MODELYARD_HOME", str(home))
        verified = verify_model(release["model_dir"], model_name=told["model_name"], digest=release["digest"])
        assert verified.model_digest == release["digest"]
        for report in release["reports"].values():
            assert report in finished.stdout
            assert Path(report).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert told["seconds"]["release_2.train_xgboost"] > 0
    assert not list(elsewhere.iterdir())


def test_every_demo_has_a_model_name_of_its_own(tmp_path):
    assert demo._unused_name(tmp_path) == "card-fraud"
    (tmp_path / "models" / "card-fraud").mkdir(parents=True)
    assert demo._unused_name(tmp_path) == "card-fraud-2"
