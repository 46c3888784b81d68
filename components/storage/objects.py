"""What object stores have in common: folders are prefixes of keys, and files come and go in parallel."""

import filecmp
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage.files import atomic_directory, atomic_file

# Each transfer buffers a few parts of 8 MiB, so this bounds memory as well as connections.
PARALLEL_TRANSFERS = 8


@dataclass(frozen=True)
class StoredObject:
    """One object of a bucket."""

    key: str
    size: int


def download_objects(
    uri: str, key: str, objects: list[StoredObject], destination: Path, fetch: Callable[[StoredObject, Path], None]
) -> None:
    """Writes an object, or all objects below a key, to ``destination``, whole or not at all.

    Args:
        uri: for messages.
        key: what was asked for, without a slash at its end.
        objects: the object ``key`` itself, or everything below ``key/``.
        destination: file or folder to write.
        fetch: writes one object to a path.

    Raises:
        InvalidInput: there is nothing, or a key would lead out of the folder.
        NotAvailable: less or more arrived than the store says there is.
    """
    if not objects:
        raise InvalidInput("uri", uri, "nothing is there; check the bucket and the path")

    def fetch_whole(stored: StoredObject, path: Path) -> None:
        fetch(stored, path)
        if path.stat().st_size != stored.size:
            raise NotAvailable(f"{uri}: {path.stat().st_size} of {stored.size} bytes of {stored.key} arrived; try again")

    if [stored.key for stored in objects] == [key]:
        with atomic_file(destination) as partial:
            fetch_whole(objects[0], partial)
        return
    with atomic_directory(destination) as partial:
        wanted = []
        for stored in objects:
            name = stored.key.removeprefix(f"{key}/")
            if name.endswith("/") and stored.size == 0:
                continue  # A marker that consoles write for a folder.
            if any(step in ("", ".", "..") for step in name.split("/")) or "\0" in name:
                raise InvalidInput("object key", stored.key, "rename it; it is no path below its folder")
            path = partial / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidInput("object key", stored.key, "rename it; it is below another object") from error
            wanted.append((stored, path))
        in_parallel(lambda pair: fetch_whole(*pair), wanted)


def upload_files(source: Path, last: str, send: Callable[[Path, str], None]) -> None:
    """Sends every file below ``source``, the one named ``last`` when all others are there.

    Args:
        source: folder of regular files.
        last: relative name of one of them; empty if the order does not matter.
        send: writes one file under its relative name, unless it is there already.
    """
    names = regular_files(source)
    if last and last not in names:
        raise InvalidInput("folder", str(source), f"it lacks {last}, which completes it")
    in_parallel(lambda name: send(source / name, name), [name for name in names if name != last])
    if last:
        send(source / last, last)


def regular_files(folder: Path) -> list[str]:
    """Names, relative to ``folder``, of the files in it, sorted.

    Raises:
        InvalidInput: there are none, or there is something else than files and folders.
    """
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput("folder", str(path), "remove it; only regular files and folders can be kept")
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    if not names:
        raise InvalidInput("folder", str(folder), "give an existing folder that holds files")
    return sorted(names)


def in_parallel(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Does ``work`` on all items, a few at a time; the first error ends it and is raised."""
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        started = [pool.submit(work, item) for item in items]
        try:
            for future in started:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_same(uri: str, path: Path, stored: StoredObject, fetch: Callable[[StoredObject, Path], None]) -> None:
    """Checks that a stored object is what a file would be stored as; nothing stored is ever overwritten.

    Raises:
        FileExistsError: it is something else.
    """
    same = path.stat().st_size == stored.size
    if same:
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            copy = Path(folder, "object")
            fetch(stored, copy)
            same = filecmp.cmp(path, copy, shallow=False)
    if not same:
        raise FileExistsError(f"{uri} holds something else at {stored.key} already")
