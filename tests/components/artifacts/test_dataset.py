from datetime import UTC, datetime

import polars as pl
import pytest

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, read_dataset, read_info, write_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput

INFO = DatasetInfo(Roles(("amount",), "fraud", "at", ("customer",)), {"service": "v1"})
FRAME = pl.DataFrame({"customer": [1, 2], "amount": [1.5, None], "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 2, "fraud": [0, 1]})


def test_rows_roles_and_lineage_come_back(tmp_path):
    write_dataset(FRAME, tmp_path / "rows.parquet", INFO.with_lineage(rows=2))
    frame, info = read_dataset(tmp_path / "rows.parquet")
    assert frame.equals(FRAME)
    assert info == DatasetInfo(INFO.roles, {"service": "v1", "rows": 2})
    assert read_info(tmp_path / "rows.parquet") == info


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_dataset(FRAME, tmp_path / name, INFO)
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")


def test_a_role_without_its_column_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InvalidInput, match="customer"):
        write_dataset(FRAME.drop("customer"), tmp_path / "rows.parquet", INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 is not enough", None])
def test_a_file_that_is_no_dataset_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match="readable Parquet"):
        read_info(tmp_path / "rows.parquet")


def test_parquet_without_roles_is_refused(tmp_path):
    FRAME.write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="does not say what its columns are for"):
        read_info(tmp_path / "rows.parquet")
