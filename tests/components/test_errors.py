import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def _shown(value):
    return str(InvalidInput("field", value, "remedy")).removeprefix("field = ").removesuffix(": remedy")


@given(values)
def test_a_value_is_shown_as_python_writes_it_up_to_200_characters(value):
    # The quotes of a text that is cut may be of the other kind.
    written, shown = repr(value).replace('"', "'").replace("\\'", "'"), _shown(value).replace('"', "'").replace("\\'", "'")
    if len(repr(value)) <= 200:
        assert shown == written
    else:
        assert shown.endswith("…")
        assert len(_shown(value)) == 201
        assert written.startswith(shown[:-3])


@pytest.mark.parametrize(
    "wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)], ids=["list", "dict", "tuple"]
)
def test_a_value_nested_deeper_than_python_can_write_is_shown_by_its_beginning(wrap):
    value = None
    for _ in range(20_000):
        value = wrap(value)
    assert len(_shown(value)) == 201


def test_of_a_large_value_only_the_beginning_is_written():
    class Counted:
        written = 0

        def __repr__(self):
            Counted.written += 1
            return "one"

    assert _shown([Counted() for _ in range(10_000)]).startswith("[one, one, ")
    assert Counted.written <= 200


def test_a_field_that_a_client_has_named_at_length_is_cut_as_well():
    assert len(str(InvalidInput("x" * 10_000, 1, "remedy"))) < 300
