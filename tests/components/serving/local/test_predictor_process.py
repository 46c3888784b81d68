import os
import signal
import socket
import time
from pathlib import Path

import pytest

from modelyard.components.serving.local import predictor_process
from modelyard.components.serving.local.predictor_process import (
    PredictorProcess,
    bound_log,
    end_predictors,
    find_predictors,
    get,
)
from modelyard.components.serving.local.processes import identify
from modelyard.components.serving.local.state import DesiredArm, make_folder
from modelyard.components.serving.target import ServedModel
from tests.components.serving.local.conftest import until

pytestmark = pytest.mark.server


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Makes a faulty predictor that behaves as told, under care, and watches it until something is so."""
    monkeypatch.setattr(predictor_process, "MODULE", "tests.components.serving.local.faulty_predictor")
    monkeypatch.setattr(predictor_process, "_LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    folder = tmp_path / "serving"
    make_folder(folder)

    def make(behaviour, **arguments):
        arm = DesiredArm(f"fraud-{behaviour}", ServedModel(behaviour, "blake3:0", ""), "/nowhere")
        return PredictorProcess(arm, "fraud", folder, **arguments)

    yield make
    end_predictors(folder)


def watch(process, so):
    def step():
        process.watch()
        return so()

    until(step, 30)


def test_one_that_keeps_crashing_fails_with_its_last_words_and_breaks_connections_off(start):
    process = start("crash")
    watch(process, lambda: process.state == "failed")
    assert process.crashes == predictor_process.CRASHES
    assert "exit status 1" in process.reason
    assert process.reason.endswith("first line\nthe last words")
    with socket.create_connection(("127.0.0.1", process.port), timeout=5) as waiting:
        process.watch()
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
    assert process.crashes == predictor_process.CRASHES


def test_the_port_of_one_that_has_failed_is_nobody_elses_also_under_the_next_supervisor(start):
    process = start("refuse")
    watch(process, lambda: process.state == "failed")
    assert not can_be_taken(process.port)
    process.status_file.write_text('{"state": "failed", "reason": "golden row 0", "pid": 1}')
    # As if the supervisor that holds the socket had died.
    process._socket.close()
    again = start("refuse", port=process.port, routed=True)
    assert not can_be_taken(process.port)
    assert (again.state, again.port) == ("failed", process.port)
    until(again.leave, 5)
    assert can_be_taken(process.port)


def can_be_taken(port):
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            stranger.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_one_that_refuses_its_model_is_not_started_again(start):
    process = start("refuse")
    watch(process, lambda: process.state == "failed")
    assert process.crashes == 0
    assert process.reason.endswith("no reason but this")


def test_one_that_crashes_again_and_again_after_it_was_ready_fails(start):
    process = start("once")

    def ask():
        if process.state == "ready" and process.pid and identify(process.pid):
            get(process.port, "/", timeout=5)
        return process.state == "failed"

    watch(process, ask)
    assert process.crashes == predictor_process.CRASHES


def test_one_that_is_in_charge_is_never_given_up(start):
    process = start("once", routed=True)
    process.in_charge = True

    def ask():
        if process.state == "ready" and process.pid and identify(process.pid):
            get(process.port, "/", timeout=5)
        return process.crashes > predictor_process.CRASHES

    watch(process, ask)
    assert process.state == "restarting"
    assert "6th time" in process.reason
    watch(process, lambda: process.state == "ready")


def test_one_that_dies_is_started_again_on_its_port_where_connections_wait_for_it(start):
    process = start("serve")
    watch(process, lambda: process.state == "ready")
    pid, port = process.pid, process.port
    os.kill(pid, signal.SIGKILL)
    watch(process, lambda: process.state == "restarting")
    assert process.reason == "it crashed (by SIGKILL) and is started again"
    watch(process, lambda: process.pid not in (0, pid))
    # It is not ready yet, but who asks gets an answer.
    assert "in_flight" in get(port, "/", timeout=20)
    watch(process, lambda: process.state == "ready")
    assert (process.port, process.crashes) == (port, 1)


def test_one_that_hangs_is_killed_and_started_again(start, monkeypatch):
    monkeypatch.setattr(predictor_process, "HUNG_SECONDS", 0.3)
    monkeypatch.setattr(predictor_process, "_CHECK_TIMEOUT_SECONDS", 0.2)
    process = start("serve")
    watch(process, lambda: process.state == "ready")
    pid = process.pid
    for _ in range(4):
        process.check()
        time.sleep(0.2)
    process.watch()
    assert process.pid == pid
    os.kill(pid, signal.SIGSTOP)
    for _ in range(4):
        process.check()
    watch(process, lambda: process.state == "ready" and process.pid != pid)
    process.check()
    process.watch()
    assert process.crashes == 1


def test_one_that_is_adopted_goes_on_and_gets_its_port_again_after_a_crash(start):
    first = start("serve")
    watch(first, lambda: first.state == "ready")
    port = first.port
    # As if the supervisor that holds the socket had died.
    first._socket.close()
    (adopted,) = find_predictors(first.status_file.parents[1]).values()
    second = start("serve", adopted=adopted)
    watch(second, lambda: second.state == "ready")
    assert (second.pid, second.port) == (adopted.pid, port)
    adopted.signal(signal.SIGKILL)
    watch(second, lambda: second.state == "ready" and second.pid != adopted.pid)
    assert second.port == port
    assert second.reason == ""


def test_one_that_was_refused_before_stays_so_without_a_start(start):
    process = start("serve")
    process.status_file.write_text('{"state": "failed", "reason": "golden row 0", "pid": 1}')
    again = start("serve")
    again.watch()
    assert (again.state, again.reason, again.pid) == ("failed", "golden row 0", 0)


def test_one_leaves_by_itself_once_it_is_idle_and_leaves_nothing_behind(start):
    process = start("serve")
    watch(process, lambda: process.state == "ready")
    folder = process.status_file.parents[1]
    until(process.leave, 30)
    assert find_predictors(folder) == {}
    assert not process.status_file.exists()
    assert list((folder / "scratch").iterdir()) == []


def test_a_log_keeps_its_newest_lines_when_it_gets_long(tmp_path, monkeypatch):
    monkeypatch.setattr(predictor_process, "_LOG_BYTES", 1000)
    log = tmp_path / "log"
    with log.open("ab") as writer:
        for number in range(300):
            writer.write(b"line %d\n" % number)
            writer.flush()
            bound_log(log)
    assert log.stat().st_size <= 1000
    lines = log.read_text().splitlines()
    assert lines[-1] == "line 299"
    assert lines == [f"line {number}" for number in range(300 - len(lines), 300)]
    bound_log(tmp_path / "none")
