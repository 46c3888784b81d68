"""The folder of one local run, and what becomes of it when the run is killed.

``HOME/runs/<UTC time>-<name>-<suffix>/`` holds

| path | holds |
|---|---|
| ``run.json`` | name, parameters, state, every step with its seconds and outputs; rewritten whole at each step |
| ``logs/`` | one file for each step, and ``pipeline.log`` with KFP's own messages |
| ``artifacts/`` | what the steps wrote |
| ``run.lock`` | held (flock) by the run and by each of its steps: free means that none of them lives any more |

A run that was killed cannot clean up. The next run in the same home finds its folder by the state ``running`` under a free
lock, removes its artifacts and scratch files, and marks it ``killed``.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelyard.components.errors import NotAvailable
from modelyard.components.storage.files import PARTIAL, write_text
from modelyard.components.storage.locks import is_locked

FORMAT_VERSION = 1
RECORD = "run.json"
LOCK = "run.lock"
# How long the steps of a killed run may take to vanish; they are sent SIGKILL the moment it dies.
_DEATH_SECONDS = 10.0


class RunRecord:
    """One run's folder, locked while this object is open.

    Attributes:
        folder: the run's folder.
        content: what ``run.json`` says; change it and call ``save``.
        scratch: folder for the steps' temporary files, outside the home because socket paths must be short.
        lock: descriptor of the lock, to be handed to the steps.
    """

    def __init__(self, folder: Path, lock: int, content: dict[str, Any]) -> None:
        self.folder, self.lock, self.content = folder, lock, content
        self.scratch = Path(content["scratch"])

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def reports(self) -> Path:
        """Where the reports go that a person reads."""
        return self.folder / "reports"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def save(self) -> None:
        """Writes ``run.json``, whole or not at all."""
        _write(self.folder, self.content)

    def close(self) -> None:
        """Removes the scratch files and lets go of the lock."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.close(self.lock)


def open_run(home: Path, name: str, content: dict[str, Any]) -> RunRecord:
    """Cleans up after killed runs of this home, then makes the folder of a new one.

    Args:
        home: the folder of all local state.
        name: the pipeline's name.
        content: further entries of ``run.json``.

    Raises:
        NotAvailable: the home cannot be written.
    """
    runs = home / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailable(f"{home} cannot hold the run's state ({error.strerror}); choose another --home") from error
    with _exclusive(runs):
        recover(runs)
        started = datetime.now(UTC)
        token = secrets.token_hex(3)
        safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
        folder = runs / f"{started:%Y%m%dT%H%M%SZ}-{safe_name}-{token}"
        folder.mkdir()
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = RunRecord(
            folder,
            lock,
            {
                "format_version": FORMAT_VERSION,
                "name": name,
                "state": "running",
                "started": started.isoformat(timespec="seconds"),
                "pid": os.getpid(),
                "scratch": str(Path(tempfile.gettempdir(), f"modelyard-{os.getpid()}-{secrets.token_hex(4)}")),
                **content,
            },
        )
        record.save()
    record.scratch.mkdir(mode=0o700)
    record.logs.mkdir()
    return record


def recover(runs: Path) -> list[Path]:
    """Ends what killed runs left behind.

    Returns:
        The folders of runs that were found dead, now marked ``killed``.
    """
    dead = []
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        content = _read(folder)
        if content is not None and content.get("state") != "running":
            continue
        if not _wait_until_free(folder, content):
            continue
        if content is None:
            # Killed before it had said anything about itself: nothing ran yet.
            shutil.rmtree(folder)
            continue
        for made in ("artifacts", "reports"):
            shutil.rmtree(folder / made, ignore_errors=True)
        _remove_scratch(content)
        for leftover in folder.rglob(f"{PARTIAL}*"):
            leftover.unlink(missing_ok=True)
        for step in content.get("steps", []):
            if step.get("state") == "running":
                step["state"] = "killed"
        content.update(state="killed", error="the run was killed; its artifacts were removed by the next one")
        _write(folder, content)
        dead.append(folder)
    return dead


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_text(folder / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _remove_scratch(content: dict[str, Any]) -> None:
    scratch = Path(content.get("scratch", ""))
    # A record that somebody edited must not make us remove another folder.
    if re.fullmatch(r"modelyard-\d+-[0-9a-f]{8}", scratch.name):
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_until_free(folder: Path, content: dict[str, Any] | None) -> bool:
    """Whether no process of the run lives; waits for the last steps of a run whose own process is gone."""
    deadline = time.monotonic() + _DEATH_SECONDS
    while is_locked(folder / LOCK):
        if content is None or _is_alive(content["pid"]) or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _exclusive(runs: Path) -> Iterator[None]:
    """Holds the home's lock, so that no other run is half made while this one cleans up."""
    descriptor = os.open(runs / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
