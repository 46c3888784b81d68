import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage import uris
from modelyard.components.training.distributed import training
from modelyard.components.training.distributed.cluster_job import ClusterJob
from modelyard.components.training.distributed.job import JobFailed
from modelyard.components.training.distributed.job_folder import JobFolder
from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes
from tests.services.fixtures import rclone_s3  # noqa: F401
from tests.support.fake_trainer import FakeTrainer
from tests.support.trainer_pods import TrainerPods
from tests.support.waiting import until

TREES = {"rounds": 6, "early_stopping_rounds": 0, "subsample": 0.7, "threads": 1, "checkpoint_rounds": 2}

LONG = {**TREES, "rounds": 300, "checkpoint_rounds": 30}

_STEP = """
import json, sys
from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes
print(train_on_nodes(*sys.argv[1:4], "fraud", DistributedParameters(**json.loads(sys.argv[4]))).digest)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch, rclone_s3):  # noqa: F811
    """An API whose pods are processes, and an object store that step and pods share."""
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(training._POLL_SECONDS, "kubernetes", 0.2)
    pods = tmp_path / "pods"
    pods.mkdir()
    with FakeTrainer(tmp_path) as api, TrainerPods(api, pods, rclone_s3.environment) as running:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(api.kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        running.api = api
        running.store = rclone_s3.folder / "bucket"
        yield running


def _parameters(tmp_path, **changes) -> DistributedParameters:
    told = {"parameters": TREES, "backend": "kubernetes", "checkpoint_uri": f"s3://bucket/{tmp_path.name}"}
    return DistributedParameters(**{**told, **changes})


Start = Callable[[Path, DistributedParameters], "subprocess.Popen[str]"]


@pytest.fixture
def start(rows, cluster):
    """Starts a step as a process of its own, which does not outlive the test."""
    started = []

    def begin(folder: Path, parameters: DistributedParameters) -> "subprocess.Popen[str]":
        told = json.dumps({name: getattr(parameters, name) for name in parameters.__dataclass_fields__})
        command = [sys.executable, "-c", _STEP, str(rows.train), str(rows.validation), str(folder), told]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait(60)
        process.stdout.close()


def _says(process: "subprocess.Popen[str]", text: str, seconds: float = 120) -> bool:
    """Reads on until the process says it, for so long at most."""
    end = threading.Timer(seconds, process.kill)
    end.start()
    try:
        return any(text in line for line in process.stdout)
    finally:
        end.cancel()


def _stored(cluster, tmp_path) -> list[Path]:
    return [path for path in (cluster.store / tmp_path.name).rglob("*") if path.is_file()]


@pytest.mark.server
def test_rows_and_result_go_through_the_object_store_and_nothing_is_left_there(rows, home, tmp_path, runs, cluster):
    seen = []
    created = cluster.api.on_create
    cluster.api.on_create = lambda job: (seen.append(sorted(path.name for path in _stored(cluster, tmp_path))), created(job))
    trained = train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", _parameters(tmp_path))
    assert [name for name in seen[0] if not name.endswith(".npz")] == [
        "assignment.json",
        "rows-0000.parquet",
        "rows-0001.parquet",
        "validation.parquet",
    ]
    assert trained.digest == model_digest(tmp_path / "model")
    scorer = load_scorer(tmp_path / "model")
    assert scorer.spec.training["parameters"]["nodes"] == 2
    assert "xgboost" in scorer.spec.training["versions"]
    assert trained.metrics["validation_roc_auc"] > 0.75
    assert len(scorer.score(pl.read_parquet(rows.validation).head(10))) == 10
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (trained.run_id, "FINISHED")
    assert run.data.params["version_xgboost"]
    assert cluster.api.jobs == {}
    assert _stored(cluster, tmp_path) == []


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is done."""


@contextmanager
def _killed_at(owner, verb):
    """The step dies before it does ``verb`` of the job or of its folder."""

    def die(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, verb, die)
        with pytest.raises(Killed):
            yield


@pytest.mark.server
@pytest.mark.parametrize(("owner", "verb"), [(ClusterJob, "stop"), pytest.param(JobFolder, "remove", marks=pytest.mark.slow)])
def test_a_step_that_dies_after_its_model_is_written_is_repeated_without_a_new_training(
    rows, home, tmp_path, cluster, owner, verb
):
    parameters = _parameters(tmp_path)
    with _killed_at(owner, verb):
        train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    # A job without its result would be waited for by every repeat, and give none of them a model.
    assert not cluster.api.jobs or any(path.name == "result.json" for path in _stored(cluster, tmp_path))
    again = train_on_nodes(rows.train, rows.validation, tmp_path / "again", "fraud", parameters)
    assert again.digest == model_digest(tmp_path / "model")
    assert len(cluster.processes) == 1
    assert cluster.api.jobs == {}
    assert _stored(cluster, tmp_path) == []


@pytest.mark.server
def test_what_the_store_let_expire_is_made_anew(rows, home, tmp_path, cluster):
    parameters = _parameters(tmp_path)
    with _killed_at(ClusterJob, "stop"):
        train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    for path in _stored(cluster, tmp_path):
        if path.name in ("model", "rows-0001.parquet"):
            uris.remove(f"s3://bucket/{path.relative_to(cluster.store)}")
    again = train_on_nodes(rows.train, rows.validation, tmp_path / "again", "fraud", parameters)
    assert again.digest == model_digest(tmp_path / "model")
    assert len(cluster.processes) == 2
    assert _stored(cluster, tmp_path) == []


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.torch
def test_a_network_is_learned_on_a_cluster(rows, home, tmp_path, cluster):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    told = {"epochs": 10, "hidden": [8], "batch_size": 128, "threads": 1, "learning_rate": 0.01}
    parameters = _parameters(tmp_path, trainer="torch", parameters=told)
    trained = train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    assert trained.metrics["validation_roc_auc"] > 0.7
    assert load_scorer(tmp_path / "model").spec.model_file == "model.onnx"
    assert cluster.api.jobs == {}


@pytest.mark.slow
@pytest.mark.server
def test_a_step_that_is_killed_finds_its_job_again(home, tmp_path, runs, cluster, start: Start):
    parameters = _parameters(tmp_path, parameters=LONG)
    first = start(tmp_path / "model", parameters)
    until(lambda: cluster.processes)
    cluster.signal(signal.SIGSTOP)
    first.kill()
    first.wait(60)
    second = start(tmp_path / "model", parameters)
    assert _says(second, "was started by an earlier attempt")
    cluster.signal(signal.SIGCONT)
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 0, output
    assert len(cluster.processes) == 1
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert _stored(cluster, tmp_path) == []


@pytest.mark.slow
@pytest.mark.server
def test_a_cancelled_step_deletes_its_job_and_the_next_goes_on_to_the_same_bytes(rows, home, tmp_path, cluster, start: Start):
    parameters = _parameters(tmp_path, parameters=LONG)
    step = start(tmp_path / "model", parameters)
    # Its last round is far when its first checkpoint is there.
    until(lambda: any(path.name == "checkpoint.npz" for path in _stored(cluster, tmp_path)))
    cluster.signal(signal.SIGSTOP)
    step.send_signal(signal.SIGTERM)
    output = step.communicate(timeout=120)[0]
    cluster.signal(signal.SIGCONT)
    assert step.returncode == 1
    assert "stopped by SIGTERM" in output
    assert cluster.api.jobs == {}
    (pods,) = cluster.processes
    assert [process.wait(60) for process in pods] == [os.EX_TEMPFAIL, os.EX_TEMPFAIL]
    trained = train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    again = train_on_nodes(rows.train, rows.validation, tmp_path / "again", "fraud", parameters)
    assert trained.digest == again.digest


@pytest.mark.slow
@pytest.mark.server
def test_a_node_that_is_lost_fails_the_step_and_the_next_goes_on(rows, home, tmp_path, runs, cluster):
    parameters = _parameters(tmp_path, parameters=LONG)
    created = cluster.api.on_create

    def lose_one(job):
        created(job)
        cluster.processes[-1][1].kill()

    cluster.api.on_create = lose_one
    with pytest.raises(JobFailed, match=r"failed; run the step again.*\n\[node-1\] \(it left no log\)"):
        train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    assert [run.info.status for run in runs()] == ["FAILED"]
    cluster.api.on_create = created
    train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    (run,) = runs()
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.server
def test_nodes_of_this_machine_leave_nothing_of_a_training_whose_rows_are_elsewhere(rows, home, tmp_path, cluster):
    parameters = _parameters(tmp_path, backend="local")
    train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    assert _stored(cluster, tmp_path) == []
    assert not (home / "checkpoints").exists() or list((home / "checkpoints").iterdir()) == []


def test_a_folder_cannot_be_shared_with_other_machines(rows, home, tmp_path):
    with pytest.raises(InvalidInput, match=r"checkpoint_uri.*other machines"):
        train_on_nodes(
            rows.train,
            rows.validation,
            tmp_path / "m",
            "fraud",
            DistributedParameters(backend="kubernetes", checkpoint_uri="/x"),
        )


def test_a_pod_without_a_store_says_where_rows_could_go(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for name in ("MODELYARD_HOME", "MODELYARD_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NotAvailable, match="MODELYARD_MODEL_STORE"):
        train_on_nodes(rows.train, rows.validation, tmp_path / "m", "fraud", DistributedParameters())
