"""Checkpoints: what a training needs to go on where it was stopped, in one file that is replaced whole.

A checkpoint belongs to one training only: its name is a digest of the data, of every parameter and of the libraries'
versions, so a rerun of the same step finds it and nothing else does. It is a NumPy archive of plain arrays; no pickle is
read or written.

In a folder a training holds a lock beside its checkpoint while it runs, so two of a kind never share one. In an object store
two of a kind on one laptop wait for each other too, and on two machines they do not: there the last write wins, which costs
rounds at worst, for both are on their way to the same bytes. A training that fails and is never run again leaves its object
behind: an expiry rule of the bucket on the prefix of checkpoints removes those.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from blake3 import blake3

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage import uris
from modelyard.components.storage.files import atomic_file
from modelyard.components.storage.locks import exclusive_lock

_STATE = "state"
# Of the 30 s that Kubernetes grants after SIGTERM an upload may wait twice so long: the periodic one, and the last.
_PATIENCE = 8.0


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
    """Where one training's checkpoint is kept, or nowhere.

    Attributes:
        uri: a path or an object's URI; empty for nowhere.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def load(self) -> Snapshot | None:
        """The last snapshot; None if there is none, or only one that cannot be read, which is then removed.

        Raises:
            NotAvailable: the store cannot be reached, or does not let us in.
        """
        if not self.uri:
            return None
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            try:
                path = uris.get_file(self.uri, Path(folder, "checkpoint.npz"))
            except NotAvailable as error:
                raise NotAvailable(f"No checkpoint can be sought: {error}. Or set checkpoint_uri to another place") from error
            if path is None:
                return None
            try:
                with np.load(path, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive.files}
                return Snapshot(json.loads(arrays.pop(_STATE).tobytes()), arrays)
            # RuntimeError: a damaged header may ask for a password, or for a compression that there is not.
            except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
                print(f"The checkpoint {self.uri} cannot be read ({error}): starting over.", flush=True)
        self.remove()
        return None

    def save(self, snapshot: Snapshot, *, required: bool = False) -> bool:
        """Replaces the last snapshot.

        Args:
            snapshot: the state to keep.
            required: whether a store that does not take it is an error; otherwise that is said, and the last one stays.

        Returns:
            Whether it is kept.

        Raises:
            NotAvailable: ``required``, and the store cannot be reached, or does not let us in.
        """
        if not self.uri:
            return False
        path = uris.local_path(self.uri)
        if path is not None:
            _write(snapshot, path)
            return True
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            _write(snapshot, Path(folder, "checkpoint.npz"))
            try:
                uris.put_file(Path(folder, "checkpoint.npz"), self.uri, patience=_PATIENCE)
            except NotAvailable as error:
                if required:
                    raise NotAvailable(f"No checkpoint can be kept: {error}. Or set checkpoint_uri to another place") from error
                print(f"The checkpoint {self.uri} was not replaced, and the one before it stays: {error}.", flush=True)
                return False
        return True

    def remove(self) -> None:
        """Removes the snapshot; a store that does not do so is no obstacle, and it is said."""
        if not self.uri:
            return
        try:
            uris.remove(self.uri)
        except NotAvailable as error:
            print(f"The checkpoint {self.uri} was not removed: {error}.", flush=True)


def _write(snapshot: Snapshot, path: Path) -> None:
    state = np.frombuffer(json.dumps(snapshot.state, allow_nan=False).encode(), dtype=np.uint8)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_STATE: state}, **snapshot.arrays)


def training_key(facts: dict[str, Any]) -> str:
    """Names a training by everything that its result depends on."""
    return blake3(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


@contextmanager
def checkpoint_file(checkpoint_uri: str, key: str) -> Iterator[CheckpointFile]:
    """The checkpoint of the training that ``key`` names, locked against another training of the same kind on this machine.

    Args:
        checkpoint_uri: folder of checkpoints, or URI prefix in an object store; empty for ``settings.checkpoints()``.
        key: see ``training_key``.

    Raises:
        InvalidInput: ``checkpoint_uri`` is no place that checkpoints can be kept at.
    """
    place = _place(checkpoint_uri)
    if not place:
        print(
            "No checkpoints: set checkpoint_uri to an object store or a mounted volume, and a stopped training goes on where "
            "it was.",
            flush=True,
        )
        yield CheckpointFile("")
        return
    folder = uris.local_path(place)
    if folder is None and settings.in_cluster():
        # A pod shares no folder with any other, so a lock would tell nobody.
        yield CheckpointFile(uris.join(place, f"{key}.checkpoint.npz"))
        return
    locks = folder or settings.home() / "checkpoints"
    locks.mkdir(parents=True, exist_ok=True)

    def say_so() -> None:
        print(f"Waiting: another process runs this very training (lock {locks / key}.lock).", flush=True)

    with exclusive_lock(locks / f"{key}.lock", on_wait=say_so):
        yield CheckpointFile(uris.join(place, f"{key}.checkpoint.npz"))


def _place(checkpoint_uri: str) -> str:
    if not checkpoint_uri:
        return settings.checkpoints()
    try:
        path = uris.local_path(checkpoint_uri)
    except InvalidInput as error:
        raise InvalidInput("checkpoint_uri", checkpoint_uri, error.remedy) from error
    if path is not None:
        return str(path.expanduser().resolve())
    if not urlsplit(checkpoint_uri).netloc:
        raise InvalidInput("checkpoint_uri", checkpoint_uri, "name a bucket")
    return checkpoint_uri
