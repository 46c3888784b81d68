import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.artifacts.model import Feature, ModelSpec
from modelyard.components.errors import InvalidInput
from modelyard.components.predictor.rows import RowReader

NUMBERS = (Feature("amount"), Feature("night"))
MIXED = (Feature("amount"), Feature("country", ("DE", "FR", "5411", "true")), Feature("hour"))

number = st.none() | st.floats(width=32, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.booleans()
category = st.none() | st.sampled_from(["DE", "FR", "5411", "true", "XX", ""]) | st.integers(5410, 5412) | st.booleans()


def _oracle(features, table):
    """The same rows by way of a data frame, as training and evaluation encode them."""
    columns = {}
    for position, feature in enumerate(features):
        values = [row[position] for row in table]
        if feature.categories is None:
            columns[feature.name] = pl.Series([None if value is None else float(value) for value in values], dtype=pl.Float64)
        else:
            texts = [value if value is None or isinstance(value, str) else str(value).lower() for value in values]
            columns[feature.name] = pl.Series(texts, dtype=pl.String)
    return ModelSpec(features, "label", "model.ubj", 0.5).encode(pl.DataFrame(columns))


@settings(deadline=None)
@given(st.data(), st.sampled_from([NUMBERS, MIXED, NUMBERS[:1]]), st.booleans())
def test_rows_become_the_matrix_that_training_encodes(data, features, as_objects):
    row = st.tuples(*(number if feature.categories is None else category for feature in features)).map(list)
    table = data.draw(st.lists(row, min_size=1, max_size=5))
    reader = RowReader(features)
    instances = [dict(zip(reader.names, values)) for values in table] if as_objects else table
    matrix, rows = reader.from_instances(instances)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, _oracle(features, table))
    assert len(rows) == len(table)


@settings(deadline=None)
@given(st.data())
def test_columns_become_the_same_matrix_as_rows(data):
    table = data.draw(st.lists(st.tuples(number, st.none() | st.text(max_size=3), number), min_size=1, max_size=5))
    columns = dict(zip(("amount", "country", "hour"), map(list, zip(*table))))
    matrix, rows = RowReader(MIXED).from_columns(columns)
    np.testing.assert_array_equal(matrix, RowReader(MIXED).from_instances([list(row) for row in table])[0])
    assert [[None if value is None else value for value in row] for row in rows] == [list(row) for row in table]


def test_rows_of_both_kinds_may_come_together():
    matrix, rows = RowReader(NUMBERS).from_instances([[1, 2], {"night": 4, "amount": 3}])
    assert matrix.tolist() == [[1, 2], [3, 4]]
    assert [list(row) for row in rows] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("instances", "told"),
    [
        ([[1, 2], [1, "a"]], "instances[1].night = 'a': give a finite number"),
        ([[1, 2], [1e39, 2]], "instances[1].amount = 1e+39: give a finite number"),
        ([[1, math.inf]], "instances[0].night = inf"),
        ([[10**400, 1]], "instances[0].amount = 1000"),
        ([[1, [2]]], "instances[0].night = [2]"),
        ([[1, {}]], "instances[0].night = {}"),
        ([[1, 2], [1]], "instances[1] = '1 values': the model takes 2 values in this order: amount, night"),
        ([{"amount": 1}], "instances[0] = 'night': this feature is missing"),
        ([{"amount": 1, "night": 2, "day": 3}], "instances[0] = 'day': the model has no such feature"),
        ([{"amount": 1, "night": 2}, 7], "instances[1] = 7: give a list"),
        (["ab"], "instances[0] = 'ab': give a list"),
        ([None], "instances[0] = None: give a list"),
        ([{}], "instances[0] = 'amount': this feature is missing"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(instances, told):
    with pytest.raises(InvalidInput) as refused:
        RowReader(NUMBERS).from_instances(instances)
    assert told in str(refused.value)


@pytest.mark.parametrize("value", [1.5, [], {}])
def test_a_category_is_a_string(value):
    with pytest.raises(InvalidInput, match=r"instances\[0\]\.country = .*: give a string"):
        RowReader(MIXED).from_instances([[1, value, 3]])


def test_a_row_with_a_long_string_takes_no_more_memory_than_it_has():
    rows = [[1, 2]] * 20_000 + [["x" * 1_000_000, 2]]
    with pytest.raises(InvalidInput, match=r"instances\[20000\]\.amount"):
        RowReader(NUMBERS).from_instances(rows)
