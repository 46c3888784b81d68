"""Amazon S3 and what speaks its protocol (SeaweedFS, MinIO, Ceph, …), by boto3.

Credentials, region and endpoint are boto3's own: the environment, a profile, or the pod's role; ``AWS_ENDPOINT_URL`` names
another server than Amazon's. boto3 retries what may be retried and checks the checksums of what it sends, and of what comes
in one piece.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelyard.components.errors import ModelyardError, NotAvailable
from modelyard.components.storage.objects import PARALLEL_TRANSFERS, StoredObject, check_same, download_objects, upload_files

# Up to this size a file goes as one request, which alone can be made conditional on there being nothing yet.
_ONE_REQUEST = 64 * 1024 * 1024
# From this size on a file comes in parts.
_IN_PARTS = 8 * 1024 * 1024
_PARTS_AT_ONCE = 4
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the URI",
    "AccessDenied": "access is denied; let the step's credentials list, read and write there",
    "403": "access is denied; let the step's credentials list, read and write there",
    "InvalidAccessKeyId": "the access key is unknown; correct AWS_ACCESS_KEY_ID, or the endpoint in AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
}


def exists(bucket: str, key: str) -> bool:
    """Whether an object has this key, or any object is below it."""
    with _clear_errors(bucket, key):
        client = _client()
        return bool(_head(client, bucket, key)) or bool(_objects_below(client, bucket, key, limit=1))


def download(bucket: str, key: str, destination: Path) -> None:
    """Writes the object, or the folder of objects below the key, to ``destination``, whole or not at all."""
    with _clear_errors(bucket, key):
        client = _client()
        alone = _head(client, bucket, key)
        objects = [alone] if alone else _objects_below(client, bucket, key)
        download_objects(
            _uri(bucket, key), key, objects, destination, lambda stored, path: _fetch(client, bucket, stored, path)
        )


def upload_directory(source: Path, bucket: str, key: str, last: str) -> None:
    """Writes every file below ``source`` to the key, the one named ``last`` after all others."""
    with _clear_errors(bucket, key):
        client = _client()
        upload_files(source, last, lambda path, name: _send(client, bucket, f"{key}/{name}", path))


def get_file(bucket: str, key: str, destination: Path) -> bool:
    """Writes the object to ``destination``, whole or not at all; returns whether there is one."""
    with _clear_errors(bucket, key):
        client = _client()
        stored = _head(client, bucket, key)
        if stored is None:
            return False
        download_objects(
            _uri(bucket, key), key, [stored], destination, lambda stored, path: _fetch(client, bucket, stored, path)
        )
        return True


def put_file(source: Path, bucket: str, key: str, patience: float) -> None:
    """Writes the file to the key, over what is there; gives up after ``patience`` seconds without an answer."""
    with _clear_errors(bucket, key):
        _client(patience).upload_file(str(source), bucket, key, Config=_transfer())


def remove(bucket: str, key: str) -> None:
    """Removes the object, if there is one."""
    with _clear_errors(bucket, key):
        _client().delete_object(Bucket=bucket, Key=key)


def _client(patience: float | None = None) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config

    elsewhere = any(name in os.environ for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    # With one retry, each attempt may wait half the time.
    hasty = {"connect_timeout": patience / 2, "read_timeout": patience / 2} if patience else {}
    # Not boto3's shared session, which keeps the credentials that it saw first; what they share is the description of S3.
    core = botocore.session.get_session()
    core.register_component("data_loader", _loader())
    session = boto3.session.Session(botocore_session=core)
    # Each session adds its folder to those of the loader.
    _loader().search_paths[:] = dict.fromkeys(_loader().search_paths)
    return session.client(
        "s3",
        config=Config(
            retries={"max_attempts": 1 if patience else 5, "mode": "standard"},
            max_pool_connections=PARALLEL_TRANSFERS * _PARTS_AT_ONCE,
            # Some servers give the checksum of the whole with each part, which then looks damaged.
            response_checksum_validation="when_required",
            # Other servers than Amazon's rarely have a host name for each bucket.
            s3={"addressing_style": "path"} if elsewhere else {},
            **hasty,
        ),
    )


@functools.cache
def _loader() -> Any:
    from botocore.loaders import create_loader

    return create_loader()


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_IN_PARTS, max_concurrency=_PARTS_AT_ONCE, max_io_queue=32)


def _head(client: Any, bucket: str, key: str) -> StoredObject | None:
    from botocore.exceptions import ClientError

    try:
        return StoredObject(key, client.head_object(Bucket=bucket, Key=key)["ContentLength"])
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise


def _objects_below(client: Any, bucket: str, key: str, limit: int | None = None) -> list[StoredObject]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=f"{key}/", PaginationConfig={"MaxItems": limit}
    )
    return [StoredObject(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", ())]


def _fetch(client: Any, bucket: str, stored: StoredObject, path: Path) -> None:
    checked = {"ChecksumMode": "ENABLED"} if stored.size < _IN_PARTS else {}
    with path.open("wb") as file:
        client.download_fileobj(bucket, stored.key, file, ExtraArgs=checked, Config=_transfer())


def _send(client: Any, bucket: str, key: str, path: Path) -> None:
    from botocore.exceptions import ClientError

    # Asked first, because some servers take no notice of the condition.
    stored = _head(client, bucket, key)
    if stored is None:
        try:
            _put(client, bucket, key, path)
            return
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "412"):
                raise
            stored = StoredObject(key, client.head_object(Bucket=bucket, Key=key)["ContentLength"])
    check_same(_uri(bucket, key), path, stored, lambda stored, copy: _fetch(client, bucket, stored, copy))


def _put(client: Any, bucket: str, key: str, path: Path) -> None:
    if path.stat().st_size > _ONE_REQUEST:
        client.upload_file(str(path), bucket, key, Config=_transfer())
        return
    with path.open("rb") as file:
        client.put_object(Bucket=bucket, Key=key, Body=file, IfNoneMatch="*")


def _uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


@contextmanager
def _clear_errors(bucket: str, key: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from s3transfer.exceptions import RetriesExceededError

    uri = _uri(bucket, key)
    try:
        yield
    except ModelyardError:
        raise
    except NoCredentialsError as error:
        raise NotAvailable(f"{uri}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise NotAvailable(f"{uri}: {_REMEDIES.get(code, f'the store answered {error}; try again')}") from error
    except RetriesExceededError as error:
        raise NotAvailable(f"{uri}: the connection broke off each time ({error.last_exception}); try again") from error
    except (BotoCoreError, Boto3Error) as error:
        raise NotAvailable(f"{uri}: the store cannot be reached ({error}); check AWS_ENDPOINT_URL and the network") from error
