"""The serving targets by name, as a pipeline's parameters ``target`` and ``serving`` give them."""

from collections.abc import Mapping
from typing import Any

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.target import ServingTarget

LOCAL, KSERVE = "local", "kserve"


def open_target(name: str, serving: Mapping[str, Any] | None = None, *, watched: bool = False) -> ServingTarget:
    """The serving target of this name.

    Args:
        name: ``local``, processes on this machine; or ``kserve``, InferenceServices of a cluster.
        serving: where and how ``kserve`` serves, see ``parse_placement``; to ``local`` it says nothing.
        watched: whether its counts will be asked for, so that who keeps them must be known.

    Raises:
        InvalidInput: there is no such target, or it cannot serve like this.
        NotAvailable: it cannot be used from here.
    """
    if name == KSERVE:
        from modelyard.components.serving.kserve.placement import parse_placement
        from modelyard.components.serving.kserve.target import open_kserve_target

        return open_kserve_target(parse_placement(serving or {}), watched=watched)
    if name != LOCAL:
        raise InvalidInput("target", name, f"use {LOCAL} or {KSERVE}")
    if settings.in_cluster():
        raise NotAvailable(
            "target 'local' serves on the machine that the pipeline runs on, and a pod ends with its step: run it on a "
            "machine of your own (modelyard run), or set MODELYARD_HOME if this pod is one"
        )
    from modelyard.components.serving.local.target import LocalTarget

    return LocalTarget()


def command_options(name: str, serving: Mapping[str, Any] | None = None) -> str:
    """What the ``modelyard`` commands need besides a model's name to reach this target, anywhere, with a space before it."""
    if name == LOCAL:
        return ""
    from modelyard.components.serving.kserve.api import own_namespace

    namespace = (serving or {}).get("namespace") or own_namespace()
    return f" --target {name}" + (f" --namespace {namespace}" if namespace else "")
