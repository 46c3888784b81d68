"""Trainings in a cluster: pods that share nothing but an object store and MLflow, and are killed in the midst."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.storage import uris
from modelyard.components.training import checkpoints
from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
from modelyard.components.training.session import Interrupted, Session
from tests.services.fixtures import rclone_s3  # noqa: F401

PARAMETERS = BoostingParameters(rounds=12, early_stopping_rounds=0, subsample=0.7, threads=1, checkpoint_rounds=3)

_STEP = """
import json, os, signal, sys
from modelyard.components.training import boosted_trees, session
number, moment = int(sys.argv[5]), int(sys.argv[6])
end_round = session.Session.end_round
def interrupted(self, metrics, snapshot):
    if self.rounds_done == moment:
        os.kill(os.getpid(), number)
    end_round(self, metrics, snapshot)
if number:
    session.Session.end_round = interrupted
parameters = boosted_trees.BoostingParameters(**json.loads(sys.argv[4]))
print(boosted_trees.train_boosted_trees(*sys.argv[1:4], "fraud", parameters).digest)
"""


@pytest.fixture
def store(rclone_s3, monkeypatch, request) -> str:  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.name}"


@pytest.fixture(scope="module")
def digest(rows, tmp_path_factory) -> str:
    """Digest of the model that a training reaches that nobody interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
        return _train(rows, tmp_path_factory.mktemp("model")).digest


def _train(rows, folder: Path, **changes):
    return train_boosted_trees(rows.train, rows.validation, folder / "model", "fraud", replace(PARAMETERS, **changes))


@pytest.fixture
def pod(rows, home, store, tmp_path):
    """Runs the training in a pod of its own, which gets signal ``number`` in the round after round ``moment``."""
    pods = []

    def run(number: int = 0, moment: int = 0) -> subprocess.CompletedProcess:
        folder = tmp_path / f"pod{len(pods)}"
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "MODELYARD_HOME"} | {
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "MODELYARD_MODEL_STORE": f"{store}/models",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "TMPDIR": str(folder),
        }
        arguments = [rows.train, rows.validation, folder / "model", json.dumps(asdict(PARAMETERS)), number, moment]
        command = [sys.executable, "-c", _STEP, *map(str, arguments)]
        pods.append(
            subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
        )
        return pods[-1]

    return run


@pytest.mark.server
@pytest.mark.slow
def test_a_training_goes_on_in_another_pod_to_the_same_bytes_in_the_same_run(pod, digest, store, runs):
    # Killed before the first checkpoint, told to stop between two, killed after that.
    assert pod(signal.SIGKILL, 2).returncode == -signal.SIGKILL
    (begun,) = runs()
    stopped = pod(signal.SIGTERM, 4)
    assert stopped.returncode == 1
    assert "stopped by SIGTERM after round 5 of at most 12" in stopped.stderr
    assert f"goes on from {store}/models/.checkpoints/" in stopped.stderr
    killed = pod(signal.SIGKILL, 10)
    assert killed.returncode == -signal.SIGKILL
    assert "Going on after round 5" in killed.stdout
    assert uris.exists(f"{store}/models/.checkpoints")
    ended = pod()
    assert "Going on after round 9" in ended.stdout, ended.stderr
    assert ended.stdout.splitlines()[-1] == digest
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    assert not uris.exists(f"{store}/models/.checkpoints")


@pytest.mark.server
def test_a_store_that_goes_away_does_not_end_a_training(rows, home, store, digest, tmp_path, monkeypatch, capsys):
    put_file, asked = uris.put_file, []

    def unreachable_after_the_start(source, uri, *, patience):
        if asked:
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        asked.append(uri)
        put_file(source, uri, patience=patience)

    monkeypatch.setattr(checkpoints.uris, "put_file", unreachable_after_the_start)
    assert _train(rows, tmp_path, checkpoint_uri=store).digest == digest
    assert len(asked) == 5
    assert capsys.readouterr().out.count(f"The checkpoint {asked[0]} was not replaced") == 4


@pytest.mark.server
def test_a_checkpoint_that_failed_is_made_up_for_on_sigterm(rows, home, store, tmp_path, monkeypatch, capsys):
    end_round, endpoint = Session.end_round, os.environ["AWS_ENDPOINT_URL"]

    def down_in_round_three(self, metrics, snapshot):
        number = self.rounds_done + 1
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9" if number == 3 else endpoint)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        end_round(self, metrics, snapshot)

    monkeypatch.setattr(Session, "end_round", down_in_round_three)
    with pytest.raises(Interrupted, match=f"goes on from {store}/"):
        _train(rows, tmp_path, checkpoint_uri=store)
    assert "was not replaced" in capsys.readouterr().out
    monkeypatch.setattr(Session, "end_round", end_round)
    _train(rows, tmp_path, checkpoint_uri=store)
    assert "Going on after round 4" in capsys.readouterr().out


@pytest.mark.server
def test_a_training_does_not_start_without_the_store_that_is_to_keep_its_checkpoints(rows, home, store, tmp_path, runs):
    with pytest.raises(NotAvailable, match=r"No checkpoint can be kept: s3://nowhere/x/.*checkpoint_uri"):
        _train(rows, tmp_path, checkpoint_uri="s3://nowhere/x")
    assert [run.info.status for run in runs()] == ["FAILED"]
    assert not (tmp_path / "model").exists()
