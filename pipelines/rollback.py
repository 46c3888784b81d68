"""The rollback pipeline: the trial under way is ended, or else the version served before is put back in charge."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.rollout.component import rollback_model
from modelyard.pipelines.cluster import place, with_verification_key


class RolledBack(NamedTuple):
    """Which version is in charge, and which one lost its traffic."""

    version: str
    replaced: str


@dsl.pipeline(
    name="rollback", description="End the trial under way, or else put the version that was served before back in charge."
)
def rollback(model_name: str, target: str = "local", namespace: str = "", reason: str = "") -> RolledBack:
    """Ends the trial under way, or else puts the version that was served before back in charge, in one step.

    While a version is on trial, it goes, and the version in charge keeps everything; the rollout stops. With none on trial,
    the version before is verified and gets all the traffic. It does not need the registry: if that is down, the champion is
    moved there later.

    Args:
        model_name: Name of the served model.
        target: Where it is served: local (behind a proxy on this machine) or kserve.
        namespace: Namespace of the InferenceService, for kserve; empty for the pipeline's own.
        reason: Why, for the registry: it becomes the rejected_reason of the version that goes.

    Returns:
        version: The version that is in charge now; empty if the trial of a first version was ended.
        replaced: The version that lost its traffic: the one on trial, or else the one that was in charge.
    """
    restored = rollback_model(model_name=model_name, target=target, namespace=namespace, reason=reason)
    with_verification_key(place(restored, cpu="1", memory="2G", minutes=30))
    return RolledBack(version=restored.outputs["version"], replaced=restored.outputs["replaced"])
