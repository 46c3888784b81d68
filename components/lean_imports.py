"""Keeps a library from importing, when a pipeline's step starts, another one that it can use and does not need here.

Where everything is installed, XGBoost imports scikit-learn for classes that no step uses, MLflow imports pandas for data sets
that none logs, and jsonschema builds a grammar for a format that no document of ours contains: a second or more each. A step
then starts as it does in an image that lacks them, which all three support.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_IN_A_STEP = "_KFP_RUNTIME"
_own_process = False


def treat_process_as_step() -> None:
    """Makes this process count as a step's from now on: for a server that runs nothing but this package."""
    global _own_process  # noqa: PLW0603
    _own_process = True


@contextmanager
def left_out(*modules: str) -> Iterator[None]:
    """Imports in the block find the modules missing, as if they were not installed; afterwards they can be imported as ever.

    One that is loaded already stays. Outside of a step's process, which KFP marks, and of our own servers' nothing is left out:
    other code there may want the importing library with all that it offers, such as XGBoost with its scikit-learn classes.
    """
    lean = _own_process or os.environ.get(_IN_A_STEP) == "true"
    missing = [name for name in modules if lean and name not in sys.modules]
    # What Python documents for this: importing a name that stands for None raises ModuleNotFoundError.
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
