"""Feast's registry format without Feast's start-up.

``import feast`` loads every data source and server that it supports, which takes five to fifteen seconds; the classes of its
registry, generated protocol buffers below ``feast.protos``, take a twentieth of one. They are imported here under an empty
stand-in for the package, and everything is taken away again before anyone else imports ``feast``.
"""

import importlib.util
import sys
import threading
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from modelyard.components.errors import NotAvailable

_lock = threading.Lock()


class RegistryFormat(NamedTuple):
    """The protocol buffer message of a whole registry, and the enumeration of value types."""

    Registry: Any
    ValueType: Any


@cache
def registry_format() -> RegistryFormat:
    """The classes to read and write a Feast registry file with.

    Raises:
        NotAvailable: Feast is not installed.
    """
    with _lock:
        if "feast" in sys.modules:
            return _import()
        specification = importlib.util.find_spec("feast")
        if specification is None or specification.submodule_search_locations is None:
            raise NotAvailable("Feast is not installed: install modelyard[features], or run this step on its image")
        stand_in = ModuleType("feast")
        stand_in.__path__ = list(specification.submodule_search_locations)
        sys.modules["feast"] = stand_in
        try:
            return _import()
        finally:
            for name in [name for name in sys.modules if name == "feast" or name.startswith("feast.")]:
                del sys.modules[name]


def _import() -> RegistryFormat:
    registry = import_module("feast.protos.feast.core.Registry_pb2")
    values = import_module("feast.protos.feast.types.Value_pb2")
    return RegistryFormat(registry.Registry, values.ValueType)
