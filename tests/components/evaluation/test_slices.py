import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.slices import MOST_VALUES, QUANTILES, cut


def _values(column: pl.Series) -> dict[str, int]:
    return {part.value: int(part.mask.sum()) for part in cut(column.to_frame(), [column.name])}


def test_few_values_are_slices_of_their_own_and_missing_ones_too():
    assert _values(pl.Series("c", ["a", "b", None, "a"])) == {"(missing)": 1, "a": 2, "b": 1}
    assert _values(pl.Series("c", [True, False, True])) == {"false": 1, "true": 2}
    assert _values(pl.Series("c", [1, 2, 2], dtype=pl.Int8)) == {"1": 1, "2": 2}
    assert _values(pl.Series("c", ["x", "y"], dtype=pl.Categorical)) == {"x": 1, "y": 1}
    assert _values(pl.Series("c", [None, None])) == {"(missing)": 2}


def test_rare_texts_are_put_together():
    texts = [f"v{position:02}" for position in range(30) for _ in range(position + 1)] + [None]
    found = _values(pl.Series("c", texts))

    assert len(found) == MOST_VALUES + 1
    assert found["v29"] == 30
    assert found["(missing)"] == 1
    assert sum(found.values()) == len(texts)
    assert found["(others)"] == sum(range(1, 31 - (MOST_VALUES - 1)))


def test_many_numbers_are_cut_into_quantiles():
    found = _values(pl.Series("c", [*np.arange(100.0), float("nan"), None]))

    assert found.pop("(missing)") == 2
    assert len(found) == QUANTILES
    assert all(24 <= rows <= 26 for rows in found.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(-3, 3)), min_size=1))
def test_the_slices_of_a_column_hold_every_row_once(values):
    frame = pl.DataFrame({"c": pl.Series(values, dtype=pl.Float64, strict=False)})
    masks = np.stack([part.mask for part in cut(frame, ["c"])])

    assert (masks.sum(axis=0) == 1).all()
    assert masks.any(axis=1).all()


def test_equal_numbers_are_never_parted():
    numbers = np.repeat(np.arange(20.0), [500, *[1] * 19])
    for part in cut(pl.DataFrame({"c": numbers}), ["c"]):
        inside = np.unique(numbers[part.mask])
        assert not np.isin(inside, numbers[~part.mask]).any()


@pytest.mark.parametrize("columns", [["gone"], ["c", "c"]])
def test_a_column_that_is_missing_or_given_twice_is_named(columns):
    with pytest.raises(InvalidInput, match=columns[0]):
        cut(pl.DataFrame({"c": [1]}), columns)


def test_lists_and_times_cannot_be_sliced():
    with pytest.raises(InvalidInput, match="cannot be sliced"):
        cut(pl.DataFrame({"c": [[1], [2]]}), ["c"])


def test_no_rows_have_no_slices():
    assert cut(pl.DataFrame({"c": pl.Series([], dtype=pl.Float64)}), ["c"]) == []
