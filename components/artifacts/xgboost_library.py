"""Imports XGBoost so that its threads sleep while they wait.

OpenMP's threads spin by default, which on a machine where anything else runs makes two threads many times slower than one.
"""

import os
from types import ModuleType


def load_xgboost() -> ModuleType:
    """The ``xgboost`` module. ``OMP_WAIT_POLICY`` is left as it is if it is set; OpenMP reads it when it is loaded."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import xgboost

    return xgboost
