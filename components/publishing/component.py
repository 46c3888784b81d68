"""The KFP interface of publishing."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def publish_model(
    signed_model: dsl.Input[dsl.Model],
    model_name: str,
    destination: str = "",
) -> NamedTuple("Outputs", [("uri", str), ("digest", str)]):
    """Puts a signed model at a place that serving fetches models from.

    Verifies the model, copies it in parallel to a folder named for its digest, and verifies the copy. Nothing is ever
    overwritten; publishing the same model again changes nothing, and completes what was cut short. register_model does the
    same for the store of models, so this is for further places: another bucket, region or cloud.

    Args:
        signed_model: Signed model directory from sign_model.
        model_name: Name of the model it must be.
        destination: Prefix to publish under, s3:// or gs://; empty for the store of models.

    Returns:
        uri: Where the signed directory lies.
        digest: The model's digest.
    """
    from modelyard.components.publishing.publishing import publish_model as work

    published = work(signed_model.path, model_name=model_name, destination=destination)
    return (published.uri, published.digest)
