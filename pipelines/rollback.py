"""The rollback pipeline: the version served before is put back in charge, in one step."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.rollout.component import rollback_model
from modelyard.pipelines.cluster import place, with_verification_key


class RolledBack(NamedTuple):
    """Which version is in charge again."""

    version: str
    replaced: str


@dsl.pipeline(name="rollback", description="Put the version that was served before back in charge.")
def rollback(model_name: str, target: str = "local", reason: str = "") -> RolledBack:
    """Puts the version that was served before back in charge of all the traffic, verified, in one step.

    A rollout under way ends with it. It does not need the registry: if that is down, the champion is moved there later.

    Args:
        model_name: Name of the served model.
        target: Where it is served: local (behind a proxy on this machine).
        reason: Why, for the registry: it becomes the rejected_reason of the version that goes.

    Returns:
        version: The version that is in charge again.
        replaced: The version that was in charge.
    """
    restored = rollback_model(model_name=model_name, target=target, reason=reason)
    with_verification_key(place(restored, cpu="1", memory="2G", minutes=30))
    return RolledBack(version=restored.outputs["version"], replaced=restored.outputs["replaced"])
