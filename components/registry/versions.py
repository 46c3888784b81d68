"""Versions in the registry: how they are found, what their tags say, and how a stored one is brought here and verified.

| tag | says |
|---|---|
| ``digest`` | the model digest, which keys the version |
| ``decision``, ``gates``, ``metric.NAME`` | how it was evaluated: the decision, each gate's, the metrics |
| ``judged_against`` | version of the champion it was compared with, or ``none`` |
| ``run_id``, ``data_digest``, ``code_revision``, ``signer`` | where it comes from |
| ``previous`` | ``true`` on the version that was champion before the champion, unless that was sent back |
| ``rejected_reason`` | why a rollout sent it back |
| ``promoted_reason`` | why somebody put it in charge by hand |
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import uris

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
NO_CHAMPION = "none"


def aliases(client: "MlflowClient", model_name: str) -> dict[str, str]:
    """Versions by alias; empty if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(model_name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def all_versions(client: "MlflowClient", model_name: str, digest: str = "") -> list[Any]:
    """All versions of a model, or those with a digest, oldest first."""
    wanted = f"name = '{model_name}'" + (f" and tags.digest = '{digest}'" if digest else "")
    found: list[Any] = []
    page = None
    while page != "":
        results = client.search_model_versions(wanted, max_results=1000, page_token=page or None)
        found += results
        page = results.token or ""
    return sorted(found, key=lambda version: int(version.version))


def get_version(client: "MlflowClient", model_name: str, version: str) -> Any:
    """A version that ``register_model`` registered.

    Raises:
        InvalidInput: there is none of this number.
        VerificationFailed: it has no digest, so something else registered it.
    """
    from mlflow.exceptions import MlflowException

    if not version.isdecimal():
        raise InvalidInput("version", version, "give the number of a registered version")
    try:
        found = client.get_model_version(model_name, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InvalidInput("version", version, f"the model {model_name!r} has no such version") from error
        raise
    if "digest" not in found.tags:
        raise VerificationFailed(f"version {version} of {model_name!r} has no digest: it was not registered by register_model")
    return found


def set_alias(client: "MlflowClient", model_name: str, alias: str, version: str) -> None:
    """Makes an alias name a version."""
    _insist(lambda: client.set_registered_model_alias(model_name, alias, version))


def set_tag(client: "MlflowClient", model_name: str, version: str, key: str, value: str) -> None:
    """Gives a version a tag."""
    _insist(lambda: client.set_model_version_tag(model_name, version, key, value))


def _insist(write: Callable[[], Any]) -> None:
    """Writes; once more if somebody else did at that moment: MLflow looks what is there, inserts, and fails if it was late."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        write()


def bring(version: Any, folder: str | os.PathLike[str]) -> Path:
    """The signed directory of a version, on this machine and verified (signature, name and digest).

    Args:
        version: what ``get_version`` returned.
        folder: where it goes if it has to be downloaded.

    Raises:
        VerificationFailed: it is not what the registry says it is.
        NotAvailable: its store cannot be reached.
    """
    return fetch_verified(version.name, str(version.version), version.tags["digest"], version.source, folder)


def fetch_verified(model_name: str, version: str, digest: str, uri: str, folder: str | os.PathLike[str]) -> Path:
    """As ``bring``, of a version whose digest and place are known without the registry."""
    destination = Path(folder, uri.rstrip("/").rpartition("/")[2])
    try:
        # Half a download has another name, so what is there already is whole; it is verified like any other.
        directory = destination if destination.is_dir() else uris.download(uri, destination)
    except InvalidInput as error:
        raise VerificationFailed(f"version {version} of {model_name!r} is gone from the store of models: {error}") from error
    verify_model(directory, model_name=model_name, digest=digest)
    return directory
