"""The serving targets by name, as a pipeline's parameter ``target`` gives them."""

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.target import ServingTarget


def open_target(name: str) -> ServingTarget:
    """The serving target of this name.

    Args:
        name: ``local``, processes on this machine.

    Raises:
        InvalidInput: there is no such target.
        NotAvailable: it cannot be used from here.
    """
    if name != "local":
        raise InvalidInput("target", name, "use local")
    if settings.in_cluster():
        raise NotAvailable(
            "target 'local' serves on the machine that the pipeline runs on, and a pod ends with its step: run it on a "
            "machine of your own (modelyard run), or set MODELYARD_HOME if this pod is one"
        )
    from modelyard.components.serving.local.target import LocalTarget

    return LocalTarget()
