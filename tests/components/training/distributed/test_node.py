import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import NotAvailable
from modelyard.components.storage import uris
from modelyard.components.training.distributed import node
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.job_folder import ASSIGNMENT, PROGRESS, VALIDATION, JobFolder, shard
from modelyard.components.training.distributed.shards import write_shards
from modelyard.components.training.labelled_rows import fit_features, open_rows
from tests.services.servers import free_port
from tests.support.waiting import until

ASSIGNED = Assignment(
    trainer="xgboost",
    nodes=2,
    features=[{"name": "amount", "categories": None}, {"name": "country", "categories": ["DE", "FR"]}],
    label="fraud",
    model_file="model.ubj",
    parameters={},
    shaping={},
    learned={},
    device="cpu",
    rounds=1,
    patience=0,
    checkpoint_rounds=0,
    share=0.1,
    train_digest="a",
    validation_digest="b",
)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """A node changes how its process meets signals, and how it imports."""
    monkeypatch.setattr(node, "treat_process_as_step", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _run(folder, capfd) -> str:
    assert node.main([str(folder)]) == 1
    return capfd.readouterr().out


def test_a_folder_without_a_training_is_named(tmp_path, capfd):
    assert "there is no training in it" in _run(tmp_path, capfd)


def test_a_process_that_is_no_node_says_which_variable_it_lacks(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("DMLC_TASK_ID", raising=False)
    JobFolder(str(tmp_path)).put_json(ASSIGNMENT, ASSIGNED.as_json())
    assert "DMLC_TASK_ID = '': start the nodes through the runtime xgboost-distributed" in _run(tmp_path, capfd)


def test_another_number_of_nodes_than_the_rows_are_divided_among_is_refused(tmp_path, capfd, monkeypatch):
    for name, value in {"TASK_ID": "0", "NUM_WORKER": "3", "TRACKER_URI": "127.0.0.1", "TRACKER_PORT": "1"}.items():
        monkeypatch.setenv(f"DMLC_{name}", value)
    JobFolder(str(tmp_path)).put_json(ASSIGNMENT, ASSIGNED.as_json())
    assert "nodes = 3: the training is divided among 2" in _run(tmp_path, capfd)


def test_an_assignment_survives_the_folder(tmp_path):
    folder = JobFolder(str(tmp_path))
    folder.put_json(ASSIGNMENT, ASSIGNED.as_json())
    read = Assignment(**folder.get_json(ASSIGNMENT))
    assert read == ASSIGNED
    assert read.spec.features[1].categories == ("DE", "FR")
    assert replace(read, label="x").spec.label == "x"


def test_mounted_keys_are_used_and_do_not_replace_what_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "MOUNTED_CREDENTIALS", tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "gcloud-application-credentials.json"):
        (tmp_path / name).write_text(f"{name}-mounted\n")
    node._take_credentials()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "AWS_SECRET_ACCESS_KEY-mounted"
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(tmp_path / "gcloud-application-credentials.json")
    assert "AWS_SESSION_TOKEN" not in os.environ


def test_a_store_that_does_not_take_the_progress_is_no_end_of_the_training_and_not_waited_for(tmp_path, capfd, monkeypatch):
    seen = []

    def refuse(source, uri, *, patience):
        seen.append((uri, patience))
        raise NotAvailable("the store is away")

    monkeypatch.setattr(uris, "put_file", refuse)
    node._Progress(JobFolder("s3://bucket/a.job"), 0).log_history({"round_pr_auc": [0.5]})
    ((uri, patience),) = seen
    assert uri == f"s3://bucket/a.job/{PROGRESS}"
    # Kubernetes grants half a minute after SIGTERM, in which a checkpoint is written, too.
    assert patience < 8
    assert "the store is away; training goes on" in capfd.readouterr().out


def _alone(rows, folder: Path, rank: int, log: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """Starts one of two nodes, to all of whose rows nothing is wanting; the port is where they would meet."""
    train, validation = open_rows(rows.train, "train"), open_rows(rows.validation, "validation")
    spec = ModelSpec(fit_features(train), train.info.roles.label, "", 0.5)
    folder.mkdir()
    write_shards(train, 2, [folder / shard(0), folder / shard(1)])
    write_shards(validation, 1, [folder / VALIDATION])
    features = [asdict(feature) for feature in spec.features]
    assigned = replace(
        ASSIGNED, features=features, label=spec.label, train_digest=train.digest, validation_digest=validation.digest
    )
    JobFolder(str(folder)).put_json(ASSIGNMENT, assigned.as_json())
    port = free_port()
    told = {"TASK_ID": str(rank), "NUM_WORKER": "2", "TRACKER_URI": "127.0.0.1", "TRACKER_PORT": str(port)}
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "modelyard.components.training.distributed.node", str(folder)],
            env={**os.environ, **{f"DMLC_{name}": value for name, value in told.items()}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return started, port


def _met(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


def test_a_node_that_waits_for_the_others_ends_at_once_when_it_is_asked_to(rows, tmp_path):
    log = tmp_path / "log"
    process, port = _alone(rows, tmp_path / "folder", 0, log)
    try:
        until(lambda: process.poll() is not None or _met(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == node.STOPPED, log.read_text()
    finally:
        process.kill()
        process.wait(60)
