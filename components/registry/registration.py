"""Registering a signed model: one version for each digest, however often and from wherever it is registered."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.components import settings
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.publishing.publishing import keep
from modelyard.components.registry import versions
from modelyard.components.signing.sign import EVALUATION_FILE, read_evaluation
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import uris
from modelyard.components.tracking.connection import client, reachable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from modelyard.components.signing.provenance import Provenance


@dataclass(frozen=True)
class Registered:
    """A registered version.

    Attributes:
        version: its number in the registry.
        digest: its model digest.
        uri: where the signed directory is kept.
    """

    version: str
    digest: str
    uri: str


def register_model(
    signed_model: str | os.PathLike[str],
    *,
    evaluation: str | os.PathLike[str],
    model_name: str,
    run_id: str = "",
    wandb_project: str = "",
) -> Registered:
    """Keeps a signed model in the store of models and registers it as the challenger.

    The version appears last, when everything that it refers to is in place and verified. A model whose digest is registered
    keeps its version. Two processes that register the same digest at the same moment may make two; both then agree on the
    older one and remove the other, as does the next registration if one of them died before it could.

    Args:
        signed_model: folder that ``sign_model`` wrote.
        evaluation: the evaluation that it was signed with.
        model_name: the registered model; made if it is new.
        run_id: MLflow run that trained it; empty for the one in its provenance.
        wandb_project: Weights & Biases project that gets a copy of the run's metrics; empty for none.

    Raises:
        VerificationFailed: the model, or the stored copy of it, is not what it is said to be.
        InvalidInput: the evaluation or the run is another one than it was signed with.
        NotAvailable: the registry or the store of models cannot be reached.
    """
    check_model_name(model_name)
    signed = Path(signed_model)
    provenance = verify_model(signed, model_name=model_name)
    if Path(evaluation).read_bytes() != (signed / EVALUATION_FILE).read_bytes():
        raise InvalidInput("evaluation", str(evaluation), "it is another one than the model was signed with")
    if run_id and provenance.run_id and run_id != provenance.run_id:
        raise InvalidInput("run_id", run_id, f"the model was signed as that of run {provenance.run_id}")
    run = run_id or provenance.run_id
    judged = read_evaluation(signed / EVALUATION_FILE)
    _check_store()
    registry = client()
    with reachable():
        found = versions.all_versions(registry, model_name, provenance.model_digest)
    if found:
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            versions.bring(found[0], folder)
    else:
        uri = keep(signed, provenance, settings.model_store()).uri
        with reachable():
            _make_model(registry, model_name)
            registry.create_model_version(
                model_name, uri, run_id=run or None, tags=_tags(provenance, judged, run), await_creation_for=0
            )
    with reachable():
        version = _one_version(registry, provenance)
        _challenge(registry, model_name, str(version.version))
        if run:
            _note_on_run(registry, run, model_name, str(version.version))
    registered = Registered(str(version.version), provenance.model_digest, version.source)
    if wandb_project:
        from modelyard.components.registry.wandb_mirror import mirror

        mirror(wandb_project, registered, provenance=provenance, judged=judged, registry=registry, run_id=run)
    return registered


def _check_store() -> None:
    if settings.tracking_uri().startswith("http") and uris.local_path(settings.model_store()) is not None:
        raise NotAvailable(
            f"the store of models is a folder on this machine ({settings.model_store()}), which others who use the registry "
            f"cannot read. Set MODELYARD_MODEL_STORE to an s3:// or gs:// URI"
        )


def _make_model(registry: "MlflowClient", model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(provenance: "Provenance", judged: dict[str, Any], run: str) -> dict[str, str]:
    gates = {gate["name"]: gate["decision"] for gate in judged.get("gates", [])}
    champion = judged["champion"]
    return {
        "digest": provenance.model_digest,
        "decision": judged["decision"],
        "gates": json.dumps(gates, sort_keys=True),
        "judged_against": str(champion["version"]) if champion else versions.NO_CHAMPION,
        "run_id": run,
        "data_digest": provenance.data_digest,
        "code_revision": provenance.code_revision,
        "signer": provenance.signer,
        **{f"metric.{name}": format(metric["value"], ".6g") for name, metric in judged["metrics"].items()},
    }


def _one_version(registry: "MlflowClient", provenance: "Provenance") -> Any:
    """The oldest version of a digest; younger ones are what registrations at the same moment, or killed ones, left."""
    oldest, *others = versions.all_versions(registry, provenance.model_name, provenance.model_digest)
    in_use = set(versions.aliases(registry, provenance.model_name).values())
    for other in others:
        if str(other.version) not in in_use:
            _delete_version(registry, other)
    return oldest


def _delete_version(registry: "MlflowClient", version: Any) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.delete_model_version(version.name, version.version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _challenge(registry: "MlflowClient", model_name: str, version: str) -> None:
    """Makes a version the challenger, unless it is the champion; a reason for an earlier rejection no longer holds."""
    named = versions.aliases(registry, model_name)
    if named.get(versions.CHAMPION) == version:
        return
    if named.get(versions.CHALLENGER) != version:
        versions.set_alias(registry, model_name, versions.CHALLENGER, version)
    if "rejected_reason" in registry.get_model_version(model_name, version).tags:
        registry.delete_model_version_tag(model_name, version, "rejected_reason")


def _note_on_run(registry: "MlflowClient", run: str, model_name: str, version: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.set_tag(run, "modelyard.registered_version", f"{model_name}/{version}")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InvalidInput("run_id", run, "MLflow has no such run; give the one that trained the model, or none") from error
        raise
