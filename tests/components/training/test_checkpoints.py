import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage import uris
from modelyard.components.training.checkpoints import CheckpointFile, Snapshot, checkpoint_file, training_key
from tests.services.fixtures import gcs_emulator, moto_s3, rclone_s3  # noqa: F401


def test_a_snapshot_comes_back_as_it_was(tmp_path):
    file = CheckpointFile(str(tmp_path / "one.npz"))
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
    assert CheckpointFile(str(path)).load() is None
    assert not path.exists()
    assert "starting over" in capsys.readouterr().out


def test_a_checkpoint_with_a_wrong_bit_or_a_missing_end_is_passed_over_or_harmless(tmp_path):
    path = tmp_path / "one.npz"
    file = CheckpointFile(str(path))
    state, booster = {"run_id": "r"}, np.arange(9, dtype=np.uint8)
    file.save(Snapshot(state, {"booster": booster}))
    whole = path.read_bytes()
    wrong = [
        whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]
        for position in range(len(whole))
        for bit in (1, 64)
    ]
    missing = [whole[:length] for length in range(len(whole))]
    passed_over = 0
    for content in wrong + missing:
        path.write_bytes(content)
        loaded = file.load()
        passed_over += loaded is None
        assert loaded is None or (loaded.state == state and all((array == booster).all() for array in loaded.arrays.values()))
    assert passed_over > len(missing)


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["BOMB"])),))


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "one.npz"
    np.savez(path, state=np.array([_Bomb()], dtype=object))
    assert CheckpointFile(str(path)).load() is None
    path.write_bytes(pickle.dumps(_Bomb()))
    assert CheckpointFile(str(path)).load() is None
    assert not (tmp_path / "exploded").exists()


def test_no_two_trainings_share_a_name():
    facts = {"train": "a", "parameters": {"rounds": 3}}
    assert training_key(facts) == training_key({"parameters": {"rounds": 3}, "train": "a"})
    assert len({training_key(other) for other in (facts, {**facts, "train": "b"}, {**facts, "parameters": {"rounds": 4}})}) == 3


def test_checkpoints_are_kept_in_the_home_and_leave_no_lock(home):
    with checkpoint_file("", "k") as file:
        assert file.uri == str(home / "checkpoints" / "k.checkpoint.npz")
        assert (home / "checkpoints" / "k.lock").exists()
    assert list((home / "checkpoints").iterdir()) == []


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    monkeypatch.delenv("MODELYARD_MODEL_STORE", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


@pytest.mark.parametrize("store", ["", "/mnt/models", "file:///mnt/models"])
def test_a_cluster_without_an_object_store_keeps_none_and_says_so(cluster, monkeypatch, capsys, store):
    if store:
        monkeypatch.setenv("MODELYARD_MODEL_STORE", store)
    with checkpoint_file("", "k") as file:
        file.save(Snapshot({}, {}), required=True)
        assert file.load() is None
        file.remove()
    assert "checkpoint_uri" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["s3://bucket/models", "gs://bucket/models/", "minio://bucket"])
def test_a_cluster_keeps_them_beside_its_models(cluster, monkeypatch, store):
    monkeypatch.setenv("MODELYARD_MODEL_STORE", store)
    with checkpoint_file("", "k") as file:
        assert file.uri == f"{store.rstrip('/')}/.checkpoints/k.checkpoint.npz"
    with checkpoint_file("s3://other/place/", "k") as file:
        assert file.uri == "s3://other/place/k.checkpoint.npz"


def test_trainings_of_a_kind_on_one_laptop_do_not_share_an_object(home, monkeypatch):
    with checkpoint_file("s3://bucket/checkpoints", "k"):
        assert [path.name for path in (home / "checkpoints").iterdir()] == ["k.lock"]
    assert list((home / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://", "gs:///folder", "ftp://host/folder", "file://host/folder"])
def test_a_place_that_keeps_no_checkpoints_is_refused_by_its_name(home, uri):
    with pytest.raises(InvalidInput, match="checkpoint_uri"), checkpoint_file(uri, "k"):
        pass


@pytest.fixture(params=["rclone_s3", "moto_s3", "gcs_emulator"])
def prefix(request, monkeypatch) -> str:
    """URI prefix in a bucket on a real server."""
    for name, value in request.getfixturevalue(request.param).environment.items():
        monkeypatch.setenv(name, value)
    return ("gs" if request.param == "gcs_emulator" else "s3") + "://bucket/" + request.node.name


@pytest.mark.server
def test_an_object_store_gives_back_the_last_snapshot(prefix, home):
    for rounds in (1, 2):
        with checkpoint_file(prefix, "k") as file:
            assert file.save(Snapshot({"rounds": rounds}, {"booster": np.arange(rounds)}), required=True)
    with checkpoint_file(prefix, "another") as other:
        assert other.load() is None
    with checkpoint_file(prefix, "k") as file:
        snapshot = file.load()
        assert (snapshot.state, snapshot.arrays["booster"].tolist()) == ({"rounds": 2}, [0, 1])
        file.remove()
        assert file.load() is None
    assert not uris.exists(prefix)


@pytest.mark.server
@pytest.mark.parametrize("length", [0, 5, -1])
def test_an_object_that_was_cut_short_or_is_none_of_ours_is_passed_over(prefix, home, tmp_path, length, capsys):
    with checkpoint_file(prefix, "k") as file:
        file.save(Snapshot({"rounds": 1}, {"booster": np.arange(9)}))
        whole = uris.get_file(file.uri, tmp_path / "whole").read_bytes()
        (tmp_path / "cut").write_bytes(b"no archive" if length == 5 else whole[: length and len(whole) // 2])
        uris.put_file(tmp_path / "cut", file.uri)
        assert file.load() is None
        assert f"The checkpoint {file.uri} cannot be read" in capsys.readouterr().out
        assert not uris.exists(prefix)


def test_a_store_that_is_down_is_said_and_only_at_the_start_an_error(home, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    with checkpoint_file("s3://bucket/checkpoints", "k") as file:
        with pytest.raises(NotAvailable, match=r"s3://bucket/checkpoints/k\..*cannot be reached.*checkpoint_uri") as raised:
            file.save(Snapshot({}, {}), required=True)
        assert not file.save(Snapshot({}, {}))
        file.remove()
        with pytest.raises(NotAvailable, match=r"s3://bucket/checkpoints/k\..*cannot be reached.*checkpoint_uri"):
            file.load()
    said = capsys.readouterr().out
    assert "s3://bucket/checkpoints/k.checkpoint.npz was not replaced" in said
    assert "s3://bucket/checkpoints/k.checkpoint.npz was not removed" in said
    assert "very-secret" not in said + str(raised.value)


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
