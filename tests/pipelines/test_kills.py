"""A release can be killed at any moment and run again: one registered version, nothing half-done, nobody left running."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.signing.verification import verify_model
from modelyard.components.storage.files import PARTIAL
from tests.pipelines.test_release import versions
from tests.support.processes import processes_of


def _command(home, parameters):
    arguments = home.parent / "parameters.json"
    arguments.write_text(json.dumps(parameters))
    return [sys.executable, "-m", "modelyard.scripts.cli", "run", "release", "--home", str(home), "--params", str(arguments)]


def _finish(home, parameters):
    """Runs a release to its end; returns the seconds that took."""
    began = time.monotonic()
    finished = subprocess.run(_command(home, parameters), check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return time.monotonic() - began


def _kill_after(seconds, home, parameters):
    process = subprocess.Popen(_command(home, parameters), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _check_whole(home):
    partial = [str(path) for path in home.rglob("*") if path.name.startswith(PARTIAL)]
    assert not partial, partial
    states = [json.loads(path.read_text())["state"] for path in home.glob("runs/*/run.json")]
    assert states
    assert set(states) <= {"succeeded", "killed"}
    assert len([path for path in home.glob("runs/*") if path.is_dir()]) == len(states)
    found, aliases = versions(home)
    assert [str(version.version) for version in found] == ["1"]
    assert aliases == {"champion": "1"}
    models = list((home / "models" / "fraud").iterdir())
    assert len(models) == 1
    verify_model(models[0], model_name="fraud")


def _kill_and_rerun(kills, tmp_path, parameters, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("MODELYARD_HOME", str(home))
    seed = int(os.environ.get("MODELYARD_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"MODELYARD_TEST_SEED={seed}")
    moments = random.Random(seed)
    duration = 10.0
    for _ in range(kills):
        _kill_after(moments.uniform(0.1, duration), home, parameters)
        deadline = time.monotonic() + 10
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(home)
        duration = _finish(home, parameters)
        _check_whole(home)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it finds orphans in /proc, which this system lacks")
@pytest.mark.slow
def test_a_release_killed_at_a_random_moment_is_whole_after_a_rerun(tmp_path, request_for, monkeypatch):
    _kill_and_rerun(1, tmp_path, request_for(), monkeypatch)


@pytest.mark.random_kills
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it finds orphans in /proc, which this system lacks")
def test_a_release_killed_at_twenty_random_moments_is_whole_after_each_rerun(tmp_path, request_for, monkeypatch):
    _kill_and_rerun(20, tmp_path, request_for(), monkeypatch)
