import json

import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.kserve.notes import Memory, Notes, Version
from modelyard.components.serving.target import RecordChanged, ServedModel

pytestmark = pytest.mark.server
_ONE = Version(ServedModel("1", "blake3:1", "s3://b/1"), {"name": "v1", "labels": {"a": "b"}})


@pytest.fixture
def served(serve):
    return serve("standard")


def test_versions_come_back_as_they_were_written(served):
    notes = Notes(served.api(), "fraud")
    assert notes.memory() == Memory()
    memory = Memory(_ONE, None, Version(ServedModel("0", "blake3:0", "s3://b/0"), {}), share=40, replicas=3)
    assert notes.change(lambda _: memory) == memory
    assert Notes(served.api(), "fraud").memory() == memory
    assert notes.memory().find("blake3:0").model.version == "0"
    assert notes.memory().find("blake3:7") is None


def test_a_change_is_decided_again_where_somebody_else_was_faster(served):
    notes, other = Notes(served.api(), "fraud"), Notes(served.api(), "fraud")
    notes.write_record({"revision": 1}, None)
    seen = []

    def meddle():
        def change(found):
            found["data"]["record"] = json.dumps({"revision": 2})

        served.cluster.edit("configmaps", "fraud-modelyard", change, manager="another")

    def decide(memory):
        seen.append(memory)
        return Memory(_ONE)

    served.cluster.interfere(meddle, method="PUT", path="configmaps")
    notes.change(decide)
    assert len(seen) == 2
    assert (other.record(), other.memory()) == ({"revision": 2}, Memory(_ONE))


def test_versions_are_swapped_only_for_those_that_were_read(served):
    notes, two = Notes(served.api(), "fraud"), Memory(_ONE, share=2)
    assert notes.swap(Memory(), Memory(_ONE))
    assert not notes.swap(Memory(), two)
    assert notes.memory() == Memory(_ONE)
    assert notes.swap(Memory(_ONE), two)
    assert notes.swap(Memory(_ONE), two), "whoever wanted the same has it"


def test_of_two_who_write_over_the_same_record_one_is_told(served):
    one, other = Notes(served.api(), "fraud"), Notes(served.api(), "fraud")

    def meddle():
        def change(found):
            found["data"]["record"] = json.dumps({"revision": 1, "by": "other"})

        served.cluster.edit("configmaps", "fraud-modelyard", change, manager="another")

    one.change(lambda _: Memory(_ONE))
    served.cluster.interfere(meddle, method="PUT", path="configmaps")
    with pytest.raises(RecordChanged, match="at revision 0 and is at 1"):
        one.write_record({"revision": 1, "by": "one"}, 0)
    assert other.record() == {"revision": 1, "by": "other"}


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_write_whose_answer_was_lost_is_not_taken_for_somebody_elses(served, method):
    notes = Notes(served.api(), "fraud")
    if method == "PUT":
        notes.change(lambda _: Memory(_ONE))
    served.cluster.drop(method=method, path="configmaps", after_work=True)
    notes.write_record({"revision": 1, "by": "one"}, 0)
    assert notes.record() == {"revision": 1, "by": "one"}


@pytest.mark.parametrize(
    ("key", "text"),
    [("record", "{"), ("record", "[]"), ("versions", "{}"), ("versions", '{"format_version": 1}'), ("versions", "7")],
)
def test_notes_that_cannot_be_read_are_named_with_what_to_do(served, key, text):
    Notes(served.api(), "fraud").write_record({"revision": 1}, None)
    served.cluster.edit("configmaps", "fraud-modelyard", lambda found: found["data"].update({key: text}))
    notes = Notes(served.api(), "fraud")
    with pytest.raises(InvalidInput, match=f"remove that key|{key}"):
        notes.record() if key == "record" else notes.memory()


def test_notes_of_a_newer_release_are_not_guessed_at(served):
    Notes(served.api(), "fraud").change(lambda _: Memory(_ONE))
    served.cluster.edit("configmaps", "fraud-modelyard", lambda found: found["data"].update(versions='{"format_version": 9}'))
    with pytest.raises(InvalidInput, match="format_version"):
        Notes(served.api(), "fraud").memory()
