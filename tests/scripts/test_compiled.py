import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.scripts import compiled

KINDS = {"text": "STRING", "count": "NUMBER_INTEGER", "ratio": "NUMBER_DOUBLE", "loud": "BOOLEAN", "words": "LIST"}


def package(**kinds):
    parameters = tuple(compiled.Parameter(name, kind, False, None, "") for name, kind in (kinds or KINDS).items())
    return compiled.Package(None, "speech", "", parameters, frozenset(), "")


def test_a_package_tells_its_parameters_with_types_defaults_and_descriptions(packages):
    found = compiled.read(packages / "speech.yaml")
    assert (found.name, found.description) == ("speech", "Says a text.\nNothing more.")
    assert {
        parameter.name: (parameter.kind, parameter.required, parameter.shown_default()) for parameter in found.parameters
    } == {
        "text": ("STRING", True, ""),
        "count": ("NUMBER_INTEGER", False, "2"),
        "ratio": ("NUMBER_DOUBLE", False, "0.5"),
        "loud": ("BOOLEAN", False, "false"),
        "words": ("LIST", False, '["a", "b"]'),
        "options": ("STRUCT", False, '{"volume": 3}'),
        "place_uri": ("STRING", False, ""),
    }
    assert {parameter.name: parameter.description for parameter in found.parameters}["count"] == "How often."


def test_parameters_that_a_pipeline_branches_on_are_known(packages):
    assert compiled.read(packages / "branches.yaml").conditions == {"kind"}
    assert compiled.read(packages / "speech.yaml").conditions == frozenset()


@pytest.mark.parametrize("content", ["", "a: [", "a: 1", "- 1", "just text", "pipelineInfo: {name: x}"])
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(InvalidInput, match="not a compiled KFP pipeline"):
        compiled.read(tmp_path / "x.yaml")


def test_a_component_that_takes_artifacts_cannot_be_run_by_itself(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "pipelineInfo: {name: x}\nroot: {inputDefinitions: {artifacts: {model: {}}, parameters: {}}}\n"
    )
    with pytest.raises(InvalidInput, match=r"takes artifacts \(model\)"):
        compiled.read(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("STRING", "3", "3"),
        ("STRING", "", ""),
        ("NUMBER_INTEGER", "-3", -3),
        ("NUMBER_DOUBLE", "1e-3", 0.001),
        ("NUMBER_DOUBLE", "2", 2.0),
        ("BOOLEAN", "True", True),
        ("BOOLEAN", "no", False),
        ("BOOLEAN", "1", True),
        ("LIST", '["a", 1]', ["a", 1]),
        ("STRUCT", '{"a": {"b": null}}', {"a": {"b": None}}),
    ],
)
def test_text_becomes_a_value_of_the_declared_type(kind, text, value):
    (converted,) = compiled.check_parameters(package(x=kind), {"x": text}).values()
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("NUMBER_INTEGER", "3.5"),
        ("NUMBER_INTEGER", "three"),
        ("NUMBER_INTEGER", True),
        ("NUMBER_INTEGER", 3.0),
        ("NUMBER_DOUBLE", "nan"),
        ("NUMBER_DOUBLE", "inf"),
        ("NUMBER_DOUBLE", False),
        ("BOOLEAN", "maybe"),
        ("BOOLEAN", 1),
        ("LIST", '{"a": 1}'),
        ("LIST", "[1,"),
        ("LIST", [float("nan")]),
        ("STRUCT", "[1]"),
        ("STRUCT", {"when": object()}),
        ("STRING", 3),
        ("STRING", None),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(kind, value):
    with pytest.raises(InvalidInput, match=r"^x = .*it must be a"):
        compiled.check_parameters(package(x=kind), {"x": value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.lists(json_values), st.dictionaries(st.text(), json_values))
def test_lists_and_objects_arrive_the_same_as_text_and_as_values(some_list, some_object):
    found = package(words="LIST", options="STRUCT")
    as_values = compiled.check_parameters(found, {"words": some_list, "options": some_object})
    as_text = compiled.check_parameters(found, {"words": json.dumps(some_list), "options": json.dumps(some_object)})
    assert as_values == as_text == {"words": some_list, "options": some_object}


def test_an_unknown_parameter_is_answered_with_those_there_are():
    with pytest.raises(
        InvalidInput, match=r"txet = 'hi': speech has no such parameter; it has text, count, ratio, loud, words"
    ):
        compiled.check_parameters(package(), {"txet": "hi"})


def test_missing_required_parameters_are_listed_together(packages):
    with pytest.raises(InvalidInput, match="also needs text"):
        compiled.check_parameters(compiled.read(packages / "speech.yaml"), {"count": 3})


@pytest.mark.parametrize("assignments", [["text"], ["=hi"], ["text=a", "text=b"]])
def test_assignments_that_say_nothing_or_two_things_are_refused(assignments):
    with pytest.raises(InvalidInput, match="-p"):
        compiled.split_assignments(assignments)


def test_a_value_may_hold_an_equals_sign():
    assert compiled.split_assignments(["text=a=b", "empty="]) == {"text": "a=b", "empty": ""}


@pytest.mark.parametrize("content", ['{"text": "hi", "words": [1]}', "text: hi\nwords: [1]\n"])
def test_parameters_come_from_json_and_yaml(tmp_path, content):
    (tmp_path / "values").write_text(content)
    assert compiled.read_parameter_file(tmp_path / "values") == {"text": "hi", "words": [1]}


@pytest.mark.parametrize("content", ["[1]", "text", "1: 2", "{", b"\xff\xfe\x00"])
def test_a_parameter_file_of_another_shape_is_refused(tmp_path, content):
    (tmp_path / "values").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match="--params"):
        compiled.read_parameter_file(tmp_path / "values")
    with pytest.raises(InvalidInput, match="cannot be read"):
        compiled.read_parameter_file(tmp_path / "nothing")


def test_a_pipeline_is_found_by_its_file_and_an_unknown_one_is_answered(packages):
    assert compiled.find(str(packages / "speech.yaml")) == packages / "speech.yaml"
    with pytest.raises(InvalidInput, match="no such file"):
        compiled.find("./nothing.yaml")
    with pytest.raises(InvalidInput, match="no pipeline of this name"):
        compiled.find("nothing")
