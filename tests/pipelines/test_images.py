"""A release as a cluster runs it: every step in its own image's environment, MLflow on a server, models on S3."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.scripts import compiled, local_run
from modelyard.scripts.local_run import run_pipeline
from modelyard.scripts.step_process import StepProcess
from tests.components.predictor.processes import start_predictor
from tests.services.fixtures import mlflow_server, rclone_s3  # noqa: F401
from tests.support.signed_models import make_signed_model

ROOT = Path(__file__).parents[2]
# The train image has XGBoost's CUDA build; the CPU build has the same interface and is a fortieth of its size.
EXTRAS = {"features": "features", "train": "train,cpu", "ops": "ops", "serve": "serve"}


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory):
    """One environment for each image, with the package and that extra and nothing else."""
    folder = tmp_path_factory.mktemp("images")
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("it needs uv beside the interpreter, as ./scripts/environment installs it")
    made = {}
    for image, extras in EXTRAS.items():
        python = folder / image / "bin" / "python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / image], check=True)
        installed = subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "requirements.lock",
             "--editable", f"{ROOT}[{extras}]"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if installed.returncode:
            pytest.skip(f"the packages of {extras} cannot be had here: {installed.stderr.strip()[-300:]}")
        made[image] = str(python)
    return made


def _images(package):
    """Name of the image by component, from the compiled YAML."""
    document = compiled.load(package.read_text(encoding="utf-8"))
    containers = [spec["container"] for spec in document["deploymentSpec"]["executors"].values() if "container" in spec]
    return {
        compiled.function_name(container["args"]): re.search(r"/([a-z]+):[^/]*$", container["image"])[1]
        for container in containers
    }


@pytest.mark.slow
@pytest.mark.server
def test_each_step_of_a_release_runs_in_an_environment_of_its_own_image(
    interpreters,
    mlflow_server,  # noqa: F811
    rclone_s3,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    for name, value in {**rclone_s3.environment, **mlflow_server.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://bucket/released")
    package = compiled.find("quickstart")
    images = _images(package)
    assert set(images.values()) == {*EXTRAS, "torch"} - {"serve"}
    used = {}

    class InItsImage(StepProcess):
        def __init__(self, command, *arguments, **keywords):
            super().__init__(command, *arguments, **keywords)
            name = compiled.function_name(command)
            used[name] = interpreters[images[name]]
            self._command = [part.replace(sys.executable, used[name]) for part in self._command]

    monkeypatch.setattr(local_run, "StepProcess", InItsImage)
    parameters = {
        "customers": 300,
        "terminals": 600,
        "days": 63,
        "test_days": 14.0,
        "validation_days": 10.0,
        "gap_days": 3.0,
        "training_parameters": {"rounds": 20},
        "seed": 7,
    }
    result = run_pipeline(package, parameters, tmp_path / "home")
    assert result.state == "succeeded", result.tail
    assert result.outputs["version"] == "1"
    assert result.step("register_model").outputs["uri"].startswith("s3://bucket/released/card-fraud/")
    assert {"simulate_transactions", "train_xgboost", "evaluate_model", "rollout_model"} <= set(used)


@pytest.mark.slow
def test_a_predictor_answers_in_the_environment_of_its_own_image(interpreters, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    make_signed_model(tmp_path)
    log = tmp_path / "log"
    predictor = start_predictor(
        tmp_path / "run", tmp_path / "signed", python=interpreters["serve"], MODELYARD_PREDICTION_LOG=str(log)
    )
    try:
        predictor.wait_for("ready")
        (prediction,) = predictor.predict([{"amount": 1.0, "night": None}]).json["predictions"]
        assert 0 <= prediction["probability"] <= 1
    finally:
        assert predictor.stop() == 0
    assert len(list(log.rglob("*.parquet"))) == 1
