"""The model in charge: the version that the registry's alias ``champion`` names, verified."""

import os
from dataclasses import dataclass
from pathlib import Path

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.registry import versions
from modelyard.components.tracking.connection import client, reachable


@dataclass(frozen=True)
class Champion:
    """The champion, verified and on this machine.

    Attributes:
        version: its version in the registry.
        digest: its model digest.
        directory: the signed model directory; load it with ``load_verified_model``.
    """

    version: str
    digest: str
    directory: Path


def fetch_champion(model_name: str, folder: str | os.PathLike[str]) -> Champion | None:
    """The champion of a model, brought to this machine and verified (signature, name and digest).

    Args:
        model_name: the registered model.
        folder: where a champion that is kept in an object store is downloaded to.

    Returns:
        None if the model has no champion yet.

    Raises:
        NotAvailable: the registry or the store of models cannot be reached.
        VerificationFailed: the champion is not what the registry says it is.
    """
    check_model_name(model_name)
    registry = client()
    with reachable():
        number = versions.aliases(registry, model_name).get(versions.CHAMPION)
        if number is None:
            return None
        version = versions.get_version(registry, model_name, number)
    return Champion(number, version.tags["digest"], versions.bring(version, folder))
