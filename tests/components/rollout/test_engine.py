from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import promote_model, reject_challenger
from modelyard.components.rollout import engine
from modelyard.components.rollout.report import render_report, timeline_of
from modelyard.components.serving.target import ArmCounts, Counts, TargetChanged
from modelyard.components.tracking.connection import client
from tests.components.rollout.conftest import Trial
from tests.support.simulated_target import Behaviour, Killed

BROKEN = Behaviour(failing=0.3)
SHORT = {"steps": [50, 100], "bake_seconds": 20, "look_seconds": 10, "min_samples": 50}


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def rejected(version: str = "3") -> str:
    return client().get_model_version("fraud", version).tags.get("rejected_reason", "")


def shares(at: Trial) -> list[int]:
    return [percent for _, percent, _ in at.target.history]


def without_champion() -> None:
    client().delete_registered_model_alias("fraud", "champion")


def test_a_good_version_gets_its_steps_one_after_another_and_is_promoted(trial):
    at = trial()
    done = at.run()
    assert (done.decision, done.outcome) == ("pass", "promoted"), done.reasons
    assert shares(at) == [5, 25, 50, 100, 100]
    assert at.in_charge == "3"
    assert at.target.canary is None
    assert at.target.previous.version == "1"
    assert named() == {"champion": "3", "previous": "1"}
    assert done.total("canary").requests > 100


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(failing=0.05), "Failed requests: "),
        (Behaviour(rejecting=0.1), "Rejected requests: "),
        (Behaviour(latency=0.04), "Latency"),
        (Behaviour(score=0.0), "Scores"),
        (Behaviour(failing=0.9), "burst of failures"),
        (Behaviour(refusal="its signature is not by whom we trust"), "its signature is not by whom we trust"),
        (Behaviour(golden_fault="golden row 3 scores 0.2 instead of 0.4"), "golden row 3 scores"),
    ],
)
def test_a_version_that_is_worse_is_rolled_back_and_its_reason_is_kept(trial, behaviour, reason):
    at = trial({"3": behaviour})
    done = at.run(bake_seconds=120)
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert reason in "; ".join(done.reasons)
    assert at.in_charge == "1"
    assert at.target.canary is None
    assert named() == {"champion": "1"}
    assert reason in rejected()


@pytest.mark.parametrize("behaviour", [Behaviour(refusal="unsigned"), Behaviour(golden_fault="other scores")])
def test_a_version_that_is_refused_or_scores_otherwise_gets_no_traffic_at_all(trial, behaviour):
    at = trial({"3": behaviour})
    at.run()
    assert shares(at) == []


# Data


def test_without_traffic_a_version_is_held_and_then_rolled_back_as_inconclusive(trial):
    at = trial(rate=0.0)
    began = at.time()
    done = at.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "0 of the 100 requests" in done.reasons[0]
    assert sum("held" in event["text"] for event in done.events) == 1
    assert 600 <= at.time() - began < 700
    assert shares(at) == [5]
    assert at.in_charge == "1"
    assert at.target.canary is None
    assert named() == {"champion": "1", "challenger": "3"}
    assert not rejected()


def test_an_inconclusive_version_may_try_again(trial):
    at = trial(rate=0.0)
    at.run()
    at.target.rate = 50.0
    assert at.run().decision == "pass"


def test_a_step_lasts_until_it_has_seen_its_requests(trial):
    at = trial(rate=10.0)
    done = at.run(steps=[10], min_samples=150)
    assert done.decision == "pass"
    assert len(done.timeline) > 6
    assert done.total("canary").samples >= 150


@pytest.mark.parametrize("arm", ["stable", "canary"])
def test_an_arm_whose_counts_cannot_be_read_is_no_data(trial, arm):
    at = trial()
    at.target.unreadable = {arm}
    done = at.run()
    assert (done.decision, at.in_charge) == ("inconclusive", "1")


def test_rejected_requests_are_no_data(trial):
    every = Behaviour(rejecting=1.0, failing=0.0)
    done = trial({"1": every, "3": every}).run()
    assert done.decision == "inconclusive"


def test_counts_that_begin_again_are_noted_and_decide_nothing(trial):
    at = trial()
    for seconds in (25, 95):
        at.time.after(seconds, lambda: at.target.restart("canary"))
    at.time.after(125, lambda: at.target.restart("stable"))
    done = at.run()
    assert done.decision == "pass"
    assert sum("started again" in event["text"] for event in done.events) >= 3


# The floor


def test_a_version_that_dies_half_way_is_rolled_back(trial):
    at = trial()

    def die():
        at.target.canary.ready, at.target.canary.failed, at.target.canary.reason = False, True, "it crashed five times"

    at.time.after(35, die)
    done = at.run()
    assert done.decision == "fail"
    assert any("it crashed five times" in reason for reason in done.reasons)
    assert at.in_charge == "1"


def test_a_version_that_is_back_in_a_moment_is_waited_for_before_it_begins(trial):
    at = trial(seed=1)
    start = at.target.start_canary

    def start_and_die(*arguments):
        start(*arguments)
        at.target.canary.ready = False
        at.time.after(15, lambda: setattr(at.target.canary, "ready", True))

    at.target.start_canary = start_and_die
    assert at.run().decision == "pass"


@pytest.mark.parametrize(("seconds", "decision"), [(20, "pass"), (60, "inconclusive")])
def test_a_version_may_be_not_ready_for_a_moment_only(trial, seconds, decision):
    at = trial(rate=2.0)
    at.time.after(65, lambda: setattr(at.target.canary, "ready", False))
    at.time.after(65 + seconds, lambda: at.target.canary and setattr(at.target.canary, "ready", True))
    # What it fails meanwhile is allowed here, so that readiness alone decides.
    done = at.run(steps=[5], bake_seconds=200, min_samples=1, limits={"max_failure_ratio": 64})
    assert done.decision == decision, done.reasons


def test_failures_that_come_with_all_the_traffic_are_seen_without_a_comparison(trial):
    at = trial({"3": Behaviour()})
    at.time.after(205, lambda: setattr(at.target.behaviour["3"], "failing", 0.1))
    done = at.run()
    assert done.decision == "fail"
    assert "at all the traffic" in done.reasons[0]
    assert at.in_charge == "1"


def test_rejections_that_come_with_all_the_traffic_are_seen_without_a_comparison(trial):
    at = trial({"3": Behaviour()})
    at.time.after(205, lambda: setattr(at.target.behaviour["3"], "rejecting", 0.5))
    done = at.run()
    assert done.decision == "fail"
    assert "were rejected at all the traffic" in done.reasons[0]


def test_a_version_that_keeps_crashing_and_coming_back_is_rolled_back(trial):
    at = trial()
    for seconds in (35, 55, 75):
        at.time.after(seconds, lambda: at.target.restart("canary"))
    done = at.run(bake_seconds=200)
    assert done.decision == "fail"
    assert done.reasons == ["version 3: its predictor restarted 3 times"]


def test_a_look_never_mixes_two_shares(trial):
    at = trial()
    began, work = at.time(), at.target.set_share

    def take_long_and_be_unreadable(name, percent, **details):
        at.time.sleep(20)
        work(name, percent, **details)
        if percent == 50:
            at.target.unreadable = {"canary", "stable"}
            at.time.after(at.time() - began + 15, at.target.unreadable.clear)

    at.target.set_share = take_long_and_be_unreadable
    done = at.run(steps=[10, 50])
    seen = [point["canary"]["answered"] + point["stable"]["answered"] for point in done.timeline if point["step"] == 1]
    assert seen[:2] == [0, 0]
    assert 0 < seen[2] < 700


# Shadow traffic


def test_a_version_that_fails_on_mirrored_traffic_never_gets_live_traffic(trial):
    at = trial({"3": BROKEN})
    assert at.run(shadow_seconds=60).decision == "fail"
    assert [(percent, mirror) for _, percent, mirror in at.target.history] == [(100, True)]


def test_mirrored_traffic_comes_before_the_first_step(trial):
    at = trial()
    assert at.run(shadow_seconds=60).decision == "pass"
    assert [mirror for _, _, mirror in at.target.history] == [True, False, False, False, False, False]


# What is served at the beginning


def test_the_first_version_gets_everything_and_the_page_says_that_nothing_was_compared(trial):
    without_champion()
    at = trial(serving="", rate=0.0)
    done = at.run("1")
    assert (done.decision, done.outcome) == ("pass", "promoted")
    assert "nothing to compare with" in done.reasons[0]
    assert shares(at) == [100, 100]
    assert (at.in_charge, at.target.previous) == ("1", None)
    assert named()["champion"] == "1"


@pytest.mark.parametrize("behaviour", [Behaviour(refusal="unsigned"), Behaviour(failing=0.9)])
def test_a_first_version_that_fails_leaves_nothing_served(trial, behaviour):
    without_champion()
    at = trial({"1": behaviour}, serving="")
    done = at.run("1")
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert (at.in_charge, at.target.canary) == ("", None)
    assert "champion" not in named()


def test_where_nothing_is_served_yet_the_champion_comes_first(trial):
    at = trial(serving="")
    done = at.run()
    assert done.decision == "pass"
    assert at.target.history[0] == ("1", 100, False)
    assert at.target.previous.version == "1"


def test_a_champion_that_cannot_be_served_ends_the_rollout_before_it_begins(trial):
    at = trial({"1": Behaviour(refusal="unsigned")}, serving="")
    with pytest.raises(NotAvailable, match=r"champion.*unsigned"):
        at.run()
    assert (at.in_charge, at.target.canary) == ("", None)
    assert named() == {"champion": "1", "challenger": "3"}


def test_a_champion_that_is_not_served_yet_is_started(trial):
    at = trial(serving="")
    done = at.run("1")
    assert (done.decision, at.in_charge) == ("pass", "1")
    assert named() == {"champion": "1", "challenger": "3"}


def test_another_version_in_charge_than_the_champion_is_refused_with_a_way_on(trial):
    at = trial(serving="2")
    with pytest.raises(TargetChanged, match="modelyard promote fraud --version 1"):
        at.run()
    assert (at.in_charge, at.target.canary) == ("2", None)


def test_a_version_in_charge_without_a_champion_is_promoted_only_if_it_is_the_one_asked_for(trial):
    without_champion()
    at = trial()
    with pytest.raises(TargetChanged, match="modelyard promote fraud --version 1"):
        at.run("3")
    assert at.run("1").decision == "pass"
    assert (at.in_charge, named()["champion"]) == ("1", "1")


def test_a_canary_of_somebody_else_is_refused_with_a_way_on(trial, laptop):
    at = trial()
    at.target.start_canary("fraud", laptop.versions["2"])
    with pytest.raises(TargetChanged, match=r"version 2.*modelyard split fraud --end"):
        at.run()
    assert at.target.canary.model.version == "2"


def test_a_version_that_is_in_charge_already_is_promoted_and_nothing_is_done(trial):
    at = trial()
    done = at.run("1")
    assert (done.decision, done.outcome) == ("pass", "promoted")
    assert {"start_canary", "set_share", "promote", "restore"}.isdisjoint(at.target.calls)


def test_a_version_that_was_sent_back_is_tried_again_only_if_it_challenges_again(trial):
    at = trial()
    reject_challenger("fraud", "3", "it was slow")
    done = at.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert "it was slow" in done.reasons[0]
    assert "start_canary" not in at.target.calls
    client().set_registered_model_alias("fraud", "challenger", "3")
    assert at.run().decision == "pass"


def test_a_version_that_was_judged_against_another_champion_is_not_even_started(trial, laptop):
    promote_model("fraud", "2", laptop.versions["2"].digest)
    at = trial(serving="2")
    done = at.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert "judged against version 1" in done.reasons[0]
    assert "start_canary" not in at.target.calls


def test_a_version_that_cannot_be_promoted_because_it_died_is_not_promoted(trial):
    at = trial()

    def die(*arguments):
        at.target.canary.ready, at.target.canary.failed, at.target.canary.reason = False, True, "out of memory"

    work = at.target.write_record
    at.target.write_record = lambda name, record, **details: (
        work(name, record, **details),
        die() if (record["rollout"] or {}).get("phase") == "promoting" and at.target.canary else None,
    )
    done = at.run(**SHORT)
    assert (done.decision, at.in_charge) == ("fail", "1")
    assert "out of memory" in done.reasons[0]
    assert named() == {"champion": "1"}


@pytest.mark.parametrize("killed", [False, True])
def test_a_version_that_dies_after_the_registry_was_told_is_taken_back_there_too(trial, killed):
    at = trial()

    def die(*arguments):
        at.target.canary.ready, at.target.canary.failed, at.target.canary.reason = False, True, "out of memory"
        if killed:
            raise Killed
        raise NotAvailable("version 3 cannot be served: out of memory")

    at.target.promote = die
    if killed:
        with pytest.raises(Killed):
            at.run(**SHORT)
        assert named()["champion"] == "3"

        def cannot(*arguments):
            raise NotAvailable("version 3 cannot be served: out of memory")

        at.target.promote = cannot
    done = at.run(**SHORT)
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert "out of memory" in done.reasons[0]
    assert (at.in_charge, at.target.canary, named()["champion"]) == ("1", None, "1")
    assert "out of memory" in rejected()
    assert at.run(**SHORT).decision == "fail"


def test_a_version_that_is_not_what_it_is_said_to_be_is_refused(trial, laptop):
    at = trial()
    three, two = laptop.versions["3"], laptop.versions["2"]
    for wrong, field in ((two.digest, "digest"), (two.uri, "uri")):
        laptop.versions["3"] = type(three)("3", *((wrong, three.uri) if field == "digest" else (three.digest, wrong)))
        try:
            with pytest.raises(InvalidInput, match=field):
                at.run()
        finally:
            laptop.versions["3"] = three
    assert "start_canary" not in at.target.calls


# Other people


def test_a_share_that_somebody_else_set_ends_the_trial(trial):
    at = trial()
    at.time.after(35, lambda: at.target.set_share("fraud", 70))
    done = at.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "70 %" in done.reasons[0]
    assert (at.in_charge, at.target.canary) == ("1", None)
    assert named()["challenger"] == "3"


def test_a_share_that_is_not_seen_for_a_moment_ends_nothing(trial):
    at = trial()
    at.time.after(35, lambda: setattr(at.target.canary, "share", 0))
    at.time.after(45, lambda: setattr(at.target.canary, "share", 5))
    assert at.run().decision == "pass"


def test_a_canary_that_somebody_took_away_ends_the_trial(trial):
    at = trial()
    at.time.after(35, lambda: at.target.roll_back("fraud"))
    done = at.run()
    assert done.decision == "inconclusive"
    assert "took the canary away" in done.reasons[0]
    assert at.in_charge == "1"


def test_a_stopped_rollout_whose_canary_is_gone_begins_anew(trial):
    at = trial()
    at.target.kill(60, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    at.target.roll_back("fraud")
    assert at.run(min_samples=101).decision == "pass"
    assert shares(at)[-5:] == [5, 25, 50, 100, 100]


def test_a_canary_that_somebody_put_in_its_place_is_left_alone(trial, laptop):
    at = trial()

    def replace():
        at.target.roll_back("fraud")
        at.target.start_canary("fraud", laptop.versions["2"])

    at.time.after(35, replace)
    assert at.run().decision == "inconclusive"
    assert at.target.canary.model.version == "2"


def test_another_version_that_somebody_put_in_charge_stays_so(trial, laptop):
    at = trial()
    at.time.after(35, lambda: setattr(at.target.stable, "model", laptop.versions["2"]))
    done = at.run()
    assert done.decision == "inconclusive"
    assert "version 2" in done.reasons[0]
    assert (at.in_charge, at.target.canary) == ("2", None)


def test_a_version_that_somebody_put_in_charge_by_hand_is_left_so_and_said(trial, laptop):
    at = trial()
    at.time.after(35, lambda: at.target.promote("fraud", laptop.versions["3"].digest))
    with pytest.raises(TargetChanged, match="modelyard rollback fraud"):
        at.run()
    assert at.in_charge == "3"
    assert named()["champion"] == "1"


def test_a_champion_that_changed_meanwhile_refuses_the_promotion(trial, laptop):
    at = trial()
    at.time.after(35, lambda: promote_model("fraud", "2", laptop.versions["2"].digest))
    done = at.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert "the registry refused it" in done.reasons[0]
    assert (at.in_charge, at.target.canary) == ("1", None)
    assert named() == {"champion": "2", "previous": "1"}


def test_a_second_rollout_at_the_same_moment_is_refused(trial):
    at = trial()
    refused = []

    def again():
        with pytest.raises(TargetChanged, match="another rollout of 'fraud' is under way") as caught:
            at.run()
        refused.append(caught)

    at.time.after(35, again)
    assert at.run().decision == "pass"
    assert refused


# What cannot be reached


def test_a_target_that_is_not_reached_for_a_moment_is_waited_for(trial):
    at = trial()
    at.time.after(35, lambda: at.target.unreachable.update({"state", "counts"}))
    at.time.after(55, at.target.unreachable.clear)
    assert at.run().decision == "pass"


def test_a_canary_that_can_no_longer_be_watched_is_taken_away(trial):
    at = trial()
    at.time.after(35, lambda: at.target.unreachable.add("counts"))
    done = at.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert (at.in_charge, at.target.canary) == ("1", None)


def test_a_canary_whose_notes_cannot_be_kept_is_taken_away(trial):
    at = trial()
    at.time.after(35, lambda: at.target.unreachable.add("write_record"))
    with pytest.raises(NotAvailable):
        at.run()
    assert (at.in_charge, at.target.canary) == ("1", None)


@pytest.mark.parametrize(
    ("verb", "behaviour"),
    [
        ("start_canary", Behaviour()),
        ("set_share", Behaviour()),
        ("promote", Behaviour()),
        ("write_record", Behaviour()),
        ("everything", Behaviour()),
        ("roll_back", BROKEN),
        ("everything", BROKEN),
    ],
)
def test_whatever_cannot_be_reached_the_champion_stays_and_a_repetition_ends_it(trial, verb, behaviour):
    at = trial({"3": behaviour})
    at.time.after(5, lambda: at.target.unreachable.add(verb))
    at.target.unreachable = {verb} if verb in ("start_canary", "set_share") else set()
    try:
        decision = at.run(**SHORT).decision
    except NotAvailable:
        decision = ""
    assert at.in_charge == "1" or (decision == "pass" and verb == "roll_back")
    at.target.unreachable.clear()
    done = at.run(**SHORT)
    assert done.outcome == ("promoted" if behaviour != BROKEN else "rolled_back"), done.reasons
    assert at.in_charge == named()["champion"]
    assert at.target.canary is None


def test_a_rejection_that_the_registry_could_not_be_told_is_made_by_the_next_rollout(trial, monkeypatch):
    at = trial({"3": BROKEN})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    at.time.after(5, lambda: monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"))
    done = at.run()
    assert done.decision == "fail"
    assert "could not be told yet" in done.reasons[-1]
    assert at.target.canary is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert named() == {"champion": "1", "challenger": "3"}
    at.run("1")
    assert named() == {"champion": "1"}
    assert "Failed requests" in rejected() or "burst" in rejected()


# Killed and run again


def test_a_finished_rollout_gives_the_same_answer_again_and_does_nothing(trial):
    for behaviour in (Behaviour(), BROKEN):
        at = trial({"3": behaviour})
        done = at.run(**SHORT)
        at.target.calls.clear()
        again = at.run(**SHORT)
        assert (again.decision, again.reasons, again.timeline) == (done.decision, done.reasons, done.timeline)
        assert {"start_canary", "set_share", "promote", "roll_back", "restore"}.isdisjoint(at.target.calls)
        if behaviour != BROKEN:
            promote_model("fraud", "1", at.laptop.versions["1"].digest, replacing="3")
            client().set_registered_model_alias("fraud", "challenger", "3")


def test_a_rollout_that_goes_on_has_what_it_had_seen(trial):
    whole = trial(seed=4).run()
    at = trial(seed=4)
    promote_model("fraud", "1", at.laptop.versions["1"].digest, replacing="3")
    client().set_registered_model_alias("fraud", "challenger", "3")
    at.target.kill(60, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    done = at.run()
    assert done.decision == whole.decision == "pass"
    looks = [point["at"] for point in done.timeline]
    assert looks == sorted(set(looks))
    assert any("Goes on" in event["text"] for event in done.events)
    assert shares(at) == [5, 25, 50, 100, 100]


def test_another_plan_for_a_rollout_under_way_is_refused(trial):
    at = trial()
    at.target.kill(60, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    with pytest.raises(InvalidInput, match="under way with others"):
        at.run(min_samples=101)
    assert at.run().decision == "pass"


def test_another_version_waits_until_the_canary_of_a_stopped_rollout_is_gone(trial):
    at = trial()
    at.target.kill(60, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    with pytest.raises(TargetChanged, match=r"version 3.*modelyard split fraud --end"):
        at.run("2")
    at.target.roll_back("fraud")
    assert at.run("2").decision == "pass"


@pytest.mark.parametrize("behaviour", [Behaviour(), BROKEN], ids=["good", "broken"])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(kills=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=3))
def test_killed_anywhere_and_run_again_a_rollout_ends_as_if_it_had_not_been(laptops, behaviour, kills):
    killed_and_run_again(laptops, behaviour, kills)


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [Behaviour(), BROKEN], ids=["good", "broken"])
def test_killed_at_each_call_and_run_again_a_rollout_ends_as_if_it_had_not_been(laptops, behaviour):
    undisturbed = Trial(laptops(), {"3": behaviour})
    undisturbed.run(**SHORT)
    for call in range(1, len(undisturbed.target.calls) + 1):
        killed_and_run_again(laptops, behaviour, [(call, True)])
    killed_and_run_again(laptops, behaviour, [(len(undisturbed.target.calls), False)])


def killed_and_run_again(laptops, behaviour, kills):
    at = Trial(laptops(), {"3": behaviour})
    for call, before in kills:
        at.target.kill(call, before=before)
        try:
            at.run(**SHORT)
        except Killed:
            assert at.in_charge in ("1", named()["champion"])
        at.target.revive()
        # Its next attempt comes a while later.
        at.time.sleep(7)
    done = at.run(**SHORT)
    assert at.target.canary is None
    if behaviour == BROKEN:
        assert (done.decision, at.in_charge) == ("fail", "1")
        assert named() == {"champion": "1"}
        assert rejected()
    else:
        assert (done.decision, at.in_charge) == ("pass", "3")
        assert named() == {"champion": "3", "previous": "1"}
        assert at.target.previous.version == "1"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", ["promote_model", "make"])
def test_killed_at_the_registry_and_run_again_a_rollout_ends_as_if_it_had_not_been(trial, monkeypatch, call, before):
    broken = call == "make"
    at = trial({"3": BROKEN if broken else Behaviour()})
    place = engine.registry_side if broken else engine
    work = getattr(place, call)

    def die(*arguments):
        if not before:
            work(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, call, die)
        with pytest.raises(Killed):
            at.run(**SHORT)
    assert at.in_charge == "1"
    at.run(**SHORT)
    assert at.in_charge == ("1" if broken else "3") == named()["champion"]
    assert at.target.canary is None
    assert bool(rejected()) == broken


# What a cluster does


def test_a_target_that_was_away_while_the_version_was_started_is_asked_again(trial):
    at = trial()
    at.target.unreachable = {"start_canary"}
    at.time.after(15, at.target.unreachable.clear)
    assert at.run(**SHORT).decision == "pass"


def test_a_version_that_is_not_ready_in_time_may_be_tried_again(trial):
    at = trial()
    work = at.target.start_canary

    def wait_in_vain(name, model):
        work(name, model)
        at.target.canary.ready, at.target.canary.reason = False, "no node has a free GPU"
        at.time.sleep(900)
        raise NotAvailable("waited 900 s in vain for version 3 to be ready: no node has a free GPU")

    at.target.start_canary = wait_in_vain
    done = at.run(**SHORT)
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "no node has a free GPU" in done.reasons[0]
    assert (at.in_charge, at.target.canary, named()) == ("1", None, {"champion": "1", "challenger": "3"})
    at.target.start_canary = work
    assert at.run(**SHORT).decision == "pass"


@pytest.mark.parametrize(("died", "decision"), [(False, "inconclusive"), (True, "fail")])
def test_a_version_that_cannot_be_asked_for_its_golden_rows_is_sent_back_only_if_it_died(trial, died, decision):
    at = trial()

    def ask_in_vain(arm, *details):
        at.target.canary.failed, at.target.canary.reason = died, "out of memory"
        raise NotAvailable("http://simulated/3 does not answer")

    at.target.answer_golden_rows = ask_in_vain
    done = at.run()
    assert (done.decision, done.outcome, at.target.history) == (decision, "rolled_back", [])
    assert ("out of memory" if died else "does not answer") in done.reasons[0]


def lose_its_node(at, seconds: float) -> None:
    """The canary is not ready for a time, and whoever routes takes its share away meanwhile."""

    def gone():
        at.target.canary.ready, at.target.canary.share = False, 0

    def back():
        if at.target.canary:
            at.target.canary.ready, at.target.canary.share = True, 5

    at.time.after(35, gone)
    at.time.after(35 + seconds, back)


def test_a_version_that_loses_its_traffic_while_it_is_not_ready_was_not_changed_by_anybody(trial):
    at = trial()
    lose_its_node(at, 200)
    done = at.run(limits={"ready_grace_seconds": 300})
    assert done.decision == "pass"


def test_a_version_that_is_not_back_in_time_is_rolled_back_and_may_be_tried_again(trial):
    at = trial()
    lose_its_node(at, 400)
    done = at.run(limits={"ready_grace_seconds": 300})
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "has not been ready for" in done.reasons[0]
    assert (named()["challenger"], rejected()) == ("3", "")


def test_a_verb_that_waits_in_vain_for_long_is_not_repeated_for_hours(trial):
    at = trial()

    def wait_in_vain(*arguments):
        at.time.sleep(900)
        raise NotAvailable("waited 900 s in vain")

    at.target.promote = wait_in_vain
    with pytest.raises(NotAvailable, match="in vain"):
        at.run(**SHORT)
    assert at.time() - 1_000_000.0 < 2000


def test_a_version_that_says_neither_that_it_is_ready_nor_that_it_failed_may_be_tried_again(trial):
    at = trial()
    work = at.target.start_canary

    def be_slow(*arguments):
        work(*arguments)
        at.target.canary.ready, at.target.canary.reason = False, "it is fetching the model"

    at.target.start_canary = be_slow
    done = at.run(**SHORT)
    assert (done.decision, done.outcome, rejected()) == ("inconclusive", "rolled_back", "")
    assert "it is fetching the model" in done.reasons[0]


def test_the_only_version_may_have_all_the_traffic_before_it_is_asked_to(trial):
    without_champion()
    at = trial(serving="")
    work = at.target.start_canary

    def start(name, model):
        work(name, model)
        at.target.canary.share = 100

    at.target.start_canary = start
    at.target.kill(6, before=False)
    with pytest.raises(Killed):
        at.run("1")
    at.target.revive()
    assert at.run("1").decision == "pass"
    assert at.in_charge == "1"


def test_where_nothing_can_be_counted_the_version_gets_no_traffic(trial):
    at = trial()
    at.target.unreachable = {"counts"}
    done = at.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "cannot be counted" in done.reasons[0]
    assert at.target.history == []
    assert named()["challenger"] == "3"


def test_counts_that_are_away_for_long_pass_nobody(trial):
    at = trial()
    at.time.after(35, lambda: at.target.unreachable.add("counts"))
    done = at.run()
    assert (done.decision, done.outcome) == ("inconclusive", "rolled_back")
    assert "could not be reached" in done.reasons[0]
    assert at.in_charge == "1"


def test_a_version_that_fails_while_nothing_is_counted_is_rolled_back_at_once(trial):
    at = trial()

    def die():
        at.target.unreachable.add("counts")
        at.target.canary.ready, at.target.canary.failed, at.target.canary.reason = False, True, "out of memory"

    at.time.after(35, die)
    done = at.run()
    assert (done.decision, done.reasons) == ("fail", ["version 3 failed: out of memory"])
    assert at.time() - 1_000_000.0 < 50


def test_counts_that_begin_anew_after_a_kill_take_nothing_in_twice(trial):
    at = trial()
    work, origin = at.target.counts, ["first"]

    def since(name):
        found = work(name)
        arms = [replace(arm, origin=origin[0]) if arm else None for arm in (found.stable, found.canary)]
        return ArmCounts(*arms)

    at.target.counts = since
    at.target.kill(30, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    at.target.restart("stable")
    at.target.restart("canary")
    origin[0] = "second"
    done = at.run()
    assert done.decision == "pass"
    assert not any("started again" in event["text"] for event in done.events)


def test_a_test_without_data_is_said_to_say_nothing(trial):
    at = trial()
    work = at.target.counts

    def without_scores(name):
        found = work(name)
        return ArmCounts(*(replace(arm, scores=Counts().scores) if arm else None for arm in (found.stable, found.canary)))

    at.target.counts = without_scores
    done = at.run()
    assert done.decision == "pass"
    assert done.reasons[0].endswith("without data, nothing can be said of scores")
    tests = timeline_of("fraud", done)["tests"]
    assert {name: test["data"] for name, test in tests.items()} == {
        "failed": True,
        "rejected": True,
        "latency": True,
        "scores": False,
    }
    assert render_report("fraud", done).count(">no data<") == 1
