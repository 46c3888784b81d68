"""Digests that name data and models by their content.

A model's digest covers what was trained: every file of its directory except the attestations added afterwards
(``card/``, ``provenance.json``, ``model.sig``), which the signature covers instead. Training the same thing twice therefore
gives the same digest, whatever the run, the day or the signer.

Digests are written ``blake3:<64 hexadecimal digits>``. BLAKE3 is the OpenSSF model-signing project's fastest choice.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from modelyard.components.errors import InvalidInput

ATTESTATIONS = frozenset({"card", "provenance.json", "model.sig"})


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of one file's bytes, read through a memory map on all cores."""
    return "blake3:" + blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def model_digest(directory: str | os.PathLike[str]) -> str:
    """The digest of a model directory's payload: relative paths and contents of its regular files, in sorted order.

    Raises:
        InvalidInput: the directory is missing or empty, or holds a symbolic link or a special file.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InvalidInput("model directory", str(root), "give the path of an existing folder")
    digests = {}
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if relative.parts[0] in ATTESTATIONS:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput("model directory", str(path), "only regular files and folders can be part of a model")
        if path.is_file():
            digests[relative.as_posix()] = file_digest(path)
    return payload_digest(digests)


def payload_digest(file_digests: Mapping[str, str]) -> str:
    """The digest of a model whose files have these digests already, so that nobody reads them twice.

    Args:
        file_digests: ``file_digest`` of each file, by its path relative to the model directory (POSIX form); attestations
            among them are left out.

    Raises:
        InvalidInput: no file is left, or a name could be mistaken for another line of the digest's text.
    """
    manifest = blake3()
    payload = {name: value for name, value in file_digests.items() if name.split("/")[0] not in ATTESTATIONS}
    if not payload:
        raise InvalidInput("model directory", sorted(file_digests), "it holds no file; give the folder that training wrote")
    for name, value in sorted(payload.items()):
        if not name.isprintable():
            raise InvalidInput("file name", name, "rename it; names with control characters cannot be part of a model")
        manifest.update(f"{value}  {name}\n".encode())
    return "blake3:" + manifest.hexdigest()
