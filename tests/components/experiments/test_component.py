import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from modelyard.components.experiments.component import analyze_experiment
from tests.components.experiments.simulated_traffic import FIRST, predictions, write_log
from tests.support.kfp_runner import run_component


def test_a_pipeline_step_says_who_won_and_leaves_report_and_json(tmp_path):
    log, labels = predictions(0, keys=1200, quality=(1.0, 2.4), days=3)
    write_log(tmp_path / "log", log)
    labels.rename({"label": "fraud"}).write_parquet(tmp_path / "labels.parquet")

    outputs = run_component(
        analyze_experiment,
        tmp_path / "run",
        model_name="fraud",
        predictions_uri=str(tmp_path / "log"),
        labels_uri=str(tmp_path / "labels.parquet"),
        version_a="1",
        version_b="2",
        start=f"{FIRST:%Y-%m-%d}",
        end=(FIRST + timedelta(days=3)).isoformat(),
        label="fraud",
        share_b=50.0,
    )

    content = json.loads(Path(outputs["result"].path).read_text())
    assert outputs["decision"] == content["decision"] == outputs["report"].metadata["decision"] == "winner"
    assert outputs["reasons"] == "; ".join(content["reasons"])
    assert "Version 2 is better" in Path(outputs["report"].path).read_text()


def test_a_pipeline_step_refuses_a_placeholder_that_nothing_expanded(tmp_path, capfd):
    with pytest.raises(RuntimeError):
        run_component(
            analyze_experiment,
            tmp_path / "run",
            model_name="fraud",
            predictions_uri=str(tmp_path),
            labels_uri="labels.csv",
            version_a="1",
            version_b="2",
            start="[[ScheduledTime]]",
        )
    assert "start = '[[ScheduledTime]]'" in capfd.readouterr().out


def test_nothing_heavy_is_loaded_before_it_is_needed():
    code = (
        "import sys, modelyard.components.experiments.outputs;"
        "print(*{'sklearn', 'scipy', 'matplotlib', 'mlflow', 'xgboost', 'pandas', 'kfp', 'boto3'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
