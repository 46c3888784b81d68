import signal
import sys
import time

import pytest

from modelyard.components.storage.locks import exclusive_lock
from modelyard.components.training.distributed import local_nodes


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _run(tmp_path, monkeypatch, script: str, nodes: int = 1) -> int:
    """Runs nodes of which each is a shell script."""
    program = tmp_path / "node"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with exclusive_lock(tmp_path / "lock"):
        return local_nodes.main([str(tmp_path / "folder"), str(tmp_path / "lock"), "xgboost", str(nodes)])


def test_the_last_lines_of_a_node_are_passed_on_however_late(tmp_path, monkeypatch, capfd):
    pass_on = local_nodes._pass_on

    def late(*arguments):
        time.sleep(0.5)
        pass_on(*arguments)

    monkeypatch.setattr(local_nodes, "_pass_on", late)
    assert _run(tmp_path, monkeypatch, "echo the disk of this node is gone; exit 3") == 3
    assert "[node-0] the disk of this node is gone" in capfd.readouterr().out


def test_nothing_that_a_node_put_aside_is_left(tmp_path, monkeypatch):
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(aside))
    named = tmp_path / "named"
    assert _run(tmp_path, monkeypatch, f'touch "$TMPDIR/rows" && echo "$TMPDIR" > {named}; kill -9 $$') == 1
    assert named.read_text().startswith(str(aside))
    assert list(aside.iterdir()) == []
