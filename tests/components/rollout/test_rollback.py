import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import promote_model
from modelyard.components.rollout import engine, rollback
from modelyard.components.rollout.registry_side import finish_pending
from modelyard.components.rollout.rollback import RolledBack, roll_back
from modelyard.components.serving.target import TargetChanged
from modelyard.components.serving.targets import command_options
from modelyard.components.tracking.connection import client
from tests.support.simulated_target import Killed


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def rejected(version: str) -> str:
    return client().get_model_version("fraud", version).tags.get("rejected_reason", "")


@pytest.fixture
def promoted(trial):
    """Version 3 is champion and served; version 1 was before."""
    at = trial()
    promote_model("fraud", "3", at.laptop.versions["3"].digest)
    at.target.restore("fraud", at.laptop.versions["3"])
    at.target.calls.clear()
    return at


@pytest.fixture
def registry_down(monkeypatch):
    """MLflow does not answer until the function is called."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return lambda: monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_the_version_before_is_in_charge_again_in_one_step_and_the_registry_follows(promoted):
    done = roll_back("fraud", promoted.target, "complaints")
    digest = promoted.laptop.versions["1"].digest
    assert done == RolledBack("1", digest, "3", "version 1 is champion again, version 3 was sent back")
    assert promoted.in_charge == "1"
    assert [call for call in promoted.target.calls if call in ("restore", "promote", "roll_back", "set_share")] == ["restore"]
    assert named() == {"champion": "1"}
    assert rejected("3") == "complaints"


def test_repeating_a_rollback_does_not_bring_the_bad_version_back(promoted):
    done = roll_back("fraud", promoted.target, "complaints")
    assert roll_back("fraud", promoted.target) == done
    assert promoted.in_charge == "1"


def test_without_the_registry_what_is_served_is_rolled_back_all_the_same(promoted, registry_down):
    done = roll_back("fraud", promoted.target, "complaints")
    assert (done.version, promoted.in_charge) == ("1", "1")
    assert done.registry.startswith("pending: MLflow at http://127.0.0.1:9")
    registry_down()
    assert named()["champion"] == "3"
    again = roll_back("fraud", promoted.target)
    assert again.registry == "version 1 is champion again, version 3 was sent back"
    assert promoted.in_charge == "1"
    assert named() == {"champion": "1"}
    assert rejected("3") == "complaints"
    assert finish_pending(promoted.target, "fraud") == []


def test_what_the_registry_was_not_told_the_next_rollout_tells_it_first(promoted, registry_down):
    roll_back("fraud", promoted.target, "complaints")
    registry_down()
    done = promoted.run("2")
    assert (done.decision, promoted.in_charge) == ("pass", "2")
    assert named() == {"champion": "2", "previous": "1"}
    assert rejected("3") == "complaints"


def test_a_change_that_the_registry_has_overtaken_is_left_and_said(promoted, registry_down):
    roll_back("fraud", promoted.target)
    registry_down()
    promote_model("fraud", "2", promoted.laptop.versions["2"].digest, replacing="3")
    (told,) = finish_pending(promoted.target, "fraud")
    assert "left as it is" in told
    assert named()["champion"] == "2"


def test_a_version_rolled_back_to_can_be_followed_by_a_new_rollout_and_rolled_back_to_again(promoted):
    roll_back("fraud", promoted.target)
    assert promoted.run("2").decision == "pass"
    assert roll_back("fraud", promoted.target).replaced == "2"
    assert promoted.in_charge == "1"


def test_with_nothing_before_there_is_nothing_to_bring_back(trial):
    for at in (trial(), trial(serving="")):
        serving = at.in_charge
        with pytest.raises(InvalidInput, match=r"no version to bring back.* modelyard serve fraud --version"):
            roll_back("fraud", at.target)
        with pytest.raises(InvalidInput, match="modelyard promote fraud --version VERSION --target kserve --namespace models"):
            roll_back("fraud", at.target, options=command_options("kserve", {"namespace": "models"}))
        assert at.in_charge == serving
        assert at.target.record is None


def test_a_version_before_that_was_altered_is_not_brought_back(promoted, tmp_path):
    altered = tmp_path / Path(promoted.laptop.versions["1"].uri).name
    shutil.copytree(promoted.laptop.versions["1"].uri, altered)
    (altered / "model.ubj").write_bytes(b"other")
    for uri in (str(altered), str(tmp_path / "gone")):
        promoted.target.previous = replace(promoted.target.previous, uri=uri)
        with pytest.raises(VerificationFailed):
            roll_back("fraud", promoted.target)
        assert promoted.in_charge == "3"
        assert named()["champion"] == "3"


def ended_by_a_rollback(at, version: str) -> RolledBack:
    done = []
    at.time.after(35, lambda: done.append(roll_back("fraud", at.target, "complaints")))
    with pytest.raises(TargetChanged, match="a rollback or another rollout of 'fraud' took over"):
        at.run(version)
    return done[0]


@pytest.mark.parametrize("after_another_rollback", [False, True])
def test_during_a_trial_the_version_on_trial_goes_and_the_one_in_charge_stays(promoted, after_another_rollback):
    client().set_model_version_tag("fraud", "2", "judged_against", "3")
    if after_another_rollback:
        roll_back("fraud", promoted.target)
        promote_model("fraud", "3", promoted.laptop.versions["3"].digest, replacing="1")
        promoted.target.restore("fraud", promoted.laptop.versions["3"])
        client().delete_model_version_tag("fraud", "3", "rejected_reason")
    done = ended_by_a_rollback(promoted, "2")
    assert (done.version, done.replaced, done.registry) == ("3", "2", "version 2 was sent back")
    assert (promoted.in_charge, promoted.target.canary) == ("3", None)
    assert named()["champion"] == "3"
    assert (rejected("2"), rejected("3")) == ("complaints", "")
    again = promoted.run("2")
    assert (again.decision, again.outcome, promoted.in_charge) == ("fail", "rolled_back", "3")


def test_a_trial_can_be_ended_where_nothing_was_served_before(trial):
    at = trial()
    done = ended_by_a_rollback(at, "3")
    assert (done.version, done.replaced) == ("1", "3")
    assert (at.in_charge, at.target.canary) == ("1", None)
    assert named() == {"champion": "1"}


def test_the_trial_of_a_first_version_can_be_ended(trial):
    client().delete_registered_model_alias("fraud", "champion")
    at = trial(serving="")
    done = ended_by_a_rollback(at, "1")
    assert (done.version, done.digest, done.replaced) == ("", "", "1")
    assert (at.in_charge, at.target.canary) == ("", None)
    assert roll_back("fraud", at.target).replaced == "1"


def test_a_canary_that_no_rollout_started_goes_too(promoted):
    promoted.target.start_canary("fraud", promoted.laptop.versions["2"])
    assert roll_back("fraud", promoted.target).replaced == "2"
    assert (promoted.in_charge, promoted.target.canary) == ("3", None)


def test_the_end_of_a_trial_asked_for_again_costs_the_version_in_charge_nothing_but_later_it_is_one_more(promoted, monkeypatch):
    promoted.target.start_canary("fraud", promoted.laptop.versions["2"])
    done = roll_back("fraud", promoted.target)
    assert roll_back("fraud", promoted.target) == done
    assert (promoted.in_charge, rejected("3")) == ("3", "")
    monkeypatch.setattr(rollback, "_SAME_SECONDS", 0.0)
    assert roll_back("fraud", promoted.target).version == promoted.in_charge == "1"


@pytest.mark.parametrize("killed_before", [True, False])
def test_a_trial_that_was_about_to_end_well_is_ended_in_the_registry_too(trial, monkeypatch, killed_before):
    at = trial()
    work = engine.promote_model

    def die(*arguments):
        if not killed_before:
            work(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(engine, "promote_model", die)
        with pytest.raises(Killed):
            at.run()
    done = roll_back("fraud", at.target, "complaints")
    assert (done.version, done.replaced) == ("1", "3")
    assert (at.in_charge, at.target.canary, named()["champion"]) == ("1", None, "1")
    assert rejected("3") == "complaints"
    assert at.run().outcome == "rolled_back"


def test_a_canary_that_was_just_being_started_does_not_outlive_the_rollback(trial):
    at = trial()
    start = at.target.start_canary

    def roll_back_first(*arguments):
        at.target.start_canary = start
        start(*arguments)
        roll_back("fraud", at.target, "complaints")
        start(*arguments)

    at.target.start_canary = roll_back_first
    with pytest.raises(TargetChanged, match="took over"):
        at.run()
    assert (at.in_charge, at.target.canary) == ("1", None)


def test_a_promotion_at_the_same_moment_as_a_rollback_is_taken_back(trial, monkeypatch):
    at = trial()
    work = engine.promote_model

    def roll_back_first(*arguments):
        roll_back("fraud", at.target, "complaints")
        return work(*arguments)

    monkeypatch.setattr(engine, "promote_model", roll_back_first)
    with pytest.raises(TargetChanged, match="took over"):
        at.run()
    assert (at.in_charge, at.target.canary, named()["champion"]) == ("1", None, "1")


@pytest.mark.parametrize("meanwhile", ["read_record", "write_record"])
def test_a_look_at_the_same_moment_does_not_undo_a_rollback(promoted, meanwhile):
    client().set_model_version_tag("fraud", "2", "judged_against", "3")
    verb = getattr(promoted.target, meanwhile)

    def roll_back_between(*arguments, **details):
        found = verb(*arguments, **details) if meanwhile == "read_record" else None
        setattr(promoted.target, meanwhile, verb)
        roll_back("fraud", promoted.target, "complaints")
        return found if meanwhile == "read_record" else verb(*arguments, **details)

    promoted.time.after(35, lambda: setattr(promoted.target, meanwhile, roll_back_between))
    with pytest.raises(TargetChanged, match="took over"):
        promoted.run("2")
    assert (promoted.in_charge, promoted.target.canary, rejected("2")) == ("3", None, "complaints")


def test_a_target_that_does_not_answer_is_an_error_and_a_repetition_finishes(promoted):
    promoted.target.unreachable = {"restore"}
    with pytest.raises(NotAvailable):
        roll_back("fraud", promoted.target, "complaints")
    promoted.target.unreachable.clear()
    assert roll_back("fraud", promoted.target).version == promoted.in_charge == "1"
    assert rejected("3") == "complaints"


def test_killed_at_any_call_and_run_again_a_rollback_ends_as_if_it_had_not_been(promoted):
    roll_back("fraud", promoted.target, "complaints")
    calls = len(promoted.target.calls)
    # After one call is before the next.
    for call, before in [*((call, True) for call in range(2, calls + 1)), (calls, False)]:
        promote_model("fraud", "3", promoted.laptop.versions["3"].digest, replacing="1")
        promoted.target.restore("fraud", promoted.laptop.versions["3"])
        assert (promoted.in_charge, named()["champion"]) == ("3", "3")
        promoted.target.kill(call, before=before)
        with pytest.raises(Killed):
            roll_back("fraud", promoted.target, "complaints")
        promoted.target.revive()
        done = roll_back("fraud", promoted.target, "complaints")
        assert (done.version, done.replaced, promoted.in_charge) == ("1", "3", "1")
        assert named() == {"champion": "1"}
