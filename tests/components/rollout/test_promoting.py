import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import PromotionRefused
from modelyard.components.rollout import record
from modelyard.components.rollout.promoting import Promoted, promote
from modelyard.components.rollout.rollback import roll_back
from modelyard.components.serving.target import TargetChanged
from modelyard.components.tracking.connection import client
from tests.support.simulated_target import Behaviour


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def tags(version: str) -> dict[str, str]:
    return client().get_model_version("fraud", version).tags


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


def test_a_rollback_brings_back_the_version_before(on_trial):
    promote("fraud", "", on_trial.target)
    done = roll_back("fraud", on_trial.target, "complaints")
    assert (done.version, done.replaced, on_trial.in_charge) == ("1", "3", "1")
    assert named() == {"champion": "1"}
    with pytest.raises(InvalidInput, match="no version of 'fraud' is on trial"):
        promote("fraud", "", on_trial.target)
