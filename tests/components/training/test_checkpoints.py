import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.training.checkpoints import CheckpointFile, Snapshot, checkpoint_file, training_key


def test_a_snapshot_comes_back_as_it_was(tmp_path):
    file = CheckpointFile(tmp_path / "one.npz")
    assert file.load() is None
    state, arrays = (
        {"history": {"m": [0.1, 0.2]}, "run_id": "r"},
        {"booster": np.arange(7, dtype=np.uint8), "step": np.array(3.0)},
    )
    file.save(Snapshot(state, arrays))
    loaded = file.load()
    assert loaded.state == state
    assert {name: (value.dtype, value.tolist()) for name, value in loaded.arrays.items()} == {
        name: (value.dtype, value.tolist()) for name, value in arrays.items()
    }
    file.remove()
    assert file.load() is None


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_removed_and_said_so(tmp_path, content, capsys):
    path = tmp_path / "one.npz"
    path.write_bytes(content)
    assert CheckpointFile(path).load() is None
    assert not path.exists()
    assert "starting over" in capsys.readouterr().out


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["BOMB"])),))


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "one.npz"
    np.savez(path, state=np.array([_Bomb()], dtype=object))
    assert CheckpointFile(path).load() is None
    path.write_bytes(pickle.dumps(_Bomb()))
    assert CheckpointFile(path).load() is None
    assert not (tmp_path / "exploded").exists()


def test_no_two_trainings_share_a_name():
    facts = {"train": "a", "parameters": {"rounds": 3}}
    assert training_key(facts) == training_key({"parameters": {"rounds": 3}, "train": "a"})
    assert len({training_key(other) for other in (facts, {**facts, "train": "b"}, {**facts, "parameters": {"rounds": 4}})}) == 3


def test_checkpoints_are_kept_in_the_home_and_leave_no_lock(home):
    with checkpoint_file("", "k") as file:
        assert file.path == home / "checkpoints" / "k.checkpoint.npz"
        assert (home / "checkpoints" / "k.lock").exists()
    assert list((home / "checkpoints").iterdir()) == []


def test_a_cluster_without_a_volume_keeps_none_and_says_so(monkeypatch, capsys):
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with checkpoint_file("", "k") as file:
        file.save(Snapshot({}, {}))
        assert file.load() is None
    assert "checkpoint_uri" in capsys.readouterr().out


def test_a_bucket_is_no_folder_of_checkpoints():
    with pytest.raises(InvalidInput, match="checkpoint_uri"), checkpoint_file("s3://bucket/checkpoints", "k"):
        pass


_HOLD = """
import sys
from modelyard.components.training.checkpoints import checkpoint_file
with checkpoint_file(sys.argv[1], "k"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_training_of_the_same_kind_waits_until_the_first_has_died(tmp_path, capsys):
    entered = threading.Event()

    def second() -> None:
        with checkpoint_file(str(tmp_path), "k"):
            entered.set()

    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(0.3)
        holder.kill()
    waiting.join(30)
    assert entered.is_set()
    assert "Waiting" in capsys.readouterr().out
