"""Google Cloud Storage, by google-cloud-storage.

Credentials are google-auth's own: ``GOOGLE_APPLICATION_CREDENTIALS``, workload identity, or ``gcloud``'s;
``STORAGE_EMULATOR_HOST`` names another server. The library retries what may be retried and checks checksums both ways.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelyard.components.errors import ModelyardError, NotAvailable
from modelyard.components.storage.objects import StoredObject, check_same, download_objects, upload_files

_RETRY_SECONDS = 60.0


def exists(bucket: str, key: str) -> bool:
    """Whether an object has this key, or any object is below it."""
    with _clear_errors(bucket, key):
        folder = _bucket(bucket)
        return folder.blob(key).exists(retry=_retry()) or bool(_objects_below(folder, key, limit=1))


def download(bucket: str, key: str, destination: Path) -> None:
    """Writes the object, or the folder of objects below the key, to ``destination``, whole or not at all."""
    with _clear_errors(bucket, key):
        folder = _bucket(bucket)
        alone = folder.get_blob(key, retry=_retry())
        objects = [StoredObject(key, alone.size)] if alone else _objects_below(folder, key)
        download_objects(_uri(bucket, key), key, objects, destination, lambda stored, path: _fetch(folder, stored, path))


def upload_directory(source: Path, bucket: str, key: str, last: str) -> None:
    """Writes every file below ``source`` to the key, the one named ``last`` after all others."""
    with _clear_errors(bucket, key):
        folder = _bucket(bucket)
        upload_files(source, last, lambda path, name: _send(folder, f"{key}/{name}", path))


def get_file(bucket: str, key: str, destination: Path) -> bool:
    """Writes the object to ``destination``, whole or not at all; returns whether there is one."""
    with _clear_errors(bucket, key):
        folder = _bucket(bucket)
        stored = folder.get_blob(key, retry=_retry())
        if stored is None:
            return False
        objects = [StoredObject(key, stored.size)]
        download_objects(_uri(bucket, key), key, objects, destination, lambda stored, path: _fetch(folder, stored, path))
        return True


def put_file(source: Path, bucket: str, key: str, patience: float) -> None:
    """Writes the file to the key, over what is there; gives up after ``patience`` seconds without an answer."""
    with _clear_errors(bucket, key):
        _bucket(bucket).blob(key).upload_from_filename(
            str(source), checksum="auto", retry=_retry(patience), timeout=patience / 2
        )


def remove(bucket: str, key: str) -> None:
    """Removes the object, if there is one."""
    from google.api_core.exceptions import NotFound

    with _clear_errors(bucket, key):
        try:
            _bucket(bucket).blob(key).delete(retry=_retry())
        except NotFound:
            return


def _bucket(name: str) -> Any:
    from google.cloud import storage

    return storage.Client().bucket(name)


def _retry(seconds: float = _RETRY_SECONDS) -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(seconds)


def _objects_below(folder: Any, key: str, limit: int | None = None) -> list[StoredObject]:
    found = folder.list_blobs(prefix=f"{key}/", max_results=limit, retry=_retry())
    return [StoredObject(blob.name, blob.size) for blob in found]


def _fetch(folder: Any, stored: StoredObject, path: Path) -> None:
    with path.open("wb") as file:
        folder.blob(stored.key).download_to_file(file, checksum="auto", retry=_retry())


def _send(folder: Any, key: str, path: Path) -> None:
    from google.api_core.exceptions import PreconditionFailed

    # Asked first, because emulators take no notice of the condition.
    stored = folder.get_blob(key, retry=_retry())
    if stored is None:
        try:
            folder.blob(key).upload_from_filename(str(path), if_generation_match=0, checksum="auto", retry=_retry())
            return
        except PreconditionFailed:
            stored = folder.get_blob(key, retry=_retry())
    check_same(_uri(folder.name, key), path, StoredObject(key, stored.size), lambda stored, copy: _fetch(folder, stored, copy))


def _uri(bucket: str, key: str) -> str:
    return f"gs://{bucket}/{key}"


@contextmanager
def _clear_errors(bucket: str, key: str) -> Iterator[None]:
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests.exceptions import RequestException

    uri = _uri(bucket, key)
    try:
        yield
    except ModelyardError:
        raise
    except DefaultCredentialsError as error:
        raise NotAvailable(
            f"{uri}: there are no credentials; set GOOGLE_APPLICATION_CREDENTIALS, or give the pod a workload identity"
        ) from error
    except NotFound as error:
        raise NotAvailable(f"{uri}: there is no such bucket or object; create it, or correct the URI ({error})") from error
    except (Forbidden, Unauthorized) as error:
        raise NotAvailable(f"{uri}: access is denied; let the step's account list, read and create objects there") from error
    except DataCorruption as error:
        raise NotAvailable(f"{uri}: what arrived is not what is stored ({error}); try again") from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise NotAvailable(f"{uri}: the store cannot be reached ({error}); check the network") from error
