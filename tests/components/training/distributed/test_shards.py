import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import InvalidInput
from modelyard.components.training import labelled_rows
from modelyard.components.training.distributed.shards import read_shard, write_shards
from modelyard.components.training.labelled_rows import fit_features, open_rows
from tests.support.labelled_rows import FEATURES, labelled_frame, write_rows


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(60, 200), nodes=st.integers(1, 7), batch=st.integers(1, 90))
def test_every_row_goes_to_one_node_whatever_the_batches_it_is_read_in(rows, nodes, batch):
    frame = labelled_frame(rows, 3).with_columns(pl.col("country").cast(pl.Categorical))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        opened = open_rows(write_rows(Path(folder, "rows.parquet"), frame), "train")
        patch.setattr(labelled_rows.LabelledRows.batches, "__defaults__", (batch,))
        paths = [Path(folder, f"{rank}.parquet") for rank in range(nodes)]
        write_shards(opened, nodes, paths)
        spec = ModelSpec(fit_features(opened), "fraud", "model.ubj", 0.5)
        for rank, path in enumerate(paths):
            shard = read_shard(path, spec, opened.digest)
            expected = frame.select(*FEATURES, "fraud").gather_every(nodes, rank)
            (read,) = shard.batches((*FEATURES, "fraud"), rows)
            assert read.equals(expected.with_columns(pl.col("country").cast(pl.String)))
            assert shard.labels.tolist() == expected["fraud"].to_list()


def test_a_node_may_have_rows_of_one_class_only(tmp_path):
    frame = labelled_frame(4, 0).with_columns(fraud=pl.Series([1, 0, 1, 0], dtype=pl.Int8))
    opened = open_rows(write_rows(tmp_path / "rows.parquet", frame), "train")
    write_shards(opened, 2, [tmp_path / "0", tmp_path / "1"])
    spec = ModelSpec(fit_features(opened), "fraud", "model.ubj", 0.5)
    assert [read_shard(tmp_path / name, spec, "").labels.tolist() for name in "01"] == [[1, 1], [0, 0]]


def test_more_nodes_than_rows_are_refused(tmp_path):
    opened = open_rows(write_rows(tmp_path / "rows.parquet", labelled_frame(50, 0)), "train")
    with pytest.raises(InvalidInput, match=r"nodes = 51.*only 50"):
        write_shards(opened, 51, [tmp_path / str(rank) for rank in range(51)])
