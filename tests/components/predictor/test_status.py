import json
import os

import pytest

from modelyard.components import termination
from modelyard.components.predictor.status import StatusFile


def test_a_state_is_written_whole(tmp_path):
    said = StatusFile(tmp_path / "status.json")
    said.version, said.digest, said.port = "3", "blake3:ab", 8081
    said.write("failed", "it is not signed")
    content = json.loads((tmp_path / "status.json").read_text())
    assert content == {
        "state": "failed", "reason": "it is not signed", "pid": os.getpid(),
        "version": "3", "digest": "blake3:ab", "port": 8081,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(("pod", "told"), [(True, "x" * 4096), (False, "")])
def test_in_a_pod_the_reason_is_its_termination_message(tmp_path, monkeypatch, pod, told):
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(termination, "TERMINATION_LOG", message)
    if pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    StatusFile(None).write("starting", "not yet")
    assert message.read_text() == ""
    StatusFile(None).write("failed", "x" * 5000)
    assert message.read_text() == told


def test_a_state_that_cannot_be_written_stops_nothing_and_is_told(tmp_path, caplog):
    (tmp_path / "file").touch()
    StatusFile(tmp_path / "file" / "status.json").write("ready")
    assert "the state ready cannot be told" in caplog.text
