"""The promote pipeline: a version is put in charge by hand, the one under trial or any registered one."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.rollout.component import promote_served_model
from modelyard.pipelines.cluster import place, with_prometheus_token, with_verification_key


class PutInCharge(NamedTuple):
    """Which version is in charge, and which one was."""

    version: str
    replaced: str


@dsl.pipeline(name="promote", description="Put the version under trial, or a registered one, in charge by hand.")
def promote(
    model_name: str,
    version: str = "",
    target: str = "local",
    namespace: str = "",
    reason: str = "",
) -> PutInCharge:
    """Puts the version under trial, or a registered one, in charge by hand, without waiting for its rollout's decision.

    The registry decides first: a version that was judged against another champion than today's is refused. The version is
    verified, ready before it gets the traffic, and a rollout of it that is under way stops.

    Args:
        model_name: Name of the served model.
        version: Version in the registry; empty for the one under trial.
        target: Where it is served: local (behind a proxy on this machine) or kserve.
        namespace: Namespace of the InferenceService, for kserve; empty for the pipeline's own.
        reason: Why, for the record.

    Returns:
        version: The version that is in charge now.
        replaced: The version that was in charge; empty if there was none.
    """
    promoted = promote_served_model(model_name=model_name, version=version, target=target, namespace=namespace, reason=reason)
    with_prometheus_token(with_verification_key(place(promoted, cpu="1", memory="2G", minutes=60)))
    return PutInCharge(version=promoted.outputs["version"], replaced=promoted.outputs["replaced"])
