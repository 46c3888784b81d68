"""A release as a cluster runs it: every step in its own image's environment, MLflow on a server, models on S3."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.components.publishing.publishing import publish_model
from modelyard.scripts import compiled, local_run
from modelyard.scripts.local_run import run_pipeline
from modelyard.scripts.step_process import StepProcess
from tests.components.predictor.processes import start_predictor
from tests.services.fixtures import mlflow_server, rclone_s3  # noqa: F401
from tests.support.fake_cluster.cluster import FakeCluster
from tests.support.labelled_rows import labelled_frame, write_rows
from tests.support.signed_models import make_signed_model

ROOT = Path(__file__).parents[2]
# The train image has XGBoost's CUDA build; the CPU build has the same interface and is a fortieth of its size.
EXTRAS = {"features": "features", "train": "train,cpu", "distributed": "distributed", "ops": "ops", "serve": "serve"}
_TRAIN = """
import sys
from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes
print(train_on_nodes(*sys.argv[1:], "fraud", DistributedParameters(parameters={"rounds": 3, "threads": 1})).digest)
"""
_LOOK = """
from modelyard.components.serving.targets import open_target
print(open_target("kserve", {"namespace": "models"}, watched=True).state("fraud").stable)
"""


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


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("layout", ["modelyard", "triton"])
def test_the_initializer_fetches_in_the_environment_of_the_serve_image(
    interpreters,
    rclone_s3,  # noqa: F811
    tmp_path,
    monkeypatch,
    layout,
):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    provenance = make_signed_model(tmp_path)
    published = publish_model(tmp_path / "signed", model_name="fraud", destination=f"s3://bucket/{layout}")
    (tmp_path / "models").mkdir()
    asked = {"MODEL_NAME": "fraud", "MODEL_DIGEST": provenance.model_digest, "MODEL_LAYOUT": layout}
    subprocess.run(
        [interpreters["serve"], "-m", "modelyard.components.initializer", published.uri, tmp_path / "models"],
        env={**os.environ, **asked},
        cwd=tmp_path,
        check=True,
    )
    placed = {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    assert ("fraud/config.pbtxt" if layout == "triton" else "model.sig") in placed


@pytest.mark.slow
@pytest.mark.server
def test_a_job_of_several_nodes_is_started_in_the_environment_of_its_own_image(
    interpreters,
    mlflow_server,  # noqa: F811
    tmp_path,
):
    train = write_rows(tmp_path / "train.parquet", labelled_frame(400, 0))
    validation = write_rows(tmp_path / "validation.parquet", labelled_frame(200, 1, day=5))
    trained = subprocess.run(
        [interpreters["distributed"], "-c", _TRAIN, train, validation, tmp_path / "model"],
        env={**os.environ, **mlflow_server.environment, "MODELYARD_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1].startswith("blake3:")


@pytest.mark.slow
@pytest.mark.server
def test_a_cluster_is_looked_at_from_the_environment_of_the_ops_image(interpreters, tmp_path):
    with FakeCluster(tmp_path) as cluster:
        told = {"KUBECONFIG": str(cluster.kubeconfig), "MODELYARD_PROMETHEUS_URL": "http://127.0.0.1:9"}
        looked = subprocess.run(
            [interpreters["ops"], "-c", _LOOK],
            env={**os.environ, **told},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
    assert looked.stdout.strip() == "None"
