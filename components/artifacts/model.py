"""A model as a directory of safe formats, and what its ``modelyard.json`` says about it.

| file | holds |
|---|---|
| ``model.ubj`` or ``model.onnx`` | the model itself (XGBoost UBJSON or ONNX), never a pickle |
| ``modelyard.json`` | this module's ``ModelSpec``: features in order, categories, label, decision threshold, training facts |
| ``golden_rows.json`` | rows and the scores they must get, replayed after every load |
| ``reference.parquet`` | a sample of features, label and score: what the model saw, for drift checks |
| ``MLmodel`` | the same model for MLflow (``pyfunc`` and the native flavour) |
| ``card/``, ``provenance.json``, ``model.sig`` | added when the model is signed; see ``modelyard.components.signing`` |
"""

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.components.errors import InvalidInput
from modelyard.components.storage.files import write_text

SPEC_FILE = "modelyard.json"
GOLDEN_ROWS_FILE = "golden_rows.json"
REFERENCE_FILE = "reference.parquet"
SCORE_COLUMN = "score"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Feature:
    """One input column. ``categories`` is None for a number; for a category, its levels in the order of their codes."""

    name: str
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What a model needs and promises.

    Attributes:
        features: inputs in the model's column order.
        label: the column it predicts; the score is the probability that it is 1.
        model_file: file name inside the directory; its suffix says the format (``.ubj``, ``.onnx``).
        threshold: score at or above which the decision is 1, chosen on validation data.
        training: parameters, rounds, seed, library versions (JSON-ready, no clock).
        data: digest, rows, positives and time span of the training data (JSON-ready).
    """

    features: tuple[Feature, ...]
    label: str
    model_file: str
    threshold: float
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    def encode(self, frame: pl.DataFrame) -> np.ndarray:
        """The model's input matrix: numbers as they are, categories as codes, everything missing or unseen as NaN.

        Args:
            frame: any rows that have the feature columns, in any order; further columns are ignored.

        Returns:
            float32 array of shape (rows, features).

        Raises:
            InvalidInput: a feature column is missing, is not of a usable type, or holds an infinite number.
        """
        for feature in self.features:
            if feature.name not in frame.columns:
                raise InvalidInput("column", feature.name, f"the model needs it; the data has {', '.join(frame.columns)}")
        matrix = np.empty((frame.height, len(self.features)), np.float32, order="F")
        for position, feature in enumerate(self.features):
            matrix[:, position] = self._encode_column(frame.get_column(feature.name), feature)
        infinite = np.isinf(matrix)
        if infinite.any():
            row, position = (int(axis[0]) for axis in np.nonzero(infinite))
            name = self.features[position].name
            raise InvalidInput(
                "column",
                name,
                f"row {row} holds {frame[name][row]}, infinite or too large for 32 bits; clip it, or make it null if unknown",
            )
        return np.ascontiguousarray(matrix)

    def _encode_column(self, column: pl.Series, feature: Feature) -> np.ndarray:
        # A null becomes NaN on its way to NumPy.
        if feature.categories is not None:
            levels = column.cast(pl.String).cast(self._levels[feature.name], strict=False)
            return levels.to_physical().cast(pl.Float32).to_numpy()
        if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
            raise InvalidInput(
                "column", feature.name, f"the model takes it as a number, but the data has {column.dtype}; convert it first"
            )
        return column.cast(pl.Float32).to_numpy()

    @cached_property
    def _levels(self) -> dict[str, pl.Enum]:
        return {feature.name: pl.Enum(feature.categories) for feature in self.features if feature.categories is not None}


def write_spec(directory: str | os.PathLike[str], spec: ModelSpec) -> None:
    """Writes ``modelyard.json``."""
    content = {"format_version": FORMAT_VERSION, **asdict(spec)}
    write_text(Path(directory, SPEC_FILE), json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_spec(directory: str | os.PathLike[str]) -> ModelSpec:
    """Reads ``modelyard.json``.

    Raises:
        InvalidInput: the directory holds no model of this package, or one of a newer format.
    """
    path = Path(directory, SPEC_FILE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise InvalidInput(
                "format_version", version, f"this release reads version {FORMAT_VERSION}; install the one that wrote it"
            )
        features = tuple(
            Feature(entry["name"], None if entry["categories"] is None else tuple(entry["categories"]))
            for entry in content.pop("features")
        )
        return ModelSpec(features=features, **content)
    except FileNotFoundError as error:
        raise InvalidInput(
            "model directory", str(directory), f"it has no {SPEC_FILE}; give a folder that training wrote"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InvalidInput(
            "model directory", str(directory), f"its {SPEC_FILE} is damaged ({error}); train it again"
        ) from error
