"""The demo as the README gives it, and what it leaves behind for other programs to read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.components.signing.verification import verify_model
from modelyard.scripts import demo
from tests.pipelines.test_release import versions
from tests.support.processes import processes_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_promotes_two_models_rolls_back_a_broken_one_and_leaves_nothing_running(tmp_path, monkeypatch):
    home = tmp_path / "home"
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    # Servers and stores of the user's must not be touched: nothing listens there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://nobody-has-this-bucket")
    monkeypatch.setenv("MODELYARD_PREDICTION_LOG", str(tmp_path / "production-log"))
    finished = subprocess.run(
        [ROOT / "scripts" / "demo", "--home", home], check=False, capture_output=True, text=True, cwd=elsewhere
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr

    told = json.loads((home / "demo.json").read_text())
    assert told["transactions"] >= 300_000
    assert [release["version"] for release in told["releases"]] == ["1", "2", "3"]
    assert [release["outcome"] for release in told["releases"]] == ["promoted", "promoted", "rolled_back"]
    for release in told["releases"]:
        assert {"pr_auc", "roc_auc", "recall_at_precision", "brier"} <= set(release["metrics"])
        monkeypatch.setenv("MODELYARD_HOME", str(home))
        verified = verify_model(release["model_dir"], model_name=told["model_name"], digest=release["digest"])
        assert verified.model_digest == release["digest"]
        assert {"evaluation", "model_card", "rollout"} <= set(release["reports"])
        for report in release["reports"].values():
            assert report in finished.stdout
            assert Path(report).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert told["seconds"]["release_2.train_xgboost"] > 0

    # The broken version failed what it was given; nobody else failed anything, the proxy included.
    requests = told["requests"]
    assert set(requests) == {"1", "2", "3"}
    assert requests["1"]["sent"] > 100 < requests["2"]["sent"]
    assert requests["1"]["failed"] == requests["2"]["failed"] == 0
    assert 0 < requests["3"]["failed"] == requests["3"]["sent"] < 200
    found, aliases = versions(home, told["model_name"])
    assert aliases["champion"] == "2"
    assert aliases["previous"] == "1"
    assert "challenger" not in aliases
    assert "rejected" in found[2].tags["rejected_reason"].lower()
    assert not processes_of(home)
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "production-log").exists()


@pytest.mark.slow
def test_a_demo_that_keeps_serving_prints_a_line_that_gets_an_answer(tmp_path):
    home = tmp_path / "home"
    finished = subprocess.run(
        [ROOT / "scripts" / "demo", "--home", home, "--keep-serving"], check=False, capture_output=True, text=True
    )
    try:
        assert finished.returncode == 0, finished.stdout + finished.stderr
        (line,) = [line for line in finished.stdout.splitlines() if line.strip().startswith("curl ")]
        answer = subprocess.run(line, shell=True, check=True, capture_output=True, text=True)
        (prediction,) = json.loads(answer.stdout)["predictions"]
        assert 0 <= prediction["probability"] <= 1
        assert prediction["decision"] in (0, 1)
    finally:
        subprocess.run([sys.executable, "-m", "modelyard.scripts.cli", "stop", "--home", home], check=True, capture_output=True)
    assert not processes_of(home)


def test_every_demo_has_a_model_name_of_its_own(tmp_path):
    assert demo._unused_name(tmp_path) == "card-fraud"
    (tmp_path / "models" / "card-fraud").mkdir(parents=True)
    assert demo._unused_name(tmp_path) == "card-fraud-2"
