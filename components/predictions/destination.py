"""Where a prediction log's files go: a folder of this machine, or an object store by way of one.

Features and keys are personal data: on a laptop the folders made here are open to their owner alone, and so are the files.
"""

import contextlib
import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Protocol

from modelyard.components import settings
from modelyard.components.predictions.layout import SUFFIX, day_folder, day_of, file_name
from modelyard.components.storage import uris
from modelyard.components.storage.files import atomic_file, remove_abandoned

MAX_BACKLOG_BYTES = 512 * 1024 * 1024
_PATIENCE_SECONDS = 10.0


class Destination(Protocol):
    """Takes whole files. Its methods may take long and raise ``OSError`` or ``NotAvailable``; each can be called again."""

    @property
    def rows(self) -> int:
        """Rows that have arrived."""

    @property
    def at_stake(self) -> int:
        """Rows that were kept and would yet be lost if the process ended now."""

    def prepare(self) -> None:
        """Removes what killed writers left, and what is older than it may get."""

    def add(self, version: str, day: date, rows: int, write: Callable[[Path], None]) -> None:
        """Keeps a file with the rows of one day, written by ``write``, whole or not at all."""

    def deliver(self) -> None:
        """Brings on what was kept but is not where it belongs yet."""


def open_destination(uri: str, model_name: str, keep_days: int | None) -> Destination:
    """The destination of one model's log.

    Args:
        uri: the log: path, ``s3://`` or ``gs://``.
        model_name: whose log.
        keep_days: days after which a file is removed, for a log on this machine; None keeps all.

    Raises:
        InvalidInput: the URI is none.
    """
    path = uris.local_path(uri)
    if path is not None:
        return LocalFolder(path.expanduser().absolute() / model_name, keep_days)
    return ObjectStore(uris.join(uri, model_name))


class LocalFolder:
    """A folder of this machine."""

    at_stake = 0

    def __init__(self, folder: Path, keep_days: int | None = None) -> None:
        self.rows = 0
        self._folder = folder
        self._keep_days = keep_days
        self._private = not settings.in_cluster()
        self._pruned = date.min

    def prepare(self) -> None:
        self._remove_old()
        for folder in self._days():
            remove_abandoned(folder)

    def add(self, version: str, day: date, rows: int, write: Callable[[Path], None]) -> None:
        self._remove_old()
        folder = self._folder / day_folder(day)
        _make(folder, self._private)
        with atomic_file(folder / file_name(version, datetime.now(UTC), secrets.token_hex(6))) as partial:
            if self._private:
                partial.chmod(0o600)
            write(partial)
        self.rows += rows

    def deliver(self) -> None:
        return

    def _days(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("date=*") if day_of(path.name))

    def _remove_old(self) -> None:
        """Once a day."""
        today = datetime.now(UTC).date()
        if self._keep_days is None or self._pruned == today:
            return
        for folder in self._days():
            day = day_of(folder.name)
            if day is not None and day < today - timedelta(days=self._keep_days):
                shutil.rmtree(folder, ignore_errors=True)
        self._pruned = today


class ObjectStore:
    """An object store. Files wait in a folder of this machine until they have arrived there.

    On a laptop that folder is one of the home, where the next log for the same place finds what a killed one left. In a pod
    nothing outlives the container, so there it is a temporary one.
    """

    def __init__(self, uri: str) -> None:
        self.rows = 0
        self._uri = uri
        self._waiting: dict[str, int] = {}
        self._backlog: Path | None = None

    def prepare(self) -> None:
        for folder in sorted(self._folder().iterdir()):
            if day_of(folder.name):
                remove_abandoned(folder)

    def add(self, version: str, day: date, rows: int, write: Callable[[Path], None]) -> None:
        folder = self._folder() / day_folder(day)
        held = sum(path.stat().st_size for path in self._files())
        if held >= MAX_BACKLOG_BYTES:
            self.deliver()
        _make(folder, private=True)
        path = folder / file_name(version, datetime.now(UTC), secrets.token_hex(6))
        with atomic_file(path) as partial:
            partial.chmod(0o600)
            write(partial)
        self._waiting[path.name] = rows

    def deliver(self) -> None:
        for path in self._files():
            # The log of the model's other version may send the same file at the same time, and remove it.
            with contextlib.suppress(FileNotFoundError):
                uris.put_file(path, uris.join(self._uri, path.parent.name, path.name), patience=_PATIENCE_SECONDS)
            path.unlink(missing_ok=True)
            self.rows += self._waiting.pop(path.name, 0)
        self.rows += sum(self._waiting.values())
        self._waiting.clear()

    @property
    def at_stake(self) -> int:
        return sum(self._waiting.values()) if settings.in_cluster() else 0

    def _files(self) -> list[Path]:
        return sorted(self._folder().glob(f"*/*{SUFFIX}"))

    def _folder(self) -> Path:
        if self._backlog is None:
            if settings.in_cluster():
                self._backlog = Path(tempfile.mkdtemp(prefix="modelyard-predictions-"))
            else:
                name = hashlib.blake2b(self._uri.encode(), digest_size=8).hexdigest()
                self._backlog = settings.home() / "predictions-to-send" / name
        _make(self._backlog, private=True)
        return self._backlog


def _make(folder: Path, private: bool) -> None:
    """Makes a folder and those above it that are missing; ``private`` ones are open to their owner alone."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
