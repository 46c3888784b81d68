import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from modelyard.components.storage.files import PARTIAL, atomic_directory, atomic_file, write_text
from tests.support.waiting import until


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_old_content_until_the_block_ends_well(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with atomic_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_an_error_leaves_neither_a_file_nor_a_folder(tmp_path):
    for make in (atomic_file, atomic_directory):
        with pytest.raises(KeyError), make(tmp_path / "target"):
            raise KeyError
    assert names(tmp_path) == []


def test_folders_above_are_made_and_the_umask_is_honoured(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a" / "b" / "file", "x")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b" / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("occupied_by", ["folder", "file", "link"])
def test_a_folder_never_replaces_what_is_there(tmp_path, occupied_by):
    target = tmp_path / "target"
    if occupied_by == "folder":
        target.mkdir()
        (target / "kept").write_text("x")
    elif occupied_by == "file":
        target.write_text("x")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    before = names(tmp_path)
    with pytest.raises(FileExistsError), atomic_directory(target) as partial:
        (partial / "new").write_text("y")
    assert names(tmp_path) == before
    assert not (target / "new").exists()


def test_a_folder_may_replace_an_empty_one(tmp_path):
    (tmp_path / "target").mkdir()
    with atomic_directory(tmp_path / "target") as partial:
        (partial / "new").write_text("y")
    assert names(tmp_path / "target") == ["new"]


def _write_forever(target: Path, make_folder: bool) -> None:
    with (atomic_directory if make_folder else atomic_file)(target) as partial:
        ((partial / "half") if make_folder else partial).write_text("half")
        time.sleep(600)


def _start_writer(target: Path, make_folder: bool) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_write_forever, args=(target, make_folder), daemon=True)
    process.start()
    until(
        lambda: any(
            path.name.startswith(PARTIAL) and (path.is_dir() or path.stat().st_size) for path in target.parent.iterdir()
        )
    )
    return process


@pytest.mark.parametrize("make_folder", [False, True])
def test_what_a_killed_writer_left_is_removed_by_the_next_writer_of_that_name(tmp_path, make_folder):
    target = tmp_path / "target"
    process = _start_writer(target, make_folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert names(tmp_path)[0].startswith(f"{PARTIAL}target-")
    with atomic_directory(target) as partial:
        (partial / "whole").write_text("x")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("make_folder", [False, True])
def test_what_a_living_writer_is_at_is_left_alone(tmp_path, make_folder):
    target = tmp_path / "target"
    process = _start_writer(target, make_folder)
    try:
        write_text(tmp_path / "other", "x")
        with atomic_directory(target) as partial:
            (partial / "whole").write_text("x")
        assert sum(name.startswith(PARTIAL) for name in names(tmp_path)) == 1
    finally:
        process.kill()
        process.join()


def test_leftovers_of_another_name_are_left_alone(tmp_path):
    for name in (f"{PARTIAL}target-more-{'0' * 16}", f"{PARTIAL}target-short", f"{PARTIAL}tar-{'0' * 16}"):
        (tmp_path / name).write_text("x")
    write_text(tmp_path / "target", "x")
    assert len(names(tmp_path)) == 4
