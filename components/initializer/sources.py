"""Where a model may come from: object stores, and what MLflow knows or keeps.

| source | is |
|---|---|
| ``s3://BUCKET/PATH``, ``gs://BUCKET/PATH`` | a signed directory in an object store |
| ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` | a version in MLflow's registry |
| ``runs:/RUN/PATH`` | an artifact of an MLflow run |
| ``mlflow-artifacts:/PATH`` | an artifact that the MLflow server keeps |

Whatever MLflow says, the digest decides: an alias that leads to another version than the pod asks for is refused.
"""

import re
from pathlib import Path

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.initializer.asked_for import AskedFor
from modelyard.components.storage import uris

_STORES = ("s3://", "gs://")
_REGISTERED = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))")
_OF_A_RUN = re.compile(r"runs:/([^/]+)/(.+)")
_OF_THE_SERVER = "mlflow-artifacts:/"
_FORMS = "s3://BUCKET/PATH, gs://BUCKET/PATH, models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/PATH, mlflow-artifacts:/PATH"


def bring(source: str, destination: Path, asked: AskedFor) -> None:
    """Downloads a directory in parallel, with bounded memory.

    Args:
        source: one of the forms above.
        destination: path to write to, whole or not at all.
        asked: what the registry must know a registered version as.

    Raises:
        InvalidInput: it is no such source, or nothing is there.
        VerificationFailed: the registry knows it as another version.
        NotAvailable: the store or MLflow cannot be reached, or does not let us in.
    """
    if source.startswith(_STORES):
        uris.download(source, destination)
        return
    if registered := _REGISTERED.fullmatch(source):
        place = _registered(source, *registered.groups(), asked=asked)
    elif of_a_run := _OF_A_RUN.fullmatch(source):
        place = _of_a_run(source, *of_a_run.groups())
    elif source.startswith(_OF_THE_SERVER):
        place = source
    else:
        raise InvalidInput("source", source, f"give one of {_FORMS}")
    if place.startswith(_STORES):
        uris.download(place, destination)
    elif place.startswith(_OF_THE_SERVER):
        _download_from_server(place, destination)
    else:
        raise InvalidInput("source", source, f"MLflow keeps it at {place}, where this pod cannot read; publish it to a store")


def _registered(source: str, name: str, version: str, alias: str, *, asked: AskedFor) -> str:
    from mlflow.exceptions import MlflowException

    from modelyard.components.tracking.connection import client, reachable

    registry = client()
    try:
        with reachable():
            found = registry.get_model_version_by_alias(name, alias) if alias else registry.get_model_version(name, version)
            place = registry.get_model_version_download_uri(name, found.version)
    except MlflowException as error:
        raise InvalidInput("source", source, "MLflow's registry has no such version; correct the name") from error
    if asked.version and str(found.version) != asked.version:
        raise VerificationFailed(f"{source} is version {found.version}, not {asked.version}")
    if (digest := found.tags.get("digest", asked.digest)) != asked.digest:
        raise VerificationFailed(f"{source} is another version: in the registry its digest is {digest}, not {asked.digest}")
    return str(place)


def _of_a_run(source: str, run: str, path: str) -> str:
    from mlflow.exceptions import MlflowException

    from modelyard.components.tracking.connection import client, reachable

    tracking = client()
    try:
        with reachable():
            root = tracking.get_run(run).info.artifact_uri
    except MlflowException as error:
        raise InvalidInput("source", source, "MLflow has no such run; correct its id") from error
    return uris.join(root, path.rstrip("/"))


def _download_from_server(place: str, destination: Path) -> None:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    from modelyard.components.storage.files import atomic_directory
    from modelyard.components.tracking.connection import client, reachable

    client()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    tracking_uri = settings.tracking_uri()
    with atomic_directory(destination) as partial:
        try:
            with reachable(files=True):
                get_artifact_repository(place, tracking_uri=tracking_uri).download_artifacts("", str(partial))
        except (MlflowException, RequestException) as error:
            raise NotAvailable(f"{place}: MLflow does not give it ({error}); check the path and the server") from error
        if not any(partial.iterdir()):
            raise InvalidInput("source", place, "nothing is there; check the path")
