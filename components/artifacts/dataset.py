"""Datasets between components: one Parquet file that knows what each of its columns is for.

The roles and the lineage travel in the Parquet file's own key-value metadata (key ``modelyard``, JSON), so they survive
an importer, a copy to another bucket and a look from a notebook.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.components.errors import InvalidInput
from modelyard.components.storage.files import atomic_file

METADATA_KEY = "modelyard"


@dataclass(frozen=True)
class Roles:
    """What the columns of a dataset are for.

    Attributes:
        features: columns the model sees, in order.
        label: the column to predict, 0 or 1.
        timestamp: the moment each row is about, timezone-aware or UTC.
        entities: join keys, such as ``customer_id``; never features.
    """

    features: tuple[str, ...]
    label: str
    timestamp: str
    entities: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """Roles of a dataset's columns and where its rows came from (JSON-ready; no clock, so equal data has equal bytes)."""

    roles: Roles
    lineage: dict[str, Any] = field(default_factory=dict)

    def with_lineage(self, **entries: Any) -> "DatasetInfo":
        """A copy whose lineage has these entries added."""
        return replace(self, lineage={**self.lineage, **entries})


def write_dataset(frame: pl.DataFrame, path: str | os.PathLike[str], info: DatasetInfo) -> None:
    """Writes ``frame`` to ``path`` as Parquet, whole or not at all.

    Raises:
        InvalidInput: a column named in the roles is missing.
    """
    _check_columns(frame.columns, info.roles)
    metadata = {METADATA_KEY: json.dumps(asdict(info), sort_keys=True)}
    with atomic_file(path) as partial:
        frame.write_parquet(partial, compression="zstd", statistics=True, metadata=metadata)


def read_info(path: str | os.PathLike[str]) -> DatasetInfo:
    """The roles and lineage of a dataset, without reading its rows.

    Raises:
        InvalidInput: the file is not one that ``write_dataset`` wrote.
    """
    try:
        metadata = pl.read_parquet_metadata(Path(path))
    except (pl.exceptions.ComputeError, OSError) as error:
        raise InvalidInput("dataset", str(path), f"it must be a readable Parquet file ({error})") from error
    if METADATA_KEY not in metadata:
        raise InvalidInput(
            "dataset", str(path), "it does not say what its columns are for; produce it with fetch_features or write_dataset"
        )
    content = json.loads(metadata[METADATA_KEY])
    roles = content["roles"]
    return DatasetInfo(
        Roles(tuple(roles["features"]), roles["label"], roles["timestamp"], tuple(roles["entities"])), content["lineage"]
    )


def read_dataset(path: str | os.PathLike[str]) -> tuple[pl.DataFrame, DatasetInfo]:
    """The rows and the roles of a dataset.

    Raises:
        InvalidInput: as ``read_info``, or a column named in the roles is missing.
    """
    info = read_info(path)
    frame = pl.read_parquet(Path(path))
    _check_columns(frame.columns, info.roles)
    return frame, info


def _check_columns(columns: list[str], roles: Roles) -> None:
    for column in (*roles.features, roles.label, roles.timestamp, *roles.entities):
        if column not in columns:
            raise InvalidInput("column", column, f"the dataset lacks it; it has {', '.join(columns)}")
