import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.artifacts.model import SPEC_FILE, Feature, ModelSpec, read_spec, write_spec
from modelyard.components.errors import InvalidInput

SPEC = ModelSpec(
    (Feature("amount"), Feature("country", ("DE", "FR", "")), Feature("night")),
    label="fraud",
    model_file="model.ubj",
    threshold=0.25,
    training={"rounds": 3},
    data={"rows": 10},
)
amounts = st.none() | st.floats(allow_infinity=False, width=32)
countries = st.none() | st.sampled_from(["DE", "FR", "", "IT", "de", "NaN"])


@given(st.lists(st.tuples(amounts, countries, st.none() | st.booleans()), max_size=20), st.permutations(range(4)))
def test_a_row_is_encoded_as_the_specification_says(drawn, order):
    schema = {"amount": pl.Float64, "country": pl.String, "night": pl.Boolean}
    frame = pl.DataFrame(drawn, schema=schema, orient="row").with_columns(other=pl.lit("ignored"))
    found = SPEC.encode(frame.select(np.array(frame.columns)[list(order)].tolist()))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    levels = {"DE": 0, "FR": 1, "": 2}
    expected = [
        [math.nan if a is None else a, levels.get(c, math.nan), math.nan if n is None else float(n)] for a, c, n in drawn
    ]
    np.testing.assert_array_equal(found, np.array(expected, np.float32).reshape(-1, 3))


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Float32, pl.Boolean, pl.Decimal(10, 2)])
def test_every_kind_of_number_is_a_number(kind):
    frame = pl.DataFrame({"amount": pl.Series([1, 0, None]).cast(kind), "country": ["DE"] * 3, "night": [None] * 3})
    np.testing.assert_array_equal(SPEC.encode(frame)[:, 0], [1, 0, math.nan])


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["IT", "FR", "DE"])])
def test_a_category_is_known_by_its_text_not_by_its_code_in_the_data(kind):
    frame = pl.DataFrame({"amount": [1.0] * 3, "country": pl.Series(["FR", "IT", "DE"]).cast(kind), "night": [True] * 3})
    np.testing.assert_array_equal(SPEC.encode(frame)[:, 1], [1, math.nan, 0])


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39])
def test_an_infinite_number_is_refused_by_column_and_row(value):
    frame = pl.DataFrame({"amount": [1.0, value], "country": ["DE", "FR"], "night": [True, False]})
    with pytest.raises(InvalidInput, match=r"amount.*row 1"):
        SPEC.encode(frame)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"amount": [1.0], "night": [True]}), r"country.*the data has amount, night"),
        (pl.DataFrame({"amount": ["1.0"], "country": ["DE"], "night": [True]}), r"amount.*String"),
        (pl.DataFrame({"amount": [[1.0]], "country": ["DE"], "night": [True]}), r"amount.*List"),
    ],
)
def test_a_column_that_is_missing_or_of_another_kind_is_refused(frame, message):
    with pytest.raises(InvalidInput, match=message):
        SPEC.encode(frame)


def test_no_rows_are_encoded_to_no_rows():
    frame = pl.DataFrame(schema={"amount": pl.Float64, "country": pl.String, "night": pl.Boolean})
    assert SPEC.encode(frame).shape == (0, 3)


def test_a_category_that_training_never_saw_a_value_of_is_always_missing():
    spec = ModelSpec((Feature("country", ()),), "fraud", "model.ubj", 0.5)
    assert np.isnan(spec.encode(pl.DataFrame({"country": ["DE", None]}))).all()


def test_a_specification_comes_back_as_it_was_written(tmp_path):
    write_spec(tmp_path, SPEC)
    assert read_spec(tmp_path) == SPEC


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format_version": 1}', '{"format_version": 1, "features": [{}]}'])
def test_a_damaged_specification_is_refused(tmp_path, content):
    (tmp_path / SPEC_FILE).write_text(content)
    with pytest.raises(InvalidInput, match="damaged"):
        read_spec(tmp_path)


def test_a_newer_format_is_not_guessed_at(tmp_path):
    write_spec(tmp_path, SPEC)
    content = json.loads((tmp_path / SPEC_FILE).read_text())
    (tmp_path / SPEC_FILE).write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(InvalidInput, match="format_version = 2"):
        read_spec(tmp_path)


def test_a_folder_without_a_specification_is_no_model(tmp_path):
    with pytest.raises(InvalidInput, match=r"no modelyard\.json"):
        read_spec(tmp_path)
