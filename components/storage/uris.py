"""Files and folders by URI: on this machine, on S3 and on Google Cloud Storage.

| scheme | is | credentials and endpoint |
|---|---|---|
| a plain path, ``file://`` | this machine | – |
| ``s3://``, ``minio://`` (KFP's) | S3 and what speaks its protocol | boto3's: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, … |
| ``gs://`` | Google Cloud Storage | google-auth's: ``GOOGLE_APPLICATION_CREDENTIALS``, … |

A scheme is one small module beside this one; a new one is a new module and a line in ``_STORES``.
"""

import importlib
import os
import shutil
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from modelyard.components.errors import InvalidInput
from modelyard.components.storage.files import atomic_directory, atomic_file
from modelyard.components.storage.objects import regular_files

_STORES = {
    "s3": "modelyard.components.storage.s3",
    "minio": "modelyard.components.storage.s3",
    "gs": "modelyard.components.storage.gcs",
}


class Store(Protocol):
    """What a module of an object store offers; ``bucket`` and ``key`` are the URI's authority and path."""

    def exists(self, bucket: str, key: str) -> bool:
        """Whether an object has this key, or any object is below it."""

    def download(self, bucket: str, key: str, destination: Path) -> None:
        """Writes the object, or the folder of objects below the key, to ``destination``, whole or not at all."""

    def upload_directory(self, source: Path, bucket: str, key: str, last: str) -> None:
        """Writes every file below ``source`` to the key, the one named ``last`` after all others."""

    def get_file(self, bucket: str, key: str, destination: Path) -> bool:
        """Writes the object to ``destination``, whole or not at all; returns whether there is one."""

    def put_file(self, source: Path, bucket: str, key: str, patience: float) -> None:
        """Writes the file to the key, over what is there; gives up after ``patience`` seconds without an answer."""

    def remove(self, bucket: str, key: str) -> None:
        """Removes the object, if there is one."""


def local_path(uri: str) -> Path | None:
    """The path that a plain path or ``file://`` URI names; None for every other scheme.

    Raises:
        InvalidInput: the URI is empty, of an unknown scheme, or a ``file://`` URI of another host.
    """
    if not uri:
        raise InvalidInput("uri", uri, "give a path, or a URI that starts with file://, s3://, minio:// or gs://")
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise InvalidInput("uri", uri, "a file:// URI has three slashes and an absolute path: file:///folder/name")
        return Path(unquote(parts.path))
    if parts.scheme not in _STORES:
        raise InvalidInput("uri", uri, "give a path, or a URI that starts with file://, s3://, minio:// or gs://")
    return None


def join(uri: str, *parts: str) -> str:
    """``uri`` with path components added.

    Raises:
        InvalidInput: a part is empty, absolute, or leads out of ``uri``.
    """
    for part in parts:
        if not part or part.startswith("/") or any(step in ("", ".", "..") for step in part.split("/")):
            raise InvalidInput("uri part", part, "give a relative path without empty, '.' or '..' steps")
    return "/".join((uri.rstrip("/"), *parts))


def exists(uri: str) -> bool:
    """Whether a file, or a folder that holds something, is at ``uri``."""
    path = local_path(uri)
    if path is not None:
        return path.exists()
    store, bucket, key = _locate(uri)
    return store.exists(bucket, key)


def download(uri: str, destination: str | os.PathLike[str]) -> Path:
    """Brings the file or folder at ``uri`` to this machine.

    Args:
        uri: what to bring.
        destination: path to write to, whole or not at all; unused for what is on this machine already.

    Returns:
        The path to read: ``destination``, or for a local URI the path it names, which is not copied.

    Raises:
        InvalidInput: nothing is there.
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    path = local_path(uri)
    if path is not None:
        if not path.exists():
            raise InvalidInput("uri", uri, "nothing is there; check the path")
        return path
    store, bucket, key = _locate(uri)
    store.download(bucket, key, Path(destination))
    return Path(destination)


def upload_directory(source: str | os.PathLike[str], uri: str, *, last: str = "") -> None:
    """Copies a folder to ``uri``, where nothing is overwritten.

    On this machine the folder appears at once. In an object store objects appear one by one, so name with ``last`` the file
    whose presence says that all others are there; an upload that was cut short is completed by the next one of equal
    content.

    Args:
        source: folder on this machine, of regular files.
        uri: where to.
        last: relative name of the file to write after all others.

    Raises:
        FileExistsError: something else is at ``uri`` already.
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    path = local_path(uri)
    if path is not None:
        regular_files(Path(source))
        with atomic_directory(path) as partial:
            shutil.copytree(source, partial, symlinks=True, dirs_exist_ok=True)
        return
    store, bucket, key = _locate(uri)
    store.upload_directory(Path(source), bucket, key, last)


def get_file(uri: str, destination: str | os.PathLike[str]) -> Path | None:
    """Brings the file at ``uri`` to this machine, if there is one.

    Args:
        uri: what to bring.
        destination: path to write to, whole or not at all; unused for what is on this machine already.

    Returns:
        The path to read: ``destination``, or for a local URI the path it names, which is not copied; None if nothing is
        there.

    Raises:
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    path = local_path(uri)
    if path is not None:
        return path if path.is_file() else None
    store, bucket, key = _locate(uri)
    return Path(destination) if store.get_file(bucket, key, Path(destination)) else None


def put_file(source: str | os.PathLike[str], uri: str, *, patience: float = 60.0) -> None:
    """Copies a file to ``uri``, over what is there: a reader gets the old content or the new one, never a part.

    This is for state that belongs to one writer. What is released goes by ``upload_directory``, which overwrites nothing.

    Args:
        source: file on this machine.
        uri: where to.
        patience: seconds without an answer from the store after which to give up; an upload that makes headway may take
            longer.

    Raises:
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    path = local_path(uri)
    if path is not None:
        with atomic_file(path) as partial:
            shutil.copyfile(source, partial)
        return
    store, bucket, key = _locate(uri)
    store.put_file(Path(source), bucket, key, patience)


def remove(uri: str) -> None:
    """Removes the file at ``uri``, if there is one.

    Raises:
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    path = local_path(uri)
    if path is not None:
        path.unlink(missing_ok=True)
        return
    store, bucket, key = _locate(uri)
    store.remove(bucket, key)


def _locate(uri: str) -> tuple[Store, str, str]:
    parts = urlsplit(uri, allow_fragments=False)
    key = uri.split("://", 1)[1].partition("/")[2].strip("/")
    if not parts.netloc or any(step in ("", ".", "..") for step in key.split("/")):
        raise InvalidInput("uri", uri, "name a bucket and a path below it, without empty, '.' or '..' steps")
    store: Store = importlib.import_module(_STORES[parts.scheme])
    return store, parts.netloc, key
