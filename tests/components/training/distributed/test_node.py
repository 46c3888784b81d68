import os
import signal
from dataclasses import replace

import pytest

from modelyard.components.training.distributed import node
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.job_folder import ASSIGNMENT, JobFolder

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
