"""Entries that appear in a folder which exists already, all of them or none.

A pod's volume is mounted where the model belongs, so no rename can put it there at once. What is to appear is made in a folder
aside, inside the volume; a record of what will be moved is written before the first entry is. Whoever finds the record knows
that a move was cut short, and takes back what it had moved.
"""

import fcntl
import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage.files import PARTIAL, write_text

_ASIDE = f"{PARTIAL}modelyard"
_RECORD = "moving.json"
_CONTENT = "content"


@contextmanager
def placed_whole(destination: Path) -> Iterator[Path]:
    """Yields the path of a folder to make; if the block ends well, its entries are moved to ``destination``.

    Beside that path there is room for what must not stay. Whatever happens, ``destination`` holds all entries in the end, or
    none; what a killed process left of it is taken back by the next.

    Raises:
        InvalidInput: ``destination`` is no folder, or holds something else than would be moved there.
        NotAvailable: another process is at it.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInput("destination", str(destination), "give the path of a folder") from error
    with _alone(destination):
        aside = destination / _ASIDE
        _take_back(destination, aside)
        aside.mkdir()
        try:
            yield aside / _CONTENT
            _place(destination, aside)
        except BaseException:
            _take_back(destination, aside)
            raise
        shutil.rmtree(aside)


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    descriptor = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise NotAvailable(f"another process is writing to {destination}; wait until it has ended") from error
    finally:
        os.close(descriptor)


def _place(destination: Path, aside: Path) -> None:
    content, record = aside / _CONTENT, aside / _RECORD
    names = sorted(path.name for path in content.iterdir())
    there = sorted(path.name for path in destination.iterdir() if path != aside)
    if there:
        if not (there == names and _same(content, destination, names)):
            raise InvalidInput(
                "destination", str(destination), f"it holds something else ({', '.join(there[:5])}); give an empty folder"
            )
        return
    write_text(record, json.dumps(names))
    for name in names:
        (content / name).rename(destination / name)
    descriptor = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # From here on it is done.
    record.unlink()


def _take_back(destination: Path, aside: Path) -> None:
    record = aside / _RECORD
    if record.exists():
        for name in json.loads(record.read_text(encoding="utf-8")):
            moved = destination / name
            if not (aside / _CONTENT / name).exists() and moved.exists():
                shutil.rmtree(moved) if moved.is_dir() else moved.unlink()
        record.unlink()
    if aside.exists():
        shutil.rmtree(aside)


def _same(one: Path, other: Path, names: list[str]) -> bool:
    """Whether these entries of two folders hold the same, byte for byte."""
    for name in names:
        first, second = one / name, other / name
        if first.is_dir() and second.is_dir():
            inner = sorted(path.name for path in first.iterdir())
            if inner != sorted(path.name for path in second.iterdir()) or not _same(first, second, inner):
                return False
        elif not (first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)):
            return False
    return True
