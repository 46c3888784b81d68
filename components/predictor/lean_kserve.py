"""Imports ``kserve.Model`` without what only other parts of KServe use: pandas, FastAPI and the Kubernetes client.

That is 0.15 s of processor time instead of 0.9 s at every start of a predictor. Nothing is lost: each of them is imported when
it is first used. Only the predictor's own process does this; in any other, ``import kserve`` is what it always was.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

# What the modules behind ``kserve.Model`` import at their top and use in functions that a predictor of ours never calls.
_LATER = ("pandas", "fastapi.responses")


class _Later:
    """Stands for a function or class of a module; using it imports the module."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(self._module), self._name)(*args, **kwargs)


class _LaterModule(ModuleType):
    """Stands for a module until the import of KServe is over, and passes on to it from then on."""

    _importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name) if self._importing else getattr(importlib.import_module(self.__name__), name)


class _LaterPackage(ModuleType):
    """The ``kserve`` package before its ``__init__`` has run: its modules can be imported; anything else runs it."""

    _importing = True

    def __getattr__(self, name: str) -> Any:
        if self._importing or name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def import_kserve_model() -> None:
    """Imports ``kserve.model``. Where KServe is imported already, nothing happens."""
    spec = importlib.util.find_spec("kserve")
    if "kserve" in sys.modules or spec is None:
        return
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _LaterPackage
    stand_ins = {name: _LaterModule(name) for name in _LATER if name not in sys.modules}
    sys.modules.update(stand_ins, kserve=package)
    try:
        importlib.import_module("kserve.model")
    finally:
        for name, stand_in in stand_ins.items():
            del sys.modules[name]
            stand_in._importing = False
        package._importing = False  # type: ignore[attr-defined]
