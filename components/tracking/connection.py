"""The MLflow client of this package: telemetry off, quiet, and a local database that is made whole or not at all.

MLflow makes its sqlite tables by running every migration it ever had, without a lock: a second or more in which another process
finds half a database, and two that start together break it. Here the database is made aside and renamed.
"""

import importlib
import logging
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.lean_imports import left_out
from modelyard.components.storage.files import atomic_file
from modelyard.components.storage.locks import exclusive_lock

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SQLITE = "sqlite:///"
_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
# MLflow's own are two minutes, which a silent server takes each time that it is asked.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def client() -> "MlflowClient":
    """A client of the tracking server and registry that ``settings.tracking_uri()`` names.

    Raises:
        InvalidInput: that is no address that MLflow knows.
        NotAvailable: MLflow is not installed, or the local database cannot be made.
    """
    uri = settings.tracking_uri()
    mlflow_client = _import_quietly()
    from mlflow.exceptions import MlflowException

    if uri.startswith(_SQLITE):
        _make_database(Path(uri.removeprefix(_SQLITE)))
    try:
        return mlflow_client(tracking_uri=uri, registry_uri=uri)
    except MlflowException:
        # Its own message lists schemes, and quotes the address, password and all.
        remedy = "MLflow knows no such address; give http://…, https://… or sqlite:///…"
        raise InvalidInput("MLFLOW_TRACKING_URI", _without_password(uri, uri), remedy) from None


def experiment_id(tracking: "MlflowClient", name: str) -> str:
    """The experiment to put runs in: ``MLFLOW_EXPERIMENT_ID`` or ``MLFLOW_EXPERIMENT_NAME`` if set, else ``name``, made if new.

    Raises:
        InvalidInput: the experiment was deleted in MLflow.
        NotAvailable: the tracking server cannot be reached, or does not let us in.
    """
    from mlflow.exceptions import MlflowException

    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    with reachable():
        found = tracking.get_experiment_by_name(name)
        if found is None:
            try:
                return str(tracking.create_experiment(name, artifact_location=_artifact_location(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = tracking.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise InvalidInput("experiment", name, "it was deleted in MLflow; restore it there, or set MLFLOW_EXPERIMENT_NAME")
    return str(found.experiment_id)


@contextmanager
def reachable(*, files: bool = False) -> Iterator[None]:
    """Makes MLflow calls in the block fail soon and with a clear message, where MLflow alone retries for minutes.

    A server that refuses is given up within seconds, one that stays silent in about a minute. Whoever sets MLflow's own
    variables for that chooses otherwise.

    Args:
        files: whether files are asked for, which the server may have to fetch itself first: MLflow's own timeout holds.

    Raises:
        NotAvailable: the tracking server cannot be reached, or does not let us in.
    """
    from mlflow.exceptions import MlflowException

    limits = _RETRIES if files else {**_RETRIES, **_PATIENCE}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"):
            raise
        uri = settings.tracking_uri()
        # MLflow's own message quotes the address, password and all; so would the error that this one comes from.
        raise NotAvailable(
            f"MLflow at {_without_password(uri, uri)} {_without_password(_trouble(error), uri)}: "
            "check MLFLOW_TRACKING_URI, the server and its credentials"
        ) from (None if urlsplit(uri).password else error)
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _trouble(error: BaseException) -> str:
    """What is wrong with the server, in a few words where no connection came about."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return f"cannot be reached ({cause.strerror})"
        if isinstance(cause, TimeoutError):
            return "did not answer in time"
        cause = cause.__cause__ or cause.__context__
    return f"does not answer as it should ({textwrap.shorten(str(error).splitlines()[0], 300, placeholder=' …')})"


def _import_quietly() -> Any:
    # Both are read when mlflow is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        with left_out("pandas"):
            from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise NotAvailable("MLflow is not installed: install modelyard[train] or modelyard[ops]") from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _leave_feast_out()
    return MlflowClient


def _leave_feast_out() -> None:
    """Keeps MLflow from importing Feast, where both are installed, to ask it for request headers: 10 s of the first call."""
    from mlflow.utils import plugins

    announced = plugins.get_entry_points
    plugins.get_entry_points = lambda group: [entry for entry in announced(group) if not entry.value.startswith("feast.")]
    try:
        importlib.import_module("mlflow.tracking.request_header.registry")
    finally:
        plugins.get_entry_points = announced


def _make_database(path: Path) -> None:
    if path.exists():
        return
    settings.make_folder(path.parent)
    with exclusive_lock(path.with_name(path.name + ".lock")):
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # In a folder of its own: a process killed meanwhile leaves sqlite's journal beside the database.
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder, atomic_file(path) as partial:
            database = Path(folder, path.name)
            SqlAlchemyStore(f"{_SQLITE}{database}", _artifact_root(path)).engine.dispose()
            shutil.copyfile(database, partial)


def _artifact_root(database: Path) -> str:
    # MLflow's default is a folder in the current directory, which differs from step to step.
    return (database.parent / "mlruns").as_uri()


def _artifact_location(name: str) -> str | None:
    uri = settings.tracking_uri()
    if not uri.startswith(_SQLITE):
        return None
    return f"{_artifact_root(Path(uri.removeprefix(_SQLITE)))}/{quote(name, safe='')}"


def _without_password(text: str, uri: str) -> str:
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text
