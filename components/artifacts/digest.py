"""Digests that name data and models by their content.

A model's digest covers what was trained: every file of its directory except the attestations added afterwards
(``card/``, ``provenance.json``, ``model.sig``), which the signature covers instead. Training the same thing twice therefore
gives the same digest, whatever the run, the day or the signer.

Digests are written ``blake3:<64 hexadecimal digits>``. BLAKE3 is the OpenSSF model-signing project's fastest choice.
"""

import os
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
    manifest = blake3()
    count = 0
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if relative.parts[0] in ATTESTATIONS:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput("model directory", str(path), "only regular files and folders can be part of a model")
        if path.is_file():
            manifest.update(f"{file_digest(path)}  {relative.as_posix()}\n".encode())
            count += 1
    if not count:
        raise InvalidInput("model directory", str(root), "it holds no file; give the folder that training wrote")
    return "blake3:" + manifest.hexdigest()
