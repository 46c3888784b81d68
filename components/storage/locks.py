"""A lock between processes of one machine, which the kernel releases when its holder dies, however it dies."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(path: str | os.PathLike[str], on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock that the file ``path`` stands for; the file is made if need be and removed at the end.

    Args:
        path: the lock's file; its folder must exist.
        on_wait: called once, before waiting, if another process holds the lock; it may raise, so as not to wait.
    """
    lock = Path(path)
    descriptor = None
    while descriptor is None:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                _call(on_wait, descriptor)
                on_wait = None
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The holder before us removed the file that we waited for: whoever comes next would lock another one.
        if not _is(descriptor, lock):
            os.close(descriptor)
            descriptor = None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _call(on_wait: Callable[[], None], descriptor: int) -> None:
    """Calls it; one that raises, because it will not wait, leaves nothing open."""
    try:
        on_wait()
    except BaseException:
        os.close(descriptor)
        raise


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock that the file ``path`` stands for; nobody does where the file is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
