"""The point-in-time join, case by case; ``test_offline_store`` holds it against Feast."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.features.point_in_time import FeatureSource, point_in_time_join

T = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOUR, LEAST = timedelta(hours=1), timedelta(microseconds=1)


def _join(source_rows, entity_rows, *, ttl=None, created="", cutoff=True, keys=None, **source):
    rows = pl.DataFrame(source_rows) if isinstance(source_rows, dict) else source_rows
    plan = FeatureSource("view", rows.lazy(), "at", created, {"id": "id"} if keys is None else keys, {"x": "x"}, ttl, **source)
    frame = pl.DataFrame(entity_rows) if isinstance(entity_rows, dict) else entity_rows
    return point_in_time_join(frame, "t", [plan], filter_by_created_timestamp=cutoff)["x"].to_list()


def test_a_value_counts_from_its_moment_to_the_end_of_its_ttl_both_included():
    moments = [T - LEAST, T, T + HOUR, T + HOUR + LEAST]
    assert _join({"id": [1], "at": [T], "x": [7]}, {"id": [1] * 4, "t": moments}, ttl=HOUR) == [None, 7, 7, None]


def test_without_a_ttl_a_value_counts_for_ever():
    assert _join({"id": [1], "at": [T], "x": [7]}, {"id": [1], "t": [T + 9000 * timedelta(days=1)]}) == [7]


def test_a_ttl_longer_than_timestamps_reach_is_no_error():
    assert _join({"id": [1], "at": [T], "x": [7]}, {"id": [1], "t": [T]}, ttl=timedelta.max) == [7]


def test_the_newest_row_wins_even_where_it_is_null():
    assert _join({"id": [1, 1], "at": [T, T + HOUR], "x": [7, None]}, {"id": [1, 1], "t": [T, T + HOUR]}) == [7, None]


def test_of_equal_moments_the_one_created_last_wins_and_without_a_creation_time_it_loses():
    rows = {"id": [1, 1, 1], "at": [T, T, T], "made": [T - HOUR, T - LEAST, None], "x": [1, 2, 3]}
    assert _join(rows, {"id": [1], "t": [T]}, created="made", cutoff=False) == [2]
    assert _join(rows, {"id": [1], "t": [T]}, created="made") == [2]


def test_a_correction_does_not_count_before_it_was_created():
    rows = {"id": [1, 1], "at": [T, T], "made": [T, T + HOUR], "x": [1, 2]}
    asked = {"id": [1] * 3, "t": [T, T + HOUR - LEAST, T + HOUR]}
    assert _join(rows, asked, created="made") == [1, 1, 2]
    assert _join(rows, asked, created="made", cutoff=False) == [2, 2, 2]


def test_a_late_row_about_an_older_moment_does_not_displace_a_newer_one():
    rows = {"id": [1, 1], "at": [T, T - HOUR], "made": [T, T + HOUR], "x": [1, 2]}
    assert _join(rows, {"id": [1], "t": [T + 2 * HOUR]}, created="made") == [1]


def test_every_row_comes_back_in_its_place_whatever_its_key_and_moment():
    asked = {"id": [9, 1, None, 1, 1], "t": [T, T, T, None, T]}
    assert _join({"id": [1, None], "at": [T, T], "x": [7, 8]}, asked) == [None, 7, None, None, 7]


def test_a_row_without_a_moment_is_never_served():
    rows = pl.DataFrame({"id": [1, 1], "at": [None, T], "x": [8, 7]}, schema_overrides={"at": pl.Datetime("us", "UTC")})
    assert _join(rows, {"id": [1, 1], "t": [T - HOUR, T]}) == [None, 7]


def test_nothing_is_asked_and_nothing_is_there():
    nothing = pl.DataFrame(schema={"id": pl.Int64, "t": pl.Datetime("us", "UTC")})
    assert _join({"id": [1], "at": [T], "x": [7]}, nothing, ttl=HOUR) == []
    empty = pl.DataFrame(schema={"id": pl.Int64, "at": pl.Datetime("us", "UTC"), "x": pl.Int64})
    assert _join(empty, {"id": [1], "t": [T]}, ttl=HOUR) == [None]


def test_keys_may_be_several_under_other_names_or_none():
    rows = {"id": [1, 1, 2], "shop": ["a", "b", "a"], "at": [T, T, T], "x": [1, 2, 3]}
    asked = {"customer": [1, 2, 2], "shop": ["b", "a", "b"], "t": [T, T, T]}
    assert _join(rows, asked, keys={"customer": "id", "shop": "shop"}) == [2, 3, None]
    assert _join({"id": [1, 1], "at": [T, T + HOUR], "x": [1, 2]}, {"t": [T, T + HOUR]}, keys={}) == [1, 2]


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Float64])
def test_whole_numbers_are_equal_in_every_type(kind):
    asked = pl.DataFrame({"id": pl.Series([1, None], dtype=kind), "t": [T, T]})
    assert _join({"id": [1], "at": [T], "x": [7]}, asked) == [7, None]


def test_categories_are_equal_to_text():
    asked = pl.DataFrame({"id": pl.Series(["a"], dtype=pl.Categorical), "t": [T]})
    assert _join({"id": ["a"], "at": [T], "x": [7]}, asked) == [7]


def test_text_is_not_a_number():
    with pytest.raises(InvalidInput, match="id = 'String': it must have the type of the join key of view, which is Int64"):
        _join({"id": [1], "at": [T], "x": [7]}, {"id": ["1"], "t": [T]})


@pytest.mark.parametrize(
    "moments",
    [
        pl.Series([T.replace(tzinfo=None)]),
        pl.Series([T]).cast(pl.Datetime("ns", "UTC")),
        pl.Series([T]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([T]).cast(pl.Datetime("ms", "UTC")),
    ],
    ids=["naive", "nanoseconds", "another zone", "milliseconds"],
)
def test_moments_are_compared_in_utc_whatever_their_form(moments):
    assert _join({"id": [1], "at": moments, "x": [7]}, {"id": [1, 1], "t": [T - LEAST, T]}, ttl=HOUR) == [None, 7]
    assert _join({"id": [1], "at": [T], "x": [7]}, {"id": [1], "t": moments}, ttl=HOUR) == [7]


def test_a_date_is_its_midnight():
    assert _join({"id": [1], "at": [date(2024, 1, 1)], "x": [7]}, {"id": [1], "t": [T]}) == [7]


def test_text_for_a_moment_is_refused():
    with pytest.raises(InvalidInput, match="the timestamps of view must be a Datetime or Date column"):
        _join({"id": [1], "at": ["2024-01-01"], "x": [7]}, {"id": [1], "t": [T]})


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(InvalidInput, match="column = 'id': the entity rows lack it"):
        _join({"id": [1], "at": [T], "x": [7]}, {"t": [T]})
    with pytest.raises(InvalidInput, match="column = 'x': the source of view lacks it; it has id, at"):
        _join({"id": [1], "at": [T]}, {"id": [1], "t": [T]})


def test_a_feature_named_like_a_column_of_the_entity_rows_is_refused():
    with pytest.raises(InvalidInput, match="feature = 'x': both view and the entity rows have it"):
        _join({"id": [1], "at": [T], "x": [7]}, {"id": [1], "t": [T], "x": [0]})
