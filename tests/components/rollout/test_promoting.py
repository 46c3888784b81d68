from types import SimpleNamespace

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import PromotionRefused, promote_model
from modelyard.components.rollout import promoting, record
from modelyard.components.rollout.promoting import Promoted, promote
from modelyard.components.rollout.rollback import roll_back
from modelyard.components.serving.target import TargetChanged
from modelyard.components.tracking.connection import client
from tests.components.rollout.conftest import Trial
from tests.support.simulated_target import Behaviour, Killed


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def tags(version: str) -> dict[str, str]:
    return client().get_model_version("fraud", version).tags


@pytest.fixture(autouse=True)
def golden(monkeypatch):
    """What versions answer to the golden rows: what is wrong with it, or an error; and which were asked."""
    golden = SimpleNamespace(fault="", error=None, asked=[])

    def answer(arm, model_name, directory, *, patient):
        assert (directory / "golden_rows.json").is_file()
        golden.asked.append(arm.model.version)
        if golden.error is not None:
            raise golden.error
        return golden.fault

    monkeypatch.setattr(promoting, "golden_fault", answer)
    return golden


@pytest.fixture
def on_trial(trial):
    """Version 1 is in charge, and version 3 is on trial with half of the traffic."""
    at = trial()
    at.target.start_canary("fraud", at.laptop.versions["3"])
    at.target.set_share("fraud", 50)
    at.target.calls.clear()
    return at


def promoted_during_its_rollout(at, version: str = "", of: str = "3") -> Promoted:
    done = []
    at.time.after(35, lambda: done.append(promote("fraud", version, at.target, "it cannot wait")))
    with pytest.raises(TargetChanged, match="a promotion by hand of 'fraud' took over"):
        at.run(of)
    return done[0]


def test_the_version_on_trial_is_in_charge_and_its_rollout_stops(trial):
    at = trial()
    done = promoted_during_its_rollout(at)
    assert done == Promoted("3", at.laptop.versions["3"].digest, "1")
    assert (at.in_charge, at.target.canary) == ("3", None)
    assert at.target.previous == at.laptop.versions["1"]
    assert named() == {"champion": "3", "previous": "1"}
    assert tags("3")["promoted_reason"] == "it cannot wait"
    notes = record.read(at.target, "fraud").rollout
    assert (notes.decision, notes.outcome) == ("inconclusive", "promoted")
    assert notes.reasons == ["it was put in charge by hand: it cannot wait"]


def test_its_rollout_run_again_finds_it_in_charge(trial):
    at = trial()
    promoted_during_its_rollout(at)
    again = at.run()
    assert (again.decision, again.outcome, again.reasons) == ("pass", "promoted", ["version 3 is in charge already"])


def test_a_registered_version_that_is_not_on_trial_is_ready_before_it_is_in_charge(trial):
    at = trial()
    assert promote("fraud", "2", at.target) == Promoted("2", at.laptop.versions["2"].digest, "1")
    verbs = [call for call in at.target.calls if call in ("start_canary", "set_share", "promote", "restore", "roll_back")]
    assert verbs == ["start_canary", "promote"]
    assert (at.in_charge, named()["champion"]) == ("2", "2")


def test_the_champion_can_be_put_in_charge_where_nothing_is_served(trial):
    at = trial(serving="")
    assert promote("fraud", "1", at.target) == Promoted("1", at.laptop.versions["1"].digest, "")
    assert (at.in_charge, named()) == ("1", {"champion": "1", "challenger": "3"})


def test_another_version_takes_the_place_of_the_one_on_trial(trial):
    at = trial()
    done = promoted_during_its_rollout(at, version="2")
    assert (done.version, done.replaced, at.in_charge, at.target.canary) == ("2", "1", "2", None)
    notes = record.read(at.target, "fraud").rollout
    assert (notes.version, notes.outcome) == ("3", "rolled_back")
    assert notes.reasons == ["version 2 was put in charge by hand: it cannot wait"]


@pytest.mark.parametrize("version", ["", "3"])
def test_repeating_a_promotion_changes_nothing(on_trial, version):
    done = promote("fraud", version, on_trial.target)
    before = on_trial.target.record
    assert promote("fraud", version, on_trial.target) == done
    assert on_trial.target.record == before


def test_a_version_in_charge_stays_so_and_the_one_on_trial_too(on_trial):
    assert promote("fraud", "1", on_trial.target) == Promoted("1", on_trial.laptop.versions["1"].digest, "")
    assert on_trial.target.canary.share == 50


def test_with_nothing_on_trial_a_version_must_be_named(trial):
    with pytest.raises(InvalidInput, match="no version of 'fraud' is on trial"):
        promote("fraud", "", trial().target)


def test_what_the_registry_refuses_changes_nothing(on_trial):
    client().set_model_version_tag("fraud", "3", "judged_against", "7")
    with pytest.raises(PromotionRefused, match="judged against version 7, but the champion is version 1"):
        promote("fraud", "", on_trial.target)
    assert (on_trial.in_charge, on_trial.target.canary.share, on_trial.target.record) == ("1", 50, None)
    assert named()["champion"] == "1"


def test_a_version_that_does_not_become_ready_is_not_put_in_charge(trial):
    at = trial({"2": Behaviour(refusal="its signature is not by the key")})
    with pytest.raises(NotAvailable, match="version 2 of 'fraud' cannot be put in charge: its signature is not by the key"):
        promote("fraud", "2", at.target)
    assert (at.in_charge, at.target.canary, named()["champion"]) == ("1", None, "1")
    assert record.read(at.target, "fraud").promoted == {}


@pytest.mark.parametrize("version", ["", "2"])
def test_a_version_that_scores_its_golden_rows_otherwise_is_not_put_in_charge(on_trial, golden, version):
    golden.fault = "golden row 3 scores 0.2 instead of 0.4"
    with pytest.raises(NotAvailable, match=f"version {version or 3} .*cannot be put in charge: golden row 3 scores 0.2"):
        promote("fraud", version, on_trial.target)
    assert golden.asked == [version or "3"]
    assert (on_trial.in_charge, on_trial.target.canary, named()["champion"]) == ("1", None, "1")
    assert record.read(on_trial.target, "fraud").promoted == {}


def test_that_a_version_cannot_be_asked_for_its_golden_rows_from_here_is_said(on_trial, golden, capsys):
    golden.error = NotAvailable("http://simulated/3 does not answer: no such name")
    assert promote("fraud", "", on_trial.target).version == on_trial.in_charge == "3"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("modelyard: ")]
    assert "Version 3 is put in charge without its golden rows" in line
    assert "no such name" in line


def test_a_version_on_trial_that_is_not_ready_stays_on_trial(on_trial):
    on_trial.target.canary.ready, on_trial.target.canary.reason = False, "its pod lost its node"
    with pytest.raises(NotAvailable, match="version 3 of 'fraud' cannot be put in charge: its pod lost its node"):
        promote("fraud", "", on_trial.target)
    assert (on_trial.in_charge, on_trial.target.canary.share, on_trial.target.record) == ("1", 50, None)


def test_a_version_that_is_not_ready_in_time_leaves_nothing_behind(trial):
    at = trial()
    work = at.target.start_canary

    def wait_in_vain(*arguments):
        work(*arguments)
        at.target.canary.ready, at.target.canary.reason = False, "no node has a free GPU"
        raise NotAvailable("waited 900 s in vain")

    at.target.start_canary = wait_in_vain
    with pytest.raises(NotAvailable, match="no node has a free GPU"):
        promote("fraud", "3", at.target)
    assert (at.in_charge, at.target.canary, named()["champion"]) == ("1", None, "1")
    assert record.read(at.target, "fraud").promoted == {}


def test_a_rollback_brings_back_the_version_before(on_trial):
    promote("fraud", "", on_trial.target)
    done = roll_back("fraud", on_trial.target, "complaints")
    assert (done.version, done.replaced, on_trial.in_charge) == ("1", "3", "1")
    assert named() == {"champion": "1"}
    with pytest.raises(InvalidInput, match="no version of 'fraud' is on trial"):
        promote("fraud", "", on_trial.target)


def test_a_rollback_during_a_promotion_ends_it_and_the_registry_follows(on_trial):
    work = on_trial.target.promote

    def roll_back_first(*arguments):
        roll_back("fraud", on_trial.target, "complaints")
        work(*arguments)

    on_trial.target.promote = roll_back_first
    with pytest.raises(TargetChanged, match="a rollback of 'fraud' took this promotion back"):
        promote("fraud", "", on_trial.target)
    assert (on_trial.in_charge, on_trial.target.canary) == ("1", None)
    assert named() == {"champion": "1"}
    assert tags("3")["rejected_reason"] == "complaints"


def test_a_rollback_while_the_version_is_started_brings_nothing_older_back(trial):
    at = trial()
    at.target.previous = at.laptop.versions["2"]
    work = at.target.start_canary

    def roll_back_meanwhile(*arguments):
        roll_back("fraud", at.target, "complaints")
        work(*arguments)

    at.target.start_canary = roll_back_meanwhile
    with pytest.raises(TargetChanged, match="took this promotion back"):
        promote("fraud", "3", at.target)
    assert (at.in_charge, at.target.canary, named()) == ("1", None, {"champion": "1"})


def test_a_promotion_that_the_registry_gave_to_another_at_that_moment_ends_the_trial(on_trial, monkeypatch):
    work = promoting.promote_model

    def be_late(*arguments):
        promote_model("fraud", "2", on_trial.laptop.versions["2"].digest)
        return work(*arguments)

    monkeypatch.setattr(promoting, "promote_model", be_late)
    with pytest.raises(PromotionRefused):
        promote("fraud", "", on_trial.target)
    assert (on_trial.in_charge, on_trial.target.canary, named()["champion"]) == ("1", None, "2")
    assert record.read(on_trial.target, "fraud").promoted == {}


def test_a_version_that_dies_at_the_last_moment_is_champion_no_longer(on_trial):
    def die(*arguments):
        on_trial.target.canary.ready, on_trial.target.canary.failed = False, True
        on_trial.target.canary.reason = "out of memory"
        raise NotAvailable("version 3 cannot be served")

    on_trial.target.promote = die
    with pytest.raises(NotAvailable, match="out of memory"):
        promote("fraud", "", on_trial.target)
    assert (on_trial.in_charge, on_trial.target.canary, named()["champion"]) == ("1", None, "1")


def test_a_canary_that_was_taken_away_after_the_registry_was_told_comes_back_in_charge(on_trial):
    work = on_trial.target.promote

    def late(*arguments):
        on_trial.target.roll_back("fraud")
        work(*arguments)

    on_trial.target.promote = late
    assert promote("fraud", "", on_trial.target).version == on_trial.in_charge == "3"


def test_while_a_promotion_is_half_done_no_other_version_is_promoted(on_trial):
    on_trial.target.unreachable = {"promote"}
    with pytest.raises(NotAvailable):
        promote("fraud", "", on_trial.target)
    with pytest.raises(TargetChanged, match="the promotion of version 3 of 'fraud' is half done"):
        promote("fraud", "2", on_trial.target)
    on_trial.target.unreachable.clear()
    assert promote("fraud", "", on_trial.target).version == on_trial.in_charge == "3"


def test_what_a_rollback_could_not_tell_the_registry_comes_first(trial, monkeypatch):
    at = trial()
    promote("fraud", "3", at.target)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert roll_back("fraud", at.target, "complaints").registry.startswith("pending:")
    assert promote("fraud", "2", at.target) == Promoted("2", at.laptop.versions["2"].digest, "1")
    assert (tags("3")["rejected_reason"], named()["champion"]) == ("complaints", "2")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "2"])
def test_killed_at_any_call_and_run_again_a_promotion_ends_as_if_it_had_not_been(laptops, version):
    def begin():
        at = Trial(laptops())
        at.target.start_canary("fraud", at.laptop.versions["3"])
        at.target.set_share("fraud", 50)
        return at

    at, wanted = begin(), version or "3"
    at.target.calls.clear()
    promote("fraud", version, at.target, "now")
    calls = len(at.target.calls)
    assert calls > 8
    for call, before in [*((call, True) for call in range(2, calls + 1)), (calls, False)]:
        at = begin()
        at.target.kill(call, before=before)
        with pytest.raises(Killed):
            promote("fraud", version, at.target, "now")
        at.target.revive()
        # Whatever is in charge meanwhile, it is one of the two.
        assert at.in_charge in ("1", wanted)
        done = promote("fraud", version, at.target, "now")
        assert (done.version, at.in_charge, at.target.canary) == (wanted, wanted, None), call
        assert named()["champion"] == wanted
        assert roll_back("fraud", at.target).version == at.in_charge == "1"
        assert named()["champion"] == "1"


@pytest.mark.parametrize("call", [3, 6, 8, 9, 11])
def test_killed_at_any_call_a_promotion_can_be_taken_back_instead(on_trial, call):
    on_trial.target.kill(call, before=True)
    with pytest.raises(Killed):
        promote("fraud", "", on_trial.target)
    on_trial.target.revive()
    assert roll_back("fraud", on_trial.target, "complaints").version == on_trial.in_charge == "1"
    assert (on_trial.target.canary, named()["champion"]) == (None, "1")
