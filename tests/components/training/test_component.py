import subprocess
import sys
from pathlib import Path

import pytest
from kfp import dsl

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.training.component import train_torch, train_xgboost
from tests.support.kfp_runner import run_component


def _inputs(rows):
    return {"train": (dsl.Dataset, rows.train), "validation": (dsl.Dataset, rows.validation)}


def test_train_xgboost_runs_as_a_step(rows, home, tmp_path, runs):
    outputs = run_component(
        train_xgboost,
        tmp_path / "step",
        _inputs(rows),
        model_name="fraud",
        rounds=500,
        threads=1,
        parameters={"rounds": 12, "min_child_weight": 2.5, "imbalance": 3},
    )
    model, metrics = outputs["model"], outputs["metrics"]
    assert outputs["digest"] == model.metadata["digest"] == model_digest(model.path)
    assert Path(outputs["model_uri"]) == Path(model.path)
    assert model.metadata["framework"] == "xgboost"
    assert metrics.metadata["validation_pr_auc"] > 0.3
    assert 1 <= metrics.metadata["rounds"] <= 12
    spec = load_scorer(model.path).spec
    assert spec.training["parameters"]["min_child_weight"] == 2.5
    assert spec.training["parameters"]["scale_pos_weight"] == 3
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (outputs["run_id"], "FINISHED")


def test_a_step_adds_to_the_run_that_it_is_given_and_leaves_its_status_alone(rows, home, tmp_path, monkeypatch, runs):
    from modelyard.components import tracking

    client = tracking.client()
    given = client.create_run(client.create_experiment("night"))
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    outputs = run_component(
        train_xgboost, tmp_path / "step", _inputs(rows), model_name="fraud", parameters={"rounds": 3, "threads": 1}
    )
    (run,) = runs()
    assert outputs["run_id"] == run.info.run_id == given.info.run_id
    assert run.info.status == "RUNNING"
    assert run.data.params["rounds"] == "3"


def test_a_step_on_cuda_without_a_gpu_fails_and_says_what_to_do(rows, home, tmp_path, capfd, runs):
    import xgboost

    if xgboost.build_info().get("USE_CUDA"):
        pytest.skip("XGBoost's CUDA build")
    with pytest.raises(RuntimeError):
        run_component(train_xgboost, tmp_path / "step", _inputs(rows), model_name="fraud", device="cuda")
    assert "NotAvailable: device = 'cuda': this XGBoost was built without CUDA" in capfd.readouterr().out
    assert runs() == []


@pytest.mark.torch
def test_train_torch_runs_as_a_step(rows, home, tmp_path):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    outputs = run_component(
        train_torch, tmp_path / "step", _inputs(rows), model_name="fraud", hidden=[8], parameters={"epochs": 2, "threads": 1}
    )
    assert outputs["digest"] == outputs["model"].metadata["digest"] == model_digest(outputs["model"].path)
    assert outputs["model"].metadata["framework"] == "onnx"
    assert load_scorer(outputs["model"].path).spec.training["parameters"]["hidden"] == [8]


@pytest.mark.torch
def test_train_torch_refuses_a_parameter_that_it_has_not(rows, home, tmp_path, capfd):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    with pytest.raises(RuntimeError):
        run_component(train_torch, tmp_path / "step", _inputs(rows), model_name="fraud", parameters={"max_depth": 3})
    assert "train_torch has no such parameter" in capfd.readouterr().out


def test_importing_the_interface_and_the_work_loads_no_heavy_library():
    code = (
        "import sys, modelyard.components.training.boosted_trees, modelyard.components.training.tabular_network;"
        "print([name for name in ('xgboost', 'torch', 'mlflow', 'sklearn', 'pandas', 'kfp', 'onnx') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
