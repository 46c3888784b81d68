"""Lets MLflow load a model directory: ``mlflow.pyfunc.load_model(directory)`` scores rows by column name.

MLflow calls ``_load_pyfunc`` of the module that ``MLmodel`` names. Loading replays the golden rows; it does not check the
signature, for which see ``modelyard.components.signing``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.components.artifacts.scoring import Scorer, load_scorer

if TYPE_CHECKING:
    import pandas


class ScoringModel:
    """What MLflow calls to score rows."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def predict(self, model_input: "pandas.DataFrame", params: dict[str, Any] | None = None) -> np.ndarray:
        """Probabilities of the positive class, float64 of shape (rows,), for rows with the feature columns."""
        return self._scorer.score(pl.from_pandas(model_input, nan_to_null=True))


def _load_pyfunc(path: str) -> ScoringModel:
    return ScoringModel(load_scorer(path))
