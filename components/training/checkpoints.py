"""Checkpoints: what a training needs to go on where it was stopped, in one file that is replaced whole.

A checkpoint belongs to one training only: its name is a digest of the data, of every parameter and of the libraries'
versions, so a rerun of the same step finds it and nothing else does. It is a NumPy archive of plain arrays; no pickle is
read or written. While a training runs it holds a lock beside its checkpoint, so two of a kind never share one.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from modelyard.components import settings
from modelyard.components.errors import InvalidInput
from modelyard.components.storage.files import atomic_file
from modelyard.components.storage.locks import exclusive_lock
from modelyard.components.storage.uris import local_path

_STATE = "state"


@dataclass(frozen=True)
class Snapshot:
    """A training's state between two rounds.

    Attributes:
        state: JSON-ready values: rounds done, history of metrics, MLflow run.
        arrays: the model and whatever else its trainer needs, by name.
    """

    state: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class CheckpointFile:
    """Where one training's checkpoint is kept, or nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> Snapshot | None:
        """The last snapshot; None if there is none, or only one that cannot be read, which is then removed."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return Snapshot(json.loads(arrays.pop(_STATE).tobytes()), arrays)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"The checkpoint {self.path} cannot be read ({error}): starting over.")
            self.remove()
            return None

    def save(self, snapshot: Snapshot) -> None:
        """Replaces the last snapshot."""
        if self.path is None:
            return
        state = np.frombuffer(json.dumps(snapshot.state, allow_nan=False).encode(), dtype=np.uint8)
        with atomic_file(self.path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_STATE: state}, **snapshot.arrays)

    def remove(self) -> None:
        """Removes the snapshot: the training has ended well."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def training_key(facts: dict[str, Any]) -> str:
    """Names a training by everything that its result depends on."""
    return blake3(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


@contextmanager
def checkpoint_file(checkpoint_uri: str, key: str) -> Iterator[CheckpointFile]:
    """The checkpoint of the training that ``key`` names, locked against another training of the same kind.

    Args:
        checkpoint_uri: folder of checkpoints; empty for ``checkpoints/`` in the local home, or for none in a cluster.
        key: see ``training_key``.

    Raises:
        InvalidInput: ``checkpoint_uri`` is not a folder that this machine sees.
    """
    folder = _folder(checkpoint_uri)
    if folder is None:
        print("No checkpoints: set checkpoint_uri to a mounted volume, and a stopped training goes on where it was.")
        yield CheckpointFile(None)
        return
    folder.mkdir(parents=True, exist_ok=True)

    def say_so() -> None:
        print(f"Waiting: another process runs this very training (lock {folder / key}.lock).")

    with exclusive_lock(folder / f"{key}.lock", on_wait=say_so):
        yield CheckpointFile(folder / f"{key}.checkpoint.npz")


def _folder(checkpoint_uri: str) -> Path | None:
    if not checkpoint_uri:
        return None if settings.in_cluster() else settings.home() / "checkpoints"
    path = local_path(checkpoint_uri)
    if path is None:
        raise InvalidInput("checkpoint_uri", checkpoint_uri, "give a folder that this machine sees, such as a mounted volume")
    return path.expanduser().resolve()
