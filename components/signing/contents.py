"""What a signed directory may hold, and the digests of what it holds.

Each file has two digests. SHA-256 is what the upstream command ``model_signing verify`` computes (1.1.1 has no flag for
another), so the signature lists it. BLAKE3 is several times faster and is what the collection verifies by;
``provenance.json`` lists it, and the signature covers that file. Only signing computes both.
"""

import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from modelyard.components.errors import InvalidInput

SIGNATURE_FILE = "model.sig"


def list_files(directory: Path) -> list[str]:
    """Names, relative to ``directory``, of all files in it but the signature, sorted.

    Raises:
        InvalidInput: it holds a symbolic link, a special file, an empty folder or an odd name, or is no folder itself.
    """
    if not directory.is_dir():
        raise InvalidInput("model directory", str(directory), "give the path of an existing folder")
    names = []
    pending = [directory]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            found = list(entries)
        if not found:
            raise InvalidInput("model directory", str(folder), "remove the empty folder; no signature covers it")
        for entry in found:
            path = Path(entry.path)
            name = path.relative_to(directory).as_posix()
            if not name.isprintable():
                raise InvalidInput("model directory", name, "rename it; names have printable characters only")
            if entry.is_dir(follow_symlinks=False) and name != SIGNATURE_FILE:
                pending.append(path)
            elif not entry.is_file(follow_symlinks=False):
                raise InvalidInput("model directory", str(path), "remove it; a model holds regular files and folders only")
            elif name != SIGNATURE_FILE:
                names.append(name)
    return sorted(names)


def digests(directory: Path, names: list[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """SHA-256 and BLAKE3 (``blake3:…``) digests of files by name, computed at once on all cores."""
    # The slow digest of the largest file is what everything waits for, so it starts first.
    largest_first = sorted(names, key=lambda name: (directory / name).stat().st_size, reverse=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
        slow = {name: pool.submit(_sha256, directory / name) for name in largest_first}
        fast = {name: pool.submit(_blake3, directory / name) for name in largest_first}
        return {name: slow[name].result() for name in names}, {name: fast[name].result() for name in names}


def _sha256(path: Path) -> bytes:
    if path.stat().st_size == 0:
        return hashlib.sha256().digest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).digest()


def _blake3(path: Path) -> str:
    return "blake3:" + blake3().update_mmap(path).hexdigest()
