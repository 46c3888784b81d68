"""The place through which a step and its nodes pass rows, checkpoints and the result: a folder, or a prefix of an object store.

What is there belongs to one training (its name is the digest of everything that the result depends on), so whoever repeats
the step finds what an earlier attempt left, and writing it again writes the same.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from modelyard.components.storage import uris

ASSIGNMENT = "assignment.json"
VALIDATION = "validation.parquet"
CHECKPOINT = "checkpoint.npz"
PROGRESS = "progress.json"
MODEL = "model"
RESULT = "result.json"


def shard(rank: int) -> str:
    """Name of the training rows of node ``rank``."""
    return f"rows-{rank:04d}.parquet"


class JobFolder:
    """Files by name, each there whole or not at all.

    Attributes:
        uri: the folder or prefix.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def put(self, name: str, path: Path, *, patience: float = 60.0) -> None:
        """Copies a file there, over what is there.

        Args:
            name: of the file there.
            path: the file to copy.
            patience: seconds without an answer from the store after which to give up.

        Raises:
            NotAvailable: the store cannot be reached, or does not let us in.
        """
        uris.put_file(path, self.of(name), patience=patience)

    def get(self, name: str, destination: Path) -> Path | None:
        """The path to read a file at, which is ``destination`` unless it is on this machine; None if there is none."""
        return uris.get_file(self.of(name), destination)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return uris.exists(self.of(name))

    def put_json(self, name: str, value: Any, *, patience: float = 60.0) -> None:
        """Writes JSON there, over what is there; see ``put``.

        Raises:
            NotAvailable: the store cannot be reached, or does not let us in.
        """
        with tempfile.TemporaryDirectory(prefix="modelyard-") as aside:
            path = Path(aside, name)
            path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
            self.put(name, path, patience=patience)

    def get_json(self, name: str) -> Any:
        """What ``put_json`` wrote; None if there is none.

        Raises:
            NotAvailable: the store cannot be reached, or does not let us in.
        """
        with tempfile.TemporaryDirectory(prefix="modelyard-") as aside:
            path = self.get(name, Path(aside, name))
            return None if path is None else json.loads(path.read_text(encoding="utf-8"))

    def remove(self, nodes: int) -> None:
        """Removes everything that a training on so many nodes left; the assignment first, as nothing else counts without it."""
        path = uris.local_path(self.uri)
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            return
        for name in (ASSIGNMENT, RESULT, MODEL, CHECKPOINT, PROGRESS, VALIDATION, *map(shard, range(nodes))):
            uris.remove(self.of(name))

    def of(self, name: str) -> str:
        """URI of a file."""
        return uris.join(self.uri, name)
