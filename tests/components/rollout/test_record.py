import json
import threading
from dataclasses import replace

import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout import record
from modelyard.components.rollout.increments import Increment
from modelyard.components.rollout.record import CANARY, MOST_POINTS, STABLE, Notes, Progress, Record, TakenOver, point_of
from modelyard.components.serving.target import Counts, TargetChanged
from tests.support.simulated_target import SimulatedTarget, SimulatedTime
from tests.support.waiting import until


@pytest.fixture
def target() -> SimulatedTarget:
    return SimulatedTarget(SimulatedTime())


def notes(target: SimulatedTarget, token: str) -> Notes:
    return Notes(target, "fraud", token=token, lease_seconds=60, now=target.time)


def progress() -> Progress:
    made = Progress("3", "blake3:3", "/models/3", {"percents": [5]})
    made.keep_counts(CANARY, Counts(answered=4))
    made.add(CANARY, replace(Increment(), answered=3, failed=1))
    return made


def test_a_record_is_read_back_as_it_was_written(target):
    kept = Record({"token": "a", "until": 1.5}, progress(), {"reason": "slow"}, [{"action": "reject"}])
    record.write(target, "fraud", kept)
    found = record.read(target, "fraud")
    assert json.dumps(found.to_json()) == json.dumps(kept.to_json())
    assert found.rollout.counts_before(CANARY) == Counts(answered=4)
    assert found.rollout.counts_before(STABLE) is None
    assert found.rollout.total(CANARY) == replace(Increment(), answered=3, failed=1)


def test_a_record_of_another_release_is_refused(target):
    target.write_record("fraud", {"format_version": 2})
    with pytest.raises(InvalidInput, match="format_version"):
        record.read(target, "fraud")


def test_a_holder_that_is_alive_keeps_others_out(target):
    first = notes(target, "first")
    first.claim(target.time.sleep)

    def first_looks(seconds):
        target.time.sleep(seconds / 2)
        first.write(progress())
        target.time.sleep(seconds / 2)

    with pytest.raises(TargetChanged, match="another rollout of 'fraud' is under way"):
        notes(target, "second").claim(first_looks)
    first.write(progress())


def renewed(target: SimulatedTarget, since: int) -> None:
    """Returns once the record was written again."""
    until(lambda: record.read(target, "fraud").revision > since)


def test_a_holder_that_waits_for_minutes_is_alive(target):
    first = Notes(target, "fraud", token="first", lease_seconds=0.03, now=target.time)
    first.claim(target.time.sleep)
    with first.kept_alive():
        target.time.sleep(600)
        renewed(target, record.read(target, "fraud").revision)
        assert record.read(target, "fraud").holder == {"token": "first", "until": target.time() + 0.03}
    first.write(progress())


def test_a_target_that_was_away_for_a_moment_is_told_then(target):
    first = Notes(target, "fraud", token="first", lease_seconds=0.03, now=target.time)
    first.claim(target.time.sleep)
    target.unreachable = {"read_record"}
    with first.kept_alive():
        calls = len(target.calls)
        until(lambda: len(target.calls) >= calls + 2)
        target.unreachable = set()
        renewed(target, record.read(target, "fraud").revision)


def test_a_claim_that_was_taken_over_is_not_renewed_and_the_next_write_says_so(target):
    first = Notes(target, "fraud", token="first", lease_seconds=0.03, now=target.time)
    first.claim(target.time.sleep)
    with first.kept_alive():
        second = notes(target, "second")
        second.claim(target.time.sleep, alone=True)
        until(lambda: all(thread.name != "renewal of the claim" for thread in threading.enumerate()))
        with pytest.raises(TakenOver):
            first.write(progress())
    assert record.read(target, "fraud").holder["token"] == "second"


def test_a_holder_that_is_dead_is_waited_for_and_followed(target):
    notes(target, "first").claim(target.time.sleep)
    began = target.time()
    second = notes(target, "second")
    second.claim(target.time.sleep)
    assert target.time() - began == 60
    second.write(progress())


def test_a_holder_that_must_be_dead_is_followed_at_once(target):
    first = notes(target, "first")
    first.claim(target.time.sleep)
    notes(target, "second").claim(target.time.sleep, alone=True)
    with pytest.raises(TargetChanged, match="took over"):
        first.write(progress())


def test_a_record_that_was_let_go_can_be_taken_at_once(target):
    first = notes(target, "first")
    first.claim(target.time.sleep)
    first.write(progress())
    first.release()
    began = target.time()
    assert notes(target, "second").claim(target.time.sleep).version == "3"
    assert target.time() == began


def test_what_a_rollback_wrote_meanwhile_is_kept(target):
    mine = notes(target, "first")
    mine.claim(target.time.sleep)
    mine.add_pending({"action": "reject"})
    mine.write(progress())
    assert record.read(target, "fraud").pending == [{"action": "reject"}]


def test_a_long_timeline_stays_small_and_loses_no_request():
    made = Progress("3", "blake3:3", "/models/3", {})
    looks = 3 * MOST_POINTS
    seen = replace(Increment(), answered=5, failed=1, latency=(0, 6, *Increment().latency[2:]))
    for look in range(looks):
        point = {"at": float(look), "step": look // MOST_POINTS, STABLE: point_of(seen), CANARY: point_of(seen), "log_e": {}}
        made.add_point(point)
    assert len(made.timeline) <= MOST_POINTS
    for step in range(3):
        points = [point for point in made.timeline if point["step"] == step]
        assert sum(point[CANARY]["answered"] for point in points) == 5 * MOST_POINTS
        assert sum(point[STABLE]["latency"]["1"] for point in points) == 6 * MOST_POINTS
    times = [point["at"] for point in made.timeline]
    assert times == sorted(times)
    assert times[-1] == looks - 1
