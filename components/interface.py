"""How a component is declared: a KFP lightweight component on the image that has this package installed.

Nothing is installed when a step starts (``install_kfp_package=False``, no ``packages_to_install``), so the same compiled
YAML runs in a subprocess on a laptop, in Docker and on a cluster, air-gapped ones too.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from modelyard.components.images import image


def component(extra: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes a KFP component of a thin function, on the image of ``extra``.

    The body must import what it uses: KFP ships the function's source alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return dsl.component(function, base_image=image(extra), packages_to_install=[], install_kfp_package=False)

    return decorate
