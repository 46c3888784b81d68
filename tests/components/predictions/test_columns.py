import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelyard.components.artifacts.model import Feature
from modelyard.components.predictions.columns import Answered, complete, record_batch

FEATURES = (Feature("amount"), Feature("country", ("FR", "BE")))


def answered(rows, at_ns=1_700_000_000_123_456_789, request_id="r", **entries):
    height = len(rows)
    return Answered(
        request_id, "k", at_ns, rows, np.linspace(0, 1, height), np.arange(height) % 2, height, entries.get("size", 1)
    )


def features_of(*requests, features=FEATURES):
    return record_batch(requests, features).column("features").to_pylist()


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.floats(width=32).map(np.float32))
TEXTS = st.one_of(st.none(), st.text(), st.text(st.characters(categories=["Cs", "Ll"])), st.integers(0, 9), st.booleans())


def expected_number(value):
    return None if value is None or math.isnan(value) else float(value)


@given(rows=st.lists(st.tuples(NUMBERS, TEXTS), min_size=1, max_size=8))
@example(rows=[(np.float32("nan"), None)])
@settings(max_examples=80, deadline=None)
def test_every_form_of_request_gives_the_same_columns_and_loses_no_value(rows):
    as_array = np.empty((len(rows), 2), object)
    as_array[:] = rows
    named, ordered, values = (
        features_of(answered(form))
        for form in ([dict(zip(("country", "amount"), row[::-1])) for row in rows], [list(row) for row in rows], as_array)
    )
    assert named == ordered == values
    for (number, text), found in zip(rows, named):
        assert found["amount"] == expected_number(number)
        if isinstance(text, str) and text.isprintable():
            assert found["country"] == text
        assert (found["country"] is None) == (text is None)


@given(st.lists(st.tuples(st.floats(width=32), st.sampled_from([0.0, 1.0, 2.0, -1.0, math.nan])), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_codes_become_categories_again_and_what_is_no_code_is_missing(rows):
    found = features_of(answered(np.array(rows, np.float32)))
    for (number, code), row in zip(rows, found):
        assert row["amount"] == expected_number(number)
        assert row["country"] == {0.0: "FR", 1.0: "BE"}.get(code)


def test_requests_of_several_forms_and_lengths_keep_their_order_and_positions():
    requests = [
        answered([[1, "FR"], [2, "BE"]], request_id="a"),
        answered(np.array([[3.0, 0.0]]), request_id="b"),
        answered([{"amount": 4.0}, {"country": "FR"}], request_id="c"),
        answered([[6.0, None]], request_id="d"),
    ]
    batch = record_batch(requests, FEATURES)
    assert batch.column("request_id").to_pylist() == ["a", "a", "b", "c", "c", "d"]
    assert batch.column("row").to_pylist() == [0, 1, 0, 0, 1, 0]
    assert [row["amount"] for row in batch.column("features").to_pylist()] == [1, 2, 3, 4, None, 6]
    assert [row["country"] for row in batch.column("features").to_pylist()] == ["FR", "BE", "FR", None, "FR", None]
    assert {moment.microsecond for moment in batch.column("time").to_pylist()} == {123456}


def test_a_table_has_the_columns_of_the_log_in_order():
    table = complete([record_batch([answered([[1, "FR"]])], FEATURES)] * 2, "fraud", "3", "blake3:x")
    assert table.column_names == [
        "request_id",
        "row",
        "time",
        "model_name",
        "version",
        "digest",
        "key",
        "mirrored",
        "score",
        "decision",
        "features",
    ]
    assert table.num_rows == 2
    assert set(table.column("digest").to_pylist()) == {"blake3:x"}


@pytest.mark.parametrize(
    "odd",
    [
        answered([[object(), "FR"]]),
        answered([["many", "FR"]]),
        answered([[1.0]]),
        answered(np.zeros((1, 3))),
        answered([[1.0, "FR"]])._replace(scores=np.zeros(2)),
        answered([[1.0, "FR"]])._replace(decisions=None),
    ],
)
def test_what_fits_no_column_is_refused(odd):
    with pytest.raises((TypeError, ValueError)):
        record_batch([odd], FEATURES)
