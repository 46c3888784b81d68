"""A copy of a release's metrics in Weights & Biases, for teams that look there. The registry stays in MLflow.

It follows wandb's own environment: ``WANDB_API_KEY``, ``WANDB_BASE_URL``, ``WANDB_MODE=offline``. One run for each digest,
continued when a release is repeated.
"""

import os
from typing import TYPE_CHECKING, Any

from modelyard.components import settings
from modelyard.components.errors import NotAvailable
from modelyard.components.tracking.connection import reachable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from modelyard.components.registry.registration import Registered
    from modelyard.components.signing.provenance import Provenance


def mirror(
    project: str,
    registered: "Registered",
    *,
    provenance: "Provenance",
    judged: dict[str, Any],
    registry: "MlflowClient",
    run_id: str,
) -> None:
    """Writes the metrics of a registered version, and what it is, into a run of a Weights & Biases project.

    Args:
        project: the project.
        registered: the version.
        provenance: where it comes from.
        judged: content of its ``evaluation.json``.
        registry: MLflow, which knows the metrics of the training run.
        run_id: that run; empty if there is none.

    Raises:
        NotAvailable: wandb is not installed, or its server does not take the run.
    """
    # Read when wandb is imported.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise NotAvailable(
            "Weights & Biases is not installed: install modelyard[wandb], or leave wandb_project empty"
        ) from error

    trained: dict[str, float] = {}
    if run_id:
        with reachable():
            trained = registry.get_run(run_id).data.metrics
    metrics = {f"training/{name}": value for name, value in trained.items()}
    metrics |= {f"evaluation/{name}": metric["value"] for name, metric in judged["metrics"].items()}
    folder = os.environ.get("WANDB_DIR") or (None if settings.in_cluster() else str(settings.home()))
    try:
        run = wandb.init(
            project=project,
            id=registered.digest.removeprefix("blake3:")[:32],
            name=f"{provenance.model_name} {registered.version}",
            resume="allow",
            dir=folder,
            config={
                "model_name": provenance.model_name,
                "model_version": registered.version,
                "model_digest": registered.digest,
                "model_uri": registered.uri,
                "mlflow_run_id": run_id,
                "data_digest": provenance.data_digest,
                "code_revision": provenance.code_revision,
            },
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True),
        )
        run.summary.update(metrics)
        run.finish()
    except wandb.Error as error:
        raise NotAvailable(
            f"Weights & Biases does not take the run ({error}): set WANDB_API_KEY, or WANDB_MODE=offline to keep it here"
        ) from error
