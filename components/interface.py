"""How a component is declared: a KFP lightweight component on the image that has this package installed.

Nothing is installed when a step starts (``install_kfp_package=False``, no ``packages_to_install``), so the same compiled
YAML runs in a subprocess on a laptop, in Docker and on a cluster, air-gapped ones too.
"""

import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

from kfp import dsl

DEFAULT_REGISTRY = "ghcr.io/modelyard"


def image(extra: str) -> str:
    """Reference of the image that carries one of the package's extras.

    ``MODELYARD_REGISTRY`` and ``MODELYARD_TAG`` override the default registry and the tag, which is the package's version;
    ``modelyard compile --registry … --tag …`` sets them.
    """
    registry = os.environ.get("MODELYARD_REGISTRY", DEFAULT_REGISTRY).rstrip("/")
    tag = os.environ.get("MODELYARD_TAG") or metadata.version("modelyard")
    return f"{registry}/{extra}:{tag}"


def component(extra: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes a KFP component of a thin function, on the image of ``extra``.

    The body must import what it uses: KFP ships the function's source alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return dsl.component(function, base_image=image(extra), packages_to_install=[], install_kfp_package=False)

    return decorate
