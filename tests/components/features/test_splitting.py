"""Splits in time: nothing of a later part is in an earlier one, the gap is empty, and no part lacks a class."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, read_dataset, write_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput
from modelyard.components.features.splitting import PARTS, Split, split_dataset, split_frame

START = datetime(2024, 1, 1, tzinfo=UTC)
INFO = DatasetInfo(Roles(("x",), "y", "t", ("id",)), {"feature_service": "s"})


def _frame(hours, labels, ids=None):
    return pl.DataFrame(
        {
            "x": range(len(hours)),
            "y": pl.Series(labels, dtype=pl.Int8),
            "t": pl.Series([START + timedelta(hours=hour) for hour in hours], dtype=pl.Datetime("us", "UTC")),
            "id": ids if ids is not None else [0] * len(hours),
        }
    )


HUNDRED = _frame(range(100), [0, 1] * 50)


def _sizes(parts):
    return tuple(parts[name].height for name in PARTS)


def test_fractions_are_shares_of_the_rows():
    assert _sizes(split_frame(HUNDRED, INFO, Split())) == (70, 10, 20)


def test_days_are_counted_back_from_the_newest_row_and_win_over_fractions():
    parts = split_frame(HUNDRED, INFO, Split(test_days=1, validation_days=0.5, test_fraction=0.9))
    assert _sizes(parts) == (64, 12, 24)
    assert parts["test"]["t"].min() == START + timedelta(hours=76)


def test_the_gap_lies_before_the_validation_and_before_the_test_data():
    parts = split_frame(HUNDRED, INFO, Split(test_days=1, validation_days=0.5, gap_days=0.25))
    assert _sizes(parts) == (52, 12, 24)
    assert parts["validation"]["t"].max() == START + timedelta(hours=69)
    assert parts["train"]["t"].max() == START + timedelta(hours=51)


def test_rows_of_one_moment_stay_together():
    frame = _frame([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 1] * 5)
    assert _sizes(split_frame(frame, INFO, Split(test_fraction=0.3, validation_fraction=0.3))) == (6, 2, 2)


_ids = st.lists(st.integers(0, 12), min_size=12, max_size=80)


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    _ids,
    st.floats(0, 2),
    st.one_of(st.just(0.0), st.floats(0.1, 3)),
    st.one_of(st.just(0.0), st.floats(0.1, 3)),
    st.sampled_from(["", "id"]),
)
def test_parts_follow_each_other_with_the_gap_between_and_share_no_group(data, ids, gap, test_days, validation_days, group_by):
    hours = data.draw(st.lists(st.integers(0, 240), min_size=len(ids), max_size=len(ids)))
    frame = _frame(hours, [0, 1] * (len(ids) // 2) + [0] * (len(ids) % 2), ids)
    split = Split(test_days, validation_days, gap, 0.3, 0.3, group_by)
    try:
        parts = split_frame(frame, INFO, split)
    except InvalidInput:
        assume(False)
    train, validation, test = (parts[name] for name in PARTS)
    gap_length = timedelta(days=gap)
    assert validation["t"].min() - train["t"].max() > gap_length
    assert test["t"].min() - validation["t"].max() > gap_length
    assert test["t"].max() - test["t"].min() < timedelta(days=test_days or 1000)
    for part in (train, validation, test):
        assert 0 < part["y"].sum() < part.height
        assert part["x"].is_sorted()
        assert part.equals(frame.filter(pl.col("x").is_in(part["x"].to_list())))
    if group_by:
        groups = [set(part["id"]) for part in (train, validation, test)]
        assert sum(len(group) for group in groups) == len(set().union(*groups))
    elif not gap and test_days and max(hours) * 3600 > test_days * 86400:
        assert sum(_sizes(parts)) == frame.height


def test_groups_that_time_keeps_apart_lose_no_row_and_those_without_a_name_are_no_group():
    ids = [*range(60), *[None] * 40]
    assert sum(_sizes(split_frame(_frame(range(100), [0, 1] * 50, ids), INFO, Split(group_by="id")))) == 100


def test_groups_found_everywhere_are_shared_out():
    frame = _frame(range(3000), [0, 1] * 1500, [f"customer {number % 75}" for number in range(3000)])
    parts = split_frame(frame, INFO, Split(group_by="id"))
    groups = [set(parts[name]["id"]) for name in PARTS]
    assert sum(len(group) for group in groups) == 75
    assert all(len(group) > 10 for group in groups)


@pytest.mark.parametrize(
    ("frame", "split", "message"),
    [
        (_frame(range(100), [0] * 90 + [0, 1] * 5), Split(), "the train data has no row of label 1"),
        (_frame(range(100), [0, 1] * 40 + [1] * 20), Split(), "the test data has no row of label 0"),
        (HUNDRED, Split(test_days=50), "the train data is empty and the validation data is empty"),
        (_frame([5] * 10, [0, 1] * 5), Split(), "the train data is empty"),
    ],
)
def test_a_part_without_a_class_is_refused_with_sizes_and_dates(frame, split, message):
    with pytest.raises(InvalidInput) as error:
        split_frame(frame, INFO, split)
    assert str(error.value).startswith(f"split = '{message}")
    assert "rows from 2024-01-0" in str(error.value)
    assert all(f"{name}: " in str(error.value) for name in PARTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_days": -1}, "test_days = -1"),
        ({"gap_days": float("nan")}, "gap_days = nan"),
        ({"test_fraction": 0}, "test_fraction = 0: give a share between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
    ],
)
def test_a_split_that_cannot_be_is_refused(change, message):
    with pytest.raises(InvalidInput) as error:
        Split(**change)
    assert message in str(error.value)


def test_a_grouping_column_that_is_not_there_is_refused():
    with pytest.raises(
        InvalidInput, match=r"group_by = 'household': the dataset lacks this column; it has x, y, t, id. .* kept_columns"
    ):
        split_frame(HUNDRED, INFO, Split(group_by="household"))


def test_the_parts_keep_roles_and_lineage_and_say_what_they_are_of(tmp_path):
    write_dataset(HUNDRED, tmp_path / "all", INFO)
    paths = [tmp_path / name for name in PARTS]
    assert split_dataset(tmp_path / "all", *paths, Split()) == (70, 10, 20)
    first = [file_digest(path) for path in paths]
    assert split_dataset(tmp_path / "all", *paths, Split()) == (70, 10, 20)
    assert [file_digest(path) for path in paths] == first

    _, info = read_dataset(paths[2])
    assert info.roles == INFO.roles
    assert info.lineage["feature_service"] == "s"
    assert info.lineage["split"]["part"] == "test"
    assert info.lineage["split"]["of"] == file_digest(tmp_path / "all")
    assert (info.lineage["split"]["rows"], info.lineage["split"]["positives"]) == (20, 10)
    assert info.lineage["split"]["start"] == "2024-01-04T08:00:00+00:00"
