"""The training rows, divided among the nodes: row ``i`` goes to node ``i % nodes``, so that each sees the whole time span."""

from pathlib import Path

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, Roles
from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import InvalidInput
from modelyard.components.training.labelled_rows import LabelledRows


def write_shards(rows: LabelledRows, nodes: int, paths: list[Path]) -> None:
    """Writes features and label of every node's rows, reading the rows once and in batches.

    Args:
        rows: the rows to divide.
        nodes: number of parts.
        paths: a file for each part.

    Raises:
        InvalidInput: there are fewer rows than nodes.
    """
    import pyarrow.parquet as pq

    if rows.rows < nodes:
        raise InvalidInput("nodes", nodes, f"there are only {rows.rows} training rows; give fewer nodes")
    label = rows.info.roles.label
    texts = pl.col(pl.Categorical, pl.Enum)
    writers: list[pq.ParquetWriter] = []
    try:
        start = 0
        for frame in rows.batches((*rows.schema, label)):
            for rank, path in enumerate(paths):
                part = frame.gather_every(nodes, (rank - start) % nodes).with_columns(texts.cast(pl.String)).to_arrow()
                if rank == len(writers):
                    writers.append(pq.ParquetWriter(path, part.schema, compression="zstd"))
                writers[rank].write_table(part)
            start += frame.height
    finally:
        for writer in writers:
            writer.close()


def read_shard(path: Path, spec: ModelSpec, digest: str) -> LabelledRows:
    """The rows of one node; unlike a whole dataset's they may be of one class only.

    Args:
        path: a file that ``write_shards`` wrote.
        spec: the model's features and label.
        digest: digest of the dataset that the rows are of.
    """
    schema = pl.read_parquet_schema(path)
    labels = pl.scan_parquet(path).select(spec.label).collect().to_series().cast(pl.UInt8).to_numpy()
    return LabelledRows(
        path=path,
        info=DatasetInfo(Roles(spec.feature_names, spec.label, "")),
        schema={name: schema[name] for name in spec.feature_names},
        digest=digest,
        labels=np.ascontiguousarray(labels),
        start="",
        end="",
    )
