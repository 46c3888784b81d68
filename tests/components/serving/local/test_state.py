import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.local.processes import ProcessIdentity
from modelyard.components.serving.local.state import (
    Desired,
    DesiredArm,
    DesiredModel,
    Observed,
    ObservedArm,
    ObservedRoute,
    as_error,
    describe_problem,
    read_desired,
    read_observed,
    write_desired,
    write_observed,
)
from modelyard.components.serving.target import ServedModel

_MODELS = st.builds(ServedModel, st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
_ARMS = st.builds(
    DesiredArm, st.text(max_size=5), _MODELS, st.text(max_size=5), st.dictionaries(st.text(max_size=3), st.text()), st.text()
)
_SERVED = st.builds(
    DesiredModel, _ARMS, st.none() | _ARMS, st.none() | _ARMS, st.none() | _MODELS, st.integers(0, 100), st.booleans()
)
_DESIRED = st.builds(
    Desired, st.integers(0, 5), st.booleans(), st.integers(0, 65535), st.dictionaries(st.text(max_size=3), _SERVED, max_size=3)
)


@given(desired=_DESIRED)
def test_what_is_wanted_comes_back_as_it_was_written(tmp_path_factory, desired):
    folder = tmp_path_factory.mktemp("state")
    written = write_desired(folder, desired)
    assert read_desired(folder) == written
    assert written.generation > desired.generation
    assert (written.models, written.port, written.running) == (desired.models, desired.port, desired.running)


def test_generations_grow_even_if_the_file_was_lost(tmp_path):
    first = write_desired(tmp_path, Desired())
    second = write_desired(tmp_path, first)
    (tmp_path / "state.json").unlink()
    assert first.generation < second.generation < write_desired(tmp_path, Desired()).generation


def test_nothing_is_wanted_where_nothing_was_written(tmp_path):
    assert read_desired(tmp_path) is None
    assert read_observed(tmp_path) == Observed()


_ARM = DesiredArm("fraud-v1-abc", ServedModel("1", "blake3:1", "/models/1"), "/models/1", {"A": "b"})


def test_a_state_cut_off_anywhere_is_damaged_and_never_half_read(tmp_path):
    write_desired(tmp_path, Desired(0, True, 8080, {"fraud": DesiredModel(_ARM, previous=_ARM.model)}))
    path = tmp_path / "state.json"
    whole = path.read_bytes()
    # Without the last line's end it is still whole.
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidInput, match="damaged"):
            read_desired(tmp_path)


@pytest.mark.parametrize("field", ["generation", "running", "port", "models"])
def test_a_state_without_what_it_must_say_is_damaged(tmp_path, field):
    write_desired(tmp_path, Desired(models={"fraud": DesiredModel(_ARM)}))
    path = tmp_path / "state.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != field}))
    with pytest.raises(InvalidInput, match="damaged"):
        read_desired(tmp_path)


def test_what_was_seen_comes_back_and_counts_as_nothing_if_it_cannot_be_read(tmp_path):
    observed = Observed(
        5,
        6,
        ProcessIdentity(7, "boot/8", "python -m supervisor"),
        ProcessIdentity(8, "boot/9", "envoy -c bootstrap.json"),
        {"fraud-v1-abc": ObservedArm("ready", "", 40001, 9, 1)},
        {"fraud": ObservedRoute("fraud-v1-abc", "fraud-v2-def", 5, True)},
        {"message": "no"},
    )
    write_observed(tmp_path, observed)
    assert read_observed(tmp_path) == observed
    path = tmp_path / "observed.json"
    whole = path.read_bytes()
    for bad in (b"", whole[:-5], b"[]", whole.replace(b"ready", b"ready").replace(b'"arms"', b'"legs"')):
        path.write_bytes(bad)
        assert read_observed(tmp_path) == Observed()


def test_both_are_for_their_owner_alone(tmp_path):
    write_desired(tmp_path, Desired())
    write_observed(tmp_path, Observed(supervisor=ProcessIdentity(1, "a", "b")))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_model_that_has_nothing_left_to_serve_is_gone():
    served = Desired(models={"fraud": DesiredModel(canary=_ARM)})
    assert served.with_model("fraud", DesiredModel(previous=_ARM.model)).models == {}


def test_a_problem_reaches_the_verb_as_the_error_that_it_was():
    for error in (InvalidInput("port", 8080, "it is in use: choose another"), NotAvailable("there is no Envoy")):
        told = as_error(json.loads(json.dumps(describe_problem(error))))
        assert (type(told), str(told)) == (type(error), str(error))
    assert str(as_error(describe_problem(OSError(28, "No space left on device")))) == "[Errno 28] No space left on device"
