"""Where state lives: on a laptop under one folder, on a cluster wherever the environment says.

| variable | means | default on a laptop |
|---|---|---|
| ``MODELYARD_HOME`` | folder of all local state | ``./.modelyard`` |
| ``MLFLOW_TRACKING_URI`` | MLflow tracking and registry | sqlite in the home |
| ``MODELYARD_MODEL_STORE`` | URI prefix of released models (path, ``s3://``, ``gs://``) | ``models/`` in the home |
| ``MODELYARD_SIGNING_KEY`` | path of the private signing key (PEM) | ``keys/signing.pem`` in the home, made on first use |
| ``MODELYARD_VERIFICATION_KEY`` | path of the public key that signatures are checked with | ``keys/signing.pub`` in the home |
| ``MODELYARD_CODE_REVISION`` | revision of the code that runs, written into a model's provenance | the checkout's git commit |
| ``MODELYARD_SERVING_PORT`` | port on 127.0.0.1 that the models served on a laptop answer on | 8080 |
| ``MODELYARD_PREDICTION_LOG`` | folder, ``s3://`` or ``gs://`` prefix of the prediction log | ``predictions/`` in the home |
| ``MODELYARD_PREDICTION_LOG_SECONDS`` | age at which a predictor writes what it has to log | 60 |
| ``MODELYARD_PREDICTION_LOG_DAYS`` | days after which logged rows on this machine are removed | kept |
| ``MODELYARD_MAX_REQUEST_BYTES`` | largest body of a request to a predictor | 10 MiB |
| ``MODELYARD_MAX_REQUEST_ROWS`` | most rows of one | 50,000 |

Where a cluster's rollouts find their counts is configured by the variables that ``sources`` and ``prometheus`` in
``modelyard.components.serving.metrics`` list.

Other ways to sign and to trust are configured by the variables that ``modelyard.components.signing`` lists.

In a Kubernetes pod nothing local outlives the step, so there the defaults are refused rather than used. Keys are looked for
where a Secret named for them is mounted: ``signing.pem`` and ``signing.pub`` in ``/var/run/secrets/modelyard``.
"""

import os
from pathlib import Path

from modelyard.components.errors import NotAvailable

MOUNTED_KEYS = Path("/var/run/secrets/modelyard")


def in_cluster() -> bool:
    """Whether this process runs in a Kubernetes pod and has not been given a local home."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "MODELYARD_HOME" not in os.environ


def _refuse_in_cluster(variable: str, what: str) -> None:
    if in_cluster():
        raise NotAvailable(
            f"{variable} is not set: in a cluster {what} must be configured, because nothing kept in a pod outlives it. "
            f"Set it on the pod, for example through the ConfigMap or Secret that the pipeline names."
        )


def home() -> Path:
    """The folder of all local state, absolute; it is not created here.

    Raises:
        NotAvailable: there is a file in its place; or it is not set, in a cluster.
    """
    _refuse_in_cluster("MODELYARD_HOME", "a place for state")
    folder = Path(os.environ.get("MODELYARD_HOME", ".modelyard")).expanduser().resolve()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise NotAvailable(f"{folder} cannot hold any state: {there} is no folder. Choose another home")
    return folder


def make_folder(folder: Path) -> None:
    """Makes a folder of local state, with all that it lies in.

    Raises:
        NotAvailable: that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailable(f"{folder} cannot be made ({error.strerror}): choose another home") from error


def tracking_uri() -> str:
    """The MLflow tracking and registry URI."""
    if configured := os.environ.get("MLFLOW_TRACKING_URI"):
        return configured
    _refuse_in_cluster("MLFLOW_TRACKING_URI", "the MLflow server")
    folder = home()
    make_folder(folder)
    return f"sqlite:///{folder / 'mlflow.db'}"


def model_store() -> str:
    """URI prefix under which released models are kept, one folder for each digest."""
    if configured := os.environ.get("MODELYARD_MODEL_STORE"):
        return configured.rstrip("/")
    _refuse_in_cluster("MODELYARD_MODEL_STORE", "the store of released models")
    return str(home() / "models")


def checkpoints() -> str:
    """Where trainings keep their checkpoints: a folder of the home; in a cluster ``.checkpoints`` below the store of models.

    Empty if nothing outlives the process: in a cluster whose store of models is not set, or is no object store.
    """
    if not in_cluster():
        return str(home() / "checkpoints")
    store = os.environ.get("MODELYARD_MODEL_STORE", "")
    return f"{store.rstrip('/')}/.checkpoints" if "://" in store and not store.startswith("file://") else ""


def signing_key() -> Path:
    """Path of the private signing key; whether it exists is not checked here."""
    return _key("MODELYARD_SIGNING_KEY", "signing.pem")


def verification_key() -> Path:
    """Path of the public key that signatures are checked with; whether it exists is not checked here."""
    return _key("MODELYARD_VERIFICATION_KEY", "signing.pub")


def _key(variable: str, name: str) -> Path:
    if configured := os.environ.get(variable):
        return Path(configured).expanduser().resolve()
    return (MOUNTED_KEYS if in_cluster() else home() / "keys") / name
