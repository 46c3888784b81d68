"""The KFP interface of the registry."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def register_model(
    signed_model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    model_name: str,
    run_id: str = "",
    wandb_project: str = "",
) -> NamedTuple("Outputs", [("version", str), ("digest", str), ("uri", str)]):
    """Registers a signed model as the challenger.

    Verifies the model, keeps a copy in the store of models, verifies that too, and registers a version in MLflow with digest,
    gates, metrics, run, data and code revision as tags and the alias challenger. The same digest always gives the same
    version, however often it is registered.

    Args:
        signed_model: Signed model directory from sign_model.
        evaluation: evaluation.json that it was signed with.
        model_name: Name of the registered model; made if it is new.
        run_id: MLflow run that trained it; empty for the one in its provenance.
        wandb_project: Weights & Biases project that gets a copy of the metrics; empty for none.

    Returns:
        version: Number of the registered version.
        digest: The model's digest.
        uri: Where the signed directory is kept.
    """
    from modelyard.components.registry.registration import register_model as work

    registered = work(
        signed_model.path, evaluation=evaluation.path, model_name=model_name, run_id=run_id, wandb_project=wandb_project
    )
    return (registered.version, registered.digest, registered.uri)


@component("ops")
def promote_model(
    model_name: str,
    version: str,
    digest: str,
    replacing: str = "",
) -> NamedTuple("Outputs", [("previous", str)]):
    """Makes a registered version the champion.

    The outgoing champion is tagged previous. A version is promoted only in place of the champion that it was judged against;
    of promotions at the same moment one wins and the others fail. Repeating a promotion changes nothing.

    Args:
        model_name: Name of the registered model.
        version: The version to promote.
        digest: Its model digest, which is checked.
        replacing: Version that must be champion now, or none; empty for the one that this version was judged against.

    Returns:
        previous: The version that was champion before; empty if there was none.
    """
    from modelyard.components.registry.promotion import promote_model as work

    return (work(model_name, version, digest, replacing=replacing),)


@component("ops")
def record_refusal(
    evaluation: dsl.Input[dsl.Artifact],
    refusal: dsl.Output[dsl.Markdown],
    model_name: str,
    run_id: str = "",
) -> NamedTuple("Outputs", [("decision", str), ("outcome", str), ("version", str)]):
    """Records why the gates refused a model, where people look: in the UI and on the MLflow run.

    Nothing is registered and the champion stays.

    Args:
        evaluation: evaluation.json of the refused model.
        model_name: Name that the model would have been registered under.
        run_id: MLflow run that trained it; empty to leave MLflow alone.

    Returns:
        refusal: The decision and its reasons.
        decision: What the gates decided: fail or inconclusive.
        outcome: Always refused.
        version: Always empty: there is no version.
    """
    from pathlib import Path

    from modelyard.components.registry.refusal import record_refusal as work

    return (work(Path(evaluation.path), Path(refusal.path), model_name, run_id), "refused", "")
