"""Local files and folders that appear whole or not at all.

A reader never sees half a file: the content is written beside its destination under a name that starts with
``.partial-`` and renamed once it is complete and on the disk. What a killed process left behind under such a name is
removed by the next writer of the same destination.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"


def _partial_prefix(destination: Path) -> str:
    return f"{PARTIAL}{destination.name}-"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to; renames it to ``destination`` if the block ends well, removes it otherwise."""
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=_partial_prefix(target), dir=target.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill; renames it to ``destination`` if the block ends well, removes it otherwise.

    Raises:
        FileExistsError: ``destination`` exists already and is not an empty folder.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(target), dir=target.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        if target.exists():
            raise FileExistsError(f"{target} exists already")
        partial.replace(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text to ``destination`` whole or not at all."""
    with atomic_file(destination) as partial:
        partial.write_text(text, encoding="utf-8")


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
