import os
import shutil
import signal
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.initializer import placing
from modelyard.components.initializer.placing import placed_whole

CONTENT = {"a": b"1", "b/c": b"2", "b/d/e": b"3", "z": b"4"}


def write(content: Path) -> None:
    for name, text in CONTENT.items():
        path = content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place(destination: Path) -> None:
    with placed_whole(destination) as content:
        write(content)


def test_all_entries_appear_in_a_folder_that_stays_the_same_one(tmp_path):
    mounted = tmp_path.stat().st_ino
    place(tmp_path)
    assert read(tmp_path) == CONTENT
    assert tmp_path.stat().st_ino == mounted


def test_a_folder_that_is_not_there_is_made(tmp_path):
    place(tmp_path / "new" / "one")
    assert read(tmp_path / "new" / "one") == CONTENT


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail():
        with placed_whole(tmp_path) as content:
            write(content)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(3))
def test_a_move_that_fails_is_taken_back(tmp_path, monkeypatch, failing):
    rename, moved = Path.rename, []

    def fail(path, to):
        if len(moved) == failing:
            raise OSError(28, "No space left on device")
        moved.append(path)
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="No space left"):
            place(tmp_path)
    assert len(moved) == failing
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_kept_if_it_is_the_same(tmp_path):
    place(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    place(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("change", ["b/c", "b/new", "new", "missing"])
def test_what_is_there_already_is_left_alone_if_it_is_something_else(tmp_path, change):
    place(tmp_path)
    if change == "missing":
        shutil.rmtree(tmp_path / "b")
    else:
        (tmp_path / change).write_bytes(b"?")
    before = read(tmp_path)
    with pytest.raises(InvalidInput, match="give an empty folder"):
        place(tmp_path)
    assert read(tmp_path) == before


def test_a_destination_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for destination in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match="give the path of a folder"):
            place(destination)


def test_of_two_at_one_folder_the_second_is_turned_away(tmp_path):
    with placed_whole(tmp_path) as content:
        with pytest.raises(NotAvailable, match="another process is writing"):
            place(tmp_path)
        write(content)
    assert read(tmp_path) == CONTENT


def place_until_killed(destination: Path, changes: int) -> bool:
    """Places in a process that kills itself before it makes one more change; returns whether it came to its end."""
    child = os.fork()
    if child == 0:
        left = [changes]

        def counted(work):
            def step(*arguments, **details):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return work(*arguments, **details)

            return step

        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
        status = 1
        try:
            place(destination)
            status = 0
        finally:
            os._exit(status)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL)
    return ended == 0


def test_one_that_is_killed_at_any_change_is_replaced_by_the_next(tmp_path):
    """Every moment between two changes of the file system, until one run is no longer killed."""
    changes, halves, ended = 0, 0, False
    while not ended:
        folder = tmp_path / str(changes)
        folder.mkdir()
        ended = place_until_killed(folder, changes)
        halves += 0 < len([path for path in folder.iterdir() if path.name != placing._ASIDE]) < 3
        place(folder)
        assert read(folder) == CONTENT
        changes += 1
    assert halves, "none was killed between two moves"
    assert changes > 10
