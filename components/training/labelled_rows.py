"""The rows a model is trained and validated on, read from Parquet in batches so that they need not fit into memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, read_info
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.artifacts.model import SCORE_COLUMN, Feature, ModelSpec
from modelyard.components.errors import InvalidInput

BATCH_ROWS = 262_144
MAX_CATEGORIES = 10_000


@dataclass(frozen=True)
class LabelledRows:
    """A dataset that a classifier can be fitted to or validated on.

    Attributes:
        path: the Parquet file.
        info: its roles and lineage.
        schema: type of each feature column.
        digest: digest of the file.
        labels: the label column, uint8 of shape (rows,).
        start, end: earliest and latest timestamp, ISO 8601.
    """

    path: Path
    info: DatasetInfo
    schema: dict[str, pl.DataType]
    digest: str
    labels: np.ndarray
    start: str
    end: str

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def facts(self) -> dict[str, Any]:
        """Digest, rows, positives, time span and lineage, JSON-ready."""
        return {
            "digest": self.digest,
            "rows": self.rows,
            "positives": self.positives,
            "start": self.start,
            "end": self.end,
            "lineage": self.info.lineage,
        }

    def batches(self, columns: tuple[str, ...], rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
        """The given columns, at most ``rows`` rows at a time, in the file's order."""
        lazy = pl.scan_parquet(self.path).select(columns)
        for offset in range(0, self.rows, rows):
            yield lazy.slice(offset, rows).collect()

    def matrices(self, spec: ModelSpec, rows: int = BATCH_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Encoded features and labels, at most ``rows`` rows at a time, in the file's order."""
        offset = 0
        for frame in self.batches(spec.feature_names, rows):
            yield spec.encode(frame), self.labels[offset : offset + frame.height]
            offset += frame.height

    def take(self, indices: np.ndarray, columns: tuple[str, ...]) -> pl.DataFrame:
        """The rows at ``indices`` (sorted, distinct), without reading all rows into memory at once."""
        parts = []
        offset = 0
        for frame in self.batches(columns):
            here = indices[(indices >= offset) & (indices < offset + frame.height)] - offset
            parts.append(frame[here])
            offset += frame.height
        return pl.concat(parts)


def open_rows(path: str | os.PathLike[str], name: str) -> LabelledRows:
    """Reads the labels and checks that the rows can be learned from.

    Args:
        path: a file that ``write_dataset`` wrote.
        name: what to call it in errors, ``train`` or ``validation``.

    Raises:
        InvalidInput: it has no rows or no features, its label is not 0 or 1 everywhere, or a class is missing.
    """
    info = read_info(path)
    roles = info.roles
    if not roles.features:
        raise InvalidInput(f"{name} features", list(roles.features), "name at least one feature column in the dataset's roles")
    if SCORE_COLUMN in roles.features or SCORE_COLUMN in (roles.label, roles.timestamp):
        raise InvalidInput(f"{name} column", SCORE_COLUMN, "rename it: this is what the model's own answer is called")
    if roles.label in roles.features:
        raise InvalidInput(f"{name} features", roles.label, "the label cannot be a feature; remove it from the features")
    lazy = pl.scan_parquet(Path(path))
    schema = lazy.collect_schema()
    for column in (*roles.features, roles.label, roles.timestamp):
        if column not in schema:
            raise InvalidInput(f"{name} column", column, f"the dataset lacks it; it has {', '.join(schema.names())}")
    labels = _labels(lazy.select(roles.label).collect().to_series(), name)
    span = lazy.select(start=pl.col(roles.timestamp).min(), end=pl.col(roles.timestamp).max()).collect().row(0)
    return LabelledRows(
        path=Path(path),
        info=info,
        schema={column: schema[column] for column in roles.features},
        digest=file_digest(path),
        labels=labels,
        start=_iso(span[0]),
        end=_iso(span[1]),
    )


def check_alike(train: LabelledRows, validation: LabelledRows) -> None:
    """Checks that validation rows are of the same kind as the training rows, and not the same rows.

    Raises:
        InvalidInput: features or label differ, or both are one file.
    """
    if validation.info.roles.features != train.info.roles.features:
        raise InvalidInput(
            "validation features",
            list(validation.info.roles.features),
            f"they must be those of train, in the same order: {', '.join(train.info.roles.features)}",
        )
    if validation.info.roles.label != train.info.roles.label:
        raise InvalidInput("validation label", validation.info.roles.label, f"it must be train's, {train.info.roles.label}")
    if validation.digest == train.digest:
        raise InvalidInput(
            "validation", str(validation.path), "these are the training rows; give rows that the model does not learn from"
        )


def fit_features(train: LabelledRows) -> tuple[Feature, ...]:
    """Says of each feature whether it is a number or a category, with the levels that occur in the training rows.

    Raises:
        InvalidInput: a feature is of a type that no model takes, or a category with more than ``MAX_CATEGORIES`` levels.
    """
    texts = [column for column, kind in train.schema.items() if kind in (pl.String, pl.Categorical, pl.Enum)]
    levels: dict[str, set[str]] = {column: set() for column in texts}
    if texts:
        for frame in train.batches(tuple(texts)):
            for column in texts:
                levels[column].update(frame.get_column(column).drop_nulls().cast(pl.String).unique())
    features = []
    for column, kind in train.schema.items():
        if column in levels:
            if len(levels[column]) > MAX_CATEGORIES:
                raise InvalidInput(
                    "column",
                    column,
                    f"it has {len(levels[column])} levels and at most {MAX_CATEGORIES} can be learned; drop it or group them",
                )
            features.append(Feature(column, tuple(sorted(levels[column]))))
        elif kind.is_numeric() or kind in (pl.Boolean, pl.Null):
            features.append(Feature(column))
        else:
            raise InvalidInput(
                "column", column, f"a model takes numbers, booleans and texts, but it is {kind}; convert or drop it"
            )
    return tuple(features)


def _labels(column: pl.Series, name: str) -> np.ndarray:
    if not column.len():
        raise InvalidInput(name, "no rows", "give a dataset that has rows")
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise InvalidInput(f"{name} label", str(column.dtype), "it must be 0 or 1 in every row")
    others = column.cast(pl.Float64).unique().sort().to_list()
    if not set(others) <= {0.0, 1.0}:
        raise InvalidInput(f"{name} label", others[:5], "it must be 0 or 1 in every row")
    labels = column.cast(pl.UInt8).to_numpy()
    if len(others) < 2:
        raise InvalidInput(
            f"{name} label", f"only {int(others[0])} in {len(labels)} rows", "both classes must occur; take a longer time span"
        )
    return labels


def _iso(moment: Any) -> str:
    return moment.isoformat() if hasattr(moment, "isoformat") else str(moment)
