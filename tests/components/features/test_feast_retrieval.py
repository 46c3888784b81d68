"""How entity rows are put to engines that know them by their keys, written one after the other."""

from itertools import combinations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.features.feast_retrieval import _ROW, _in_pandas, _told_apart
from tests.support.feast_oracle import EPOCH, TTL

_JOINS = [["customer"], ["customer", "shop"], ["customer", "shop", "till"], []]
_rows = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.sampled_from([EPOCH, EPOCH + TTL]),
            "customer": st.sampled_from([1, 11, 111, None]),
            "shop": st.sampled_from(["1", "11", "", None]),
            "till": st.sampled_from([1, 11]),
        }
    ),
    min_size=1,
    max_size=30,
)


def _frame(rows):
    return pl.DataFrame(
        rows, schema={"at": pl.Datetime("us", "UTC"), "customer": pl.Int64, "shop": pl.String, "till": pl.Int64}
    )


def _mistaken(one, other):
    """Whether an engine would take one row for the other in some view."""
    for keys in _JOINS:
        mine, yours = ([row[key] for key in keys] for row in (one, other))
        known = None not in mine + yours and one["at"] == other["at"]
        if known and mine != yours and "".join(map(str, mine)) == "".join(map(str, yours)):
            return True
    return False


@given(_rows)
def test_no_two_rows_of_a_part_are_taken_for_each_other_and_each_row_is_in_one(rows):
    frame = _frame(rows)
    parts = _told_apart(frame, "at", _JOINS)
    assert pl.concat(parts).sort(_ROW).drop(_ROW).equals(frame)
    assert pl.concat(parts)[_ROW].sort().to_list() == list(range(frame.height))
    for part in parts:
        assert not any(_mistaken(one, other) for one, other in combinations(part.to_dicts(), 2))
    if not any(_mistaken(one, other) for one, other in combinations(rows, 2)):
        assert len(parts) == 1


def test_rows_that_are_joined_by_one_key_are_asked_for_at_once():
    frame = _frame([{"at": EPOCH, "customer": key, "shop": "1", "till": 1} for key in (1, 11, None)])
    (part,) = _told_apart(frame, "at", [["customer"], ["shop"], []])
    assert part.drop(_ROW).equals(frame)


def test_large_whole_numbers_among_gaps_stay_what_they_are():
    frame = _in_pandas(pl.DataFrame({"key": [2**53 + 1, None, 2**53], "other": [1, 2, 3]}))
    assert frame["key"].dropna().tolist() == [2**53 + 1, 2**53]
    assert frame["key"].isna().tolist() == [False, True, False]
    assert frame["other"].dtype == "int64"
