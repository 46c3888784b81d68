import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.local import predictor_process, supervisor
from modelyard.components.serving.local.predictor_process import end_predictors
from modelyard.components.serving.local.state import (
    Desired,
    DesiredArm,
    DesiredModel,
    make_folder,
    read_observed,
    write_desired,
)
from modelyard.components.serving.local.supervisor import Supervisor
from modelyard.components.serving.target import ServedModel
from tests.components.serving.local.conftest import until

pytestmark = pytest.mark.server


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """A supervisor of one faulty predictor whose proxy is what the test says, to be driven step by step."""
    monkeypatch.setattr(predictor_process, "MODULE", "tests.components.serving.local.faulty_predictor")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    folder = tmp_path / "serving"
    make_folder(folder)
    arm = DesiredArm("fraud-1", ServedModel("serve", "blake3:0", ""), "/nowhere")
    write_desired(folder, Desired(running=True, port=1, models={"fraud": DesiredModel(stable=arm)}))

    def make(apply):
        made = Supervisor(folder)
        monkeypatch.setattr(made, "_apply", apply)
        return made

    yield make
    end_predictors(folder)


def step(supervised):
    supervised._read_desired()
    supervised._step()
    return read_observed(supervised._folder)


def test_a_proxy_that_takes_long_keeps_nobody_else_waiting(supervise):
    slow, asked = threading.Event(), []

    def apply(port, routes, *, alive):
        asked.append(routes)
        assert slow.wait(30)

    supervised = supervise(apply)
    until(lambda: step(supervised).arms["fraud-1"].state == "ready")
    pid = read_observed(supervised._folder).arms["fraud-1"].pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: step(supervised).arms["fraud-1"].pid not in (0, pid))
    assert len(asked) == 1
    assert read_observed(supervised._folder).generation == 0
    slow.set()
    until(lambda: "fraud" in step(supervised).routes)
    supervised._end_all()


def test_a_port_that_stays_refused_is_told_once_and_tried_ever_less_often_until_it_ends(supervise, monkeypatch, caplog):
    tried = []

    def apply(port, routes, *, alive):
        tried.append(time.monotonic())
        raise InvalidInput("port", port, "it is in use")

    monkeypatch.setattr(supervisor, "_PAUSE_SECONDS", 0.01)
    supervised = supervise(apply)
    until(lambda: step(supervised) and len(tried) == 5)
    assert tried[4] - tried[3] > 0.08
    assert caplog.text.count("it is in use") == 1
    assert read_observed(supervised._folder).problem["field"] == "port"
    monkeypatch.setattr(supervisor, "_GIVE_UP_SECONDS", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    supervised.run()
    assert predictor_process.find_predictors(supervised._folder) == {}


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text('{"format_version": 9}')]
)
def test_what_is_told_is_told_again_when_it_is_lost(supervise, damage):
    supervised = supervise(lambda *_, **__: None)
    step(supervised)
    path = supervised._folder / "observed.json"
    before = json.loads(path.read_text())
    damage(path)
    step(supervised)
    assert json.loads(path.read_text())["supervisor"] == before["supervisor"]
