from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from modelyard.components.artifacts.model import Feature
from modelyard.components.errors import InvalidInput
from modelyard.components.predictions.reader import read_predictions
from modelyard.components.predictions.writer import PredictionLog


def moment(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 5, day, hour, tzinfo=UTC)


def write(folder, version, features, rows, day=1):
    log = PredictionLog(str(folder), model_name="fraud", version=version, digest=f"digest {version}", features=features)
    for number, row in enumerate(rows):
        at = int(moment(day, number).timestamp()) * 10**9
        assert log.append(f"{version}-{day}-{number}", "k", at, [row], np.array([0.5]), np.array([1]))
    assert log.close()


@pytest.fixture
def log(tmp_path):
    """Versions 3 and 3-1 on three days, hour by hour."""
    for day in (1, 2, 3):
        write(tmp_path, "3", (Feature("amount"),), [[float(day)]] * 4, day)
        write(tmp_path, "3-1", (Feature("amount"),), [[float(day)]] * 2, day)
    return tmp_path


def test_rows_come_in_order_of_time_with_the_types_of_the_log(log):
    found = read_predictions(str(log), "fraud")
    assert found.height == 18
    assert found["time"].is_sorted()
    assert found.schema["time"] == pl.Datetime("us", "UTC")
    assert found.schema["decision"] == pl.Int8
    assert found.schema["features"] == pl.Struct({"amount": pl.Float64})
    assert "date" not in found.columns


def test_a_start_is_included_an_end_is_not_and_a_naive_moment_is_utc(log):
    found = read_predictions(str(log), "fraud", start=datetime(2026, 5, 1, 2), end=moment(2, 1))
    assert sorted(found["request_id"]) == ["3-1-2", "3-1-2-0", "3-1-3", "3-2-0"]
    assert found["time"].min() == moment(1, 2)
    assert found["time"].max() == moment(2, 0)


def test_a_version_is_not_taken_for_another_whose_name_starts_alike(log):
    assert read_predictions(str(log), "fraud", versions=["3"])["version"].unique().to_list() == ["3"]
    assert read_predictions(str(log), "fraud", versions=["3-1"]).height == 6


def test_only_the_days_and_versions_asked_for_are_opened_and_a_damaged_file_is_named(log):
    damaged = next((log / "fraud" / "date=2026-05-02").glob("3-2*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert read_predictions(str(log), "fraud", end=moment(2)).height == 6
    assert read_predictions(str(log), "fraud", start=moment(3)).height == 6
    assert read_predictions(str(log), "fraud", versions=["3-1"]).height == 6
    with pytest.raises(InvalidInput, match=damaged.name):
        read_predictions(str(log), "fraud")


def test_a_parquet_file_of_something_else_is_named(log):
    pl.DataFrame({"a": [1]}).write_parquet(log / "fraud" / "date=2026-05-02" / "3-20260502T000000-x.parquet")
    with pytest.raises(InvalidInput, match="20260502T000000-x"):
        read_predictions(str(log), "fraud")


def test_versions_with_other_features_fit_into_one_frame(tmp_path):
    write(tmp_path, "1", (Feature("amount"), Feature("country", ("FR",))), [[1.0, "FR"]], day=1)
    write(tmp_path, "2", (Feature("country"), Feature("age")), [[7.0, 30.0]], day=2)
    found = read_predictions(str(tmp_path), "fraud")
    assert found["features"].to_list() == [
        {"amount": 1.0, "country": "FR", "age": None},
        {"amount": None, "country": "7.0", "age": 30.0},
    ]


def test_features_can_be_left_out(log):
    assert "features" not in read_predictions(str(log), "fraud", features=False).columns


def test_nothing_there_is_said_so_that_one_can_tell_a_wrong_place_from_a_wrong_time(log, tmp_path):
    with pytest.raises(InvalidInput, match="no log of other"):
        read_predictions(str(log), "other")
    with pytest.raises(InvalidInput, match="no log of fraud"):
        read_predictions(str(tmp_path / "elsewhere"), "fraud")
    with pytest.raises(InvalidInput, match="no rows of start 2027"):
        read_predictions(str(log), "fraud", start=datetime(2027, 1, 1))
    with pytest.raises(InvalidInput, match="versions 9"):
        read_predictions(str(log), "fraud", versions=["9"])
    with pytest.raises(InvalidInput, match="after start"):
        read_predictions(str(log), "fraud", start=moment(2), end=moment(2))
