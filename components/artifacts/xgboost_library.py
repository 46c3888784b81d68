"""Imports XGBoost so that its threads sleep while they wait, and without what no step uses of it.

OpenMP's threads spin by default, which on a machine where anything else runs makes two threads many times slower than one.
"""

import os
from types import ModuleType

from modelyard.components.lean_imports import left_out


def load_xgboost() -> ModuleType:
    """The ``xgboost`` module. ``OMP_WAIT_POLICY`` is left as it is if it is set; OpenMP reads it when it is loaded.

    In a step's process it comes without its scikit-learn classes (``XGBClassifier`` and its kin); a component of yours that
    wants them beside a model of ours imports ``xgboost`` first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with left_out("sklearn"):
        import xgboost

    return xgboost
