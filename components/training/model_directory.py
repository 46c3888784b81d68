"""Writes what both trainers deliver: a model directory as ``modelyard.components.artifacts.model`` lays it out.

Nothing in it tells when, where or in which run it was trained: the same rows, parameters and libraries give the same bytes.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import REFERENCE_FILE, SCORE_COLUMN, SPEC_FILE, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import load_scorer, open_scorer, write_golden_rows
from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.metrics import average_precision, curve, roc_auc
from modelyard.components.storage.files import atomic_directory, write_text
from modelyard.components.training.labelled_rows import LabelledRows
from modelyard.components.training.threshold import cheapest_threshold

GOLDEN_ROWS = 32
REFERENCE_ROWS = 10_000


@dataclass(frozen=True)
class Delivery:
    """A model directory that was written.

    Attributes:
        digest: its model digest.
        threshold: the decision threshold in it.
        metrics: ``validation_pr_auc`` (average precision) and ``validation_roc_auc`` of the model as it lies there.
    """

    digest: str
    threshold: float
    metrics: dict[str, float]


def write_model_directory(
    destination: Path,
    spec: ModelSpec,
    write_model: Callable[[Path], None],
    flavour: dict[str, dict[str, Any]],
    train: LabelledRows,
    validation: LabelledRows,
    *,
    false_negative_cost: float,
    false_positive_cost: float,
    seed: int,
) -> Delivery:
    """Writes the directory whole or not at all; one that an earlier attempt left there is replaced.

    Args:
        destination: the directory.
        spec: what the model needs; its threshold is set here.
        write_model: writes the model to the path it is given.
        flavour: the model's own MLflow flavour, name and configuration.
        train: the rows it was trained on.
        validation: rows to choose the threshold on, and to take golden rows and reference sample from.
        false_negative_cost, false_positive_cost: costs that the threshold minimises.
        seed: seed of the reference sample.
    """
    _make_room(destination)
    with atomic_directory(destination) as directory:
        write_model(directory / spec.model_file)
        # Scores are taken from the model as it was written, so the threshold and the golden rows are of what will be served.
        scorer = open_scorer(directory, spec)
        scores = np.concatenate([scorer.score_matrix(matrix) for matrix, _ in validation.matrices(spec)])
        threshold = cheapest_threshold(validation.labels, scores, false_negative_cost, false_positive_cost)
        write_spec(directory, replace(spec, threshold=threshold))
        _write_golden_rows(directory, spec, validation, scores)
        _write_reference(directory, validation, scores, seed)
        _write_mlmodel(directory, train, flavour)
        load_scorer(directory)
        digest = model_digest(directory)
    points = curve(validation.labels, scores)
    return Delivery(
        digest=digest,
        threshold=threshold,
        metrics={
            "validation_pr_auc": average_precision(points),
            "validation_roc_auc": roc_auc(points),
        },
    )


def _make_room(destination: Path) -> None:
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not (destination / SPEC_FILE).is_file():
        raise InvalidInput("model", str(destination), "something that is no model is there; give a path of its own")
    shutil.rmtree(destination)


def _write_golden_rows(directory: Path, spec: ModelSpec, validation: LabelledRows, scores: np.ndarray) -> None:
    chosen = _spread(validation.labels, scores, GOLDEN_ROWS - 1)
    matrix = spec.encode(validation.take(chosen, spec.feature_names))
    # The last row has nothing but missing values: every default branch and every imputation, in one row.
    matrix = np.vstack([matrix, np.full(len(spec.features), np.nan, np.float32)])
    write_golden_rows(directory, spec, matrix, open_scorer(directory, spec).score_matrix(matrix))


def _spread(labels: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` rows, of both classes alike, from the lowest score of each to the highest."""
    chosen: list[int] = []
    for label, share in ((1, count // 2), (0, count - count // 2)):
        ranked = np.flatnonzero(labels == label)
        ranked = ranked[np.argsort(scores[ranked], kind="stable")]
        chosen.extend(ranked[np.unique(np.linspace(0, len(ranked) - 1, min(share, len(ranked))).astype(int))])
    return np.sort(np.array(chosen))


def _write_reference(directory: Path, validation: LabelledRows, scores: np.ndarray, seed: int) -> None:
    count = min(REFERENCE_ROWS, validation.rows)
    chosen = np.sort(np.random.default_rng(seed).choice(validation.rows, count, replace=False))
    roles = validation.info.roles
    columns = (*roles.features, roles.label, roles.timestamp)
    frame = validation.take(chosen, columns).with_columns(pl.Series(SCORE_COLUMN, scores[chosen]))
    info = DatasetInfo(
        Roles(roles.features, roles.label, roles.timestamp), {"sample_of": validation.digest, "rows": validation.rows}
    )
    write_dataset(frame, directory / REFERENCE_FILE, info)


def _write_mlmodel(directory: Path, train: LabelledRows, flavour: dict[str, dict[str, Any]]) -> None:
    import yaml

    inputs = [{"name": name, "required": True, "type": _signature_type(kind)} for name, kind in train.schema.items()]
    outputs = [{"name": SCORE_COLUMN, "required": True, "type": "double"}]
    content = {
        "flavors": {
            "python_function": {"loader_module": "modelyard.components.artifacts.pyfunc", "data": "."},
            **flavour,
        },
        "mlflow_version": metadata.version("mlflow-skinny"),
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
    }
    write_text(directory / "MLmodel", yaml.safe_dump(content, sort_keys=True))


def _signature_type(kind: pl.DataType) -> str:
    if kind == pl.Boolean:
        return "boolean"
    return "double" if kind.is_numeric() or kind == pl.Null else "string"
