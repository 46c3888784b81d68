"""Local files and folders that appear whole or not at all.

A reader never sees half a file: the content is written beside its destination under a name that starts with
``.partial-`` and renamed once it is complete and on the disk. What a killed process left behind under such a name is
removed by the next writer of the same destination: a writer holds a lock on its partial for as long as it lives.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
_TOKEN_BYTES = 8


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of ``path``; None if another process holds it or the path is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locked but removed or replaced meanwhile: the lock is of something that nobody will find.
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _remove_leftovers(target: Path, prefix: str) -> None:
    for leftover in target.parent.glob(f"{PARTIAL}*"):
        token = leftover.name.removeprefix(prefix)
        if token != leftover.name and len(token) == 2 * _TOKEN_BYTES:
            _remove_unlocked(leftover)


def _remove_unlocked(leftover: Path) -> None:
    descriptor = _lock(leftover)
    if descriptor is not None:
        _remove(leftover)
        os.close(descriptor)


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """Removes what killed writers left in ``folder``, whatever they were writing: for names that no writer uses again."""
    for leftover in Path(folder).glob(f"{PARTIAL}*"):
        _remove_unlocked(leftover)


@contextmanager
def _partial(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a new path beside ``target``, made by ``make`` and locked, and removes it unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{PARTIAL}{target.name}-"
    _remove_leftovers(target, prefix)
    descriptor = None
    while descriptor is None:
        partial = target.parent / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}"
        make(partial)
        descriptor = _lock(partial)
    try:
        yield partial
    finally:
        _remove(partial)
        os.close(descriptor)


@contextmanager
def atomic_file(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to; renames it to ``destination`` if the block ends well, removes it otherwise."""
    target = Path(destination)
    with _partial(target, lambda partial: partial.touch(exist_ok=False)) as partial:
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_directory(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill; renames it to ``destination`` if the block ends well, removes it otherwise.

    Raises:
        FileExistsError: ``destination`` exists already and is not an empty folder.
    """
    target = Path(destination)
    with _partial(target, Path.mkdir) as partial:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        try:
            partial.replace(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(f"{target} exists already") from error
            raise
        _sync(target.parent)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text to ``destination`` whole or not at all."""
    with atomic_file(destination) as partial:
        partial.write_text(text, encoding="utf-8")
