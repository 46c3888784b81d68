"""Which images carry the package: one for each of its extras, with the package's version as their tag."""

import os
from importlib import metadata

DEFAULT_REGISTRY = "ghcr.io/modelyard"


def image(extra: str) -> str:
    """Reference of the image that carries one of the package's extras.

    ``MODELYARD_REGISTRY`` and ``MODELYARD_TAG`` override the default registry and the tag, which is the package's version;
    ``modelyard compile --registry … --tag …`` sets them.
    """
    registry = os.environ.get("MODELYARD_REGISTRY", DEFAULT_REGISTRY).rstrip("/")
    tag = os.environ.get("MODELYARD_TAG") or metadata.version("modelyard")
    return f"{registry}/{extra}:{tag}"
