import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from kfp import dsl

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
from modelyard.components.training.component import train_distributed
from modelyard.components.training.distributed import training
from modelyard.components.training.distributed.job import JobFailed, JobState
from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes
from modelyard.components.training.session import Interrupted
from modelyard.components.training.tabular_network import NetworkParameters, train_network
from tests.support.kfp_runner import run_component
from tests.support.labelled_rows import labelled_frame, write_rows
from tests.support.processes import processes_of
from tests.support.waiting import until

TREES = {
    "rounds": 30,
    "early_stopping_rounds": 0,
    "subsample": 0.7,
    "colsample_bynode": 0.7,
    "threads": 1,
    "checkpoint_rounds": 4,
}

_STEP = """
import json, sys
from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes
print(train_on_nodes(*sys.argv[1:4], "fraud", DistributedParameters(parameters=json.loads(sys.argv[4]))).digest)
"""


@pytest.fixture(scope="module")
def few_values(tmp_path_factory):
    """Rows whose columns have few values, so that a histogram has the same bins however the rows are divided."""
    folder = tmp_path_factory.mktemp("few")

    def write(name, *arguments, **more):
        frame = labelled_frame(*arguments, **more).with_columns(pl.col("amount").log().round(1), pl.col("risk").round(1))
        return write_rows(folder / name, frame)

    return write("train.parquet", 2001, 0), write("validation.parquet", 800, 1, day=5)


def test_the_step_learns_on_two_nodes_what_one_node_learns(few_values, home, tmp_path, runs):
    train, validation = few_values
    outputs = run_component(
        train_distributed,
        tmp_path / "step",
        {"train": (dsl.Dataset, train), "validation": (dsl.Dataset, validation)},
        model_name="fraud",
        nodes=2,
        parameters={"rounds": 10, "threads": 1, "early_stopping_rounds": 0},
    )
    model, metrics = outputs["model"], outputs["metrics"]
    assert outputs["digest"] == model.metadata["digest"] == model_digest(model.path)
    assert model.metadata["framework"] == "xgboost"
    assert metrics.metadata["validation_pr_auc"] > 0.3
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (outputs["run_id"], "FINISHED")
    assert run.data.params["nodes"] == "2"
    assert list((home / "checkpoints").iterdir()) == []
    alone = BoostingParameters(rounds=10, threads=1, early_stopping_rounds=0)
    train_boosted_trees(train, validation, tmp_path / "alone", "fraud", alone)
    rows = pl.read_parquet(validation)
    together, single = (load_scorer(folder).score(rows) for folder in (model.path, tmp_path / "alone"))
    np.testing.assert_allclose(together, single, atol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_nodes_learn_the_network_that_one_node_learns(few_values, home, tmp_path):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    train, validation = few_values
    # A batch of all rows and no dropout: the order in which a node takes its rows does not matter.
    told = {"epochs": 25, "hidden": [8], "dropout": 0.0, "batch_size": 4096, "threads": 1, "learning_rate": 0.05}
    parameters = DistributedParameters(trainer="torch", nodes=3, parameters=told)
    together = train_on_nodes(train, validation, tmp_path / "together", "fraud", parameters)
    alone = train_network(train, validation, tmp_path / "alone", "fraud", NetworkParameters(**told))
    rows = pl.read_parquet(validation)
    scores = [load_scorer(tmp_path / name).score(rows) for name in ("together", "alone")]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    assert together.metrics["validation_pr_auc"] == pytest.approx(alone.metrics["validation_pr_auc"], abs=0.01)
    assert together.metrics["validation_roc_auc"] > 0.75


@pytest.mark.torch
@pytest.mark.slow
def test_a_network_stopped_by_sigterm_goes_on_to_the_same_bytes(few_values, home, tmp_path, runs):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    train, validation = few_values
    told = {"epochs": 40, "hidden": [8], "batch_size": 64, "threads": 1, "early_stopping_epochs": 0}
    parameters = DistributedParameters(trainer="torch", parameters=told)
    whole = train_on_nodes(train, validation, tmp_path / "whole", "fraud", parameters)
    _interrupted(train, validation, tmp_path / "model", home, parameters)
    assert train_on_nodes(train, validation, tmp_path / "model", "fraud", parameters).digest == whole.digest


@pytest.mark.slow
def test_trees_stopped_by_sigterm_go_on_to_the_same_bytes_in_the_same_run(rows, home, tmp_path, runs):
    parameters = DistributedParameters(parameters={**TREES, "rounds": 600, "checkpoint_rounds": 20})
    whole = train_on_nodes(rows.train, rows.validation, tmp_path / "whole", "fraud", parameters)
    _interrupted(rows.train, rows.validation, tmp_path / "model", home, parameters)
    assert "KILLED" in [run.info.status for run in runs()]
    again = train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    assert again.digest == whole.digest
    assert [run.info.status for run in runs()] == ["FINISHED", "FINISHED"]


def _interrupted(train, validation, destination, home, parameters):
    """Trains until a checkpoint is there, and sends the step SIGTERM."""
    import threading

    def stop():
        until(lambda: list((home / "checkpoints").glob("*.job/checkpoint.npz")))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Interrupted, match="run the same step again"):
        train_on_nodes(train, validation, destination, "fraud", parameters)
    until(lambda: len(processes_of(home)) == 0)


@pytest.mark.slow
def test_a_step_killed_at_any_moment_leaves_no_process_and_goes_on_to_the_same_bytes(rows, home, tmp_path, runs):
    whole = train_on_nodes(rows.train, rows.validation, tmp_path / "whole", "fraud", DistributedParameters(parameters=TREES))
    import json

    arguments = [str(rows.train), str(rows.validation), str(tmp_path / "model"), json.dumps(TREES)]
    for moment in ("*.job", "*.job/assignment.json", "*.job/checkpoint.npz", "*.job/result.json"):
        step = subprocess.Popen([sys.executable, "-c", _STEP, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda moment=moment: list((home / "checkpoints").glob(moment)) or step.poll() is not None)
        step.kill()
        step.wait(60)
        until(lambda: processes_of(home) == [])
    again = train_on_nodes(rows.train, rows.validation, tmp_path / "model", "fraud", DistributedParameters(parameters=TREES))
    assert again.digest == whole.digest
    assert [run.info.status for run in runs()] == ["FINISHED", "FINISHED"]
    assert list((home / "checkpoints").iterdir()) == []


def test_a_node_that_fails_fails_the_step_with_its_log_and_nothing_goes_on(rows, home, tmp_path, runs, monkeypatch):
    before, directory = os.environ.copy(), Path.cwd()
    sabotage = tmp_path / "sabotage"
    sabotage.mkdir()
    (sabotage / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('DMLC_TASK_ID') == '1':\n    raise SystemExit('the disk of this node is gone')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(sabotage))
    with pytest.raises(JobFailed, match=r"(?s)goes on from.*\[node-1\] SystemExit: the disk of this node is gone"):
        train_on_nodes(rows.train, rows.validation, tmp_path / "m", "fraud", DistributedParameters(parameters=TREES))
    assert [run.info.status for run in runs()] == ["FAILED"]
    assert not (tmp_path / "m").exists()
    assert Path.cwd() == directory
    assert os.environ["PATH"] == before["PATH"]
    until(lambda: processes_of(home) == [])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_beyond_loopback(rows, home, tmp_path):
    import threading

    found = []

    def look():
        until(lambda: list((home / "checkpoints").glob("*.job/checkpoint.npz")))
        for pid in processes_of(home):
            for line in subprocess.run(["ss", "-ltnpH"], check=True, capture_output=True, text=True).stdout.splitlines():
                if f"pid={pid}," in line:
                    found.append(line.split()[3])

    if not any(Path(folder, "ss").exists() for folder in os.environ["PATH"].split(os.pathsep)):
        pytest.skip("ss, of iproute2, is not installed")
    looking = threading.Thread(target=look)
    looking.start()
    parameters = DistributedParameters(parameters={**TREES, "rounds": 300})
    train_on_nodes(rows.train, rows.validation, tmp_path / "m", "fraud", parameters)
    looking.join(120)
    assert found
    assert all(address.startswith(("127.0.0.1:", "0.0.0.0%lo:")) for address in found), found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": "sklearn"}, "trainer"),
        ({"backend": "mpi"}, "backend"),
        ({"nodes": 0}, "nodes"),
        ({"timeout_seconds": 5}, "timeout_seconds"),
        ({"parameters": {"max_dept": 3}}, "max_dept.*no such parameter"),
        ({"parameters": {"memory_limit_gib": 1}}, "memory_limit_gib.*more nodes"),
        ({"trainer": "torch", "parameters": {"max_depth": 3}}, "no such parameter"),
        ({"parameters": {"rounds": 0}}, "rounds = 0"),
        ({"cluster": {"zone": "a"}}, r"cluster\.zone"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(rows, home, tmp_path, runs, change, message):
    with pytest.raises(InvalidInput, match=message):
        train_on_nodes(rows.train, rows.validation, tmp_path / "m", "fraud", DistributedParameters(**change))
    assert runs() == []


class Played:
    """A job that is as it is told to be: each of ``states`` once, an error among them raised."""

    name = "played"

    def __init__(self, *states: str | Exception) -> None:
        self.states, self.stops = list(states), 0

    def start(self) -> None:
        pass

    def state(self) -> JobState:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return JobState(state)

    def stop(self) -> None:
        self.stops += 1


def _wait_for(job: Played, backend: str, progress=dict) -> list[dict]:
    logged = []
    session = SimpleNamespace(stop_if_asked=lambda snapshot: None, run=SimpleNamespace(log_history=logged.append))
    training._run(session, job, SimpleNamespace(get_json=lambda name: progress()), backend, 60)
    return logged


@pytest.mark.parametrize(("backend", "stops"), [("local", 1), ("kubernetes", 0)])
@pytest.mark.parametrize("error", [OSError("no more files"), NotAvailable("nothing is known of it")])
def test_a_step_that_fails_ends_its_local_job_and_leaves_one_on_a_cluster_for_the_next(backend, stops, error):
    job = Played("running", error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training._POLL_SECONDS, backend, 0.01)
        with pytest.raises(type(error), match=str(error)):
            _wait_for(job, backend)
    assert job.stops == stops


def test_a_store_that_does_not_tell_the_progress_is_asked_again(monkeypatch, capfd):
    monkeypatch.setattr(training, "_PROGRESS_SECONDS", -1.0)
    monkeypatch.setitem(training._POLL_SECONDS, "local", 0.01)
    told = [NotAvailable("the store is away"), {"round_pr_auc": [0.5]}]

    def progress():
        next_one = told.pop(0)
        if isinstance(next_one, Exception):
            raise next_one
        return next_one

    job = Played("running", "running", "completed")
    assert _wait_for(job, "local", progress)[-1] == {"round_pr_auc": [0.5]}
    assert job.stops == 0
    assert "the store is away; training goes on" in capfd.readouterr().out
