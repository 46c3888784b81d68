import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.registry import versions
from modelyard.components.rollout import rolling_out
from modelyard.components.rollout.record import is_held
from modelyard.components.rollout.report import render_report, timeline_of
from modelyard.components.rollout.rolling_out import Cancelled, rollout_model
from modelyard.components.serving.target import ServedModel, TargetChanged
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage.locks import exclusive_lock
from modelyard.components.tracking.connection import client
from tests.components.rollout.conftest import PLAN
from tests.support.simulated_target import Killed


@pytest.fixture
def at_target(trial, laptop, monkeypatch, tmp_path):
    """A target under the name ``simulated``, and the arguments of a rollout there that ends at once: version 1 is in charge."""
    at = trial()
    monkeypatch.setattr(rolling_out, "open_target", lambda name, serving, *, watched: {"simulated": at.target}[name])
    model = laptop.versions["1"]
    arguments = {"model_name": "fraud", "target": "simulated", "digest": model.digest, "uri": model.uri, "version": "1", **PLAN}
    return lambda **changes: rollout_model(tmp_path / "report.html", tmp_path / "timeline.json", **{**arguments, **changes})


def test_report_and_timeline_are_written(at_target, tmp_path):
    done = at_target()
    assert (done.decision, done.outcome) == ("pass", "promoted")
    assert done.reasons == "version 1 is in charge already"
    assert "version 1 is in charge already" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "timeline.json").read_text())["decision"] == "pass"


def test_a_run_gets_the_decision_and_the_report(at_target, tmp_path):
    tracking = client()
    experiment = tracking.create_experiment("fraud", artifact_location=str(tmp_path / "artifacts"))
    run_id = tracking.create_run(experiment).info.run_id
    at_target(run_id=run_id)
    assert tracking.get_run(run_id).data.tags["modelyard.outcome"] == "promoted"
    folder = tmp_path / "artifacts" / run_id / "artifacts" / "rollout"
    assert (folder / "report.html").read_text() == (tmp_path / "report.html").read_text()
    assert (folder / "timeline.json").exists()


def test_a_plan_that_cannot_be_done_is_refused_before_anything_is_opened(at_target):
    with pytest.raises(InvalidInput, match="steps"):
        at_target(steps=[], target="unknown")


def test_shadow_traffic_is_refused_at_once_where_none_can_be_sent(trial):
    at = trial()
    at.target.mirrors = False
    with pytest.raises(InvalidInput, match="shadow_seconds = 60"):
        at.run(shadow_seconds=60)
    assert at.target.calls == []


@pytest.mark.parametrize(("target", "limits", "grace"), [("kserve", {}, 300.0), ("kserve", {"ready_grace_seconds": 5}, 5.0)])
def test_a_cluster_gets_its_own_options_and_time_to_start_a_pod_anew(trial, monkeypatch, tmp_path, target, limits, grace):
    at, asked = trial(), []
    monkeypatch.setattr(
        rolling_out, "open_target", lambda name, serving, *, watched: asked.append((name, serving)) or at.target
    )
    model = at.laptop.versions["3"]
    at.target.start_canary("fraud", at.laptop.versions["2"])
    serving = {"namespace": "models", "gpus": 1}
    with pytest.raises(TargetChanged, match="modelyard split fraud --end --target kserve --namespace models"):
        rollout_model(
            tmp_path / "report.html",
            tmp_path / "timeline.json",
            model_name="fraud",
            version="3",
            digest=model.digest,
            uri=model.uri,
            target=target,
            serving=serving,
            **{**PLAN, "limits": limits},
        )
    assert asked == [("kserve", serving)]
    at.target.roll_back("fraud")
    plans = []
    monkeypatch.setattr(rolling_out, "run_rollout", lambda target, plan, **details: plans.append(plan) or at.run("1"))
    rollout_model(
        tmp_path / "report.html",
        tmp_path / "timeline.json",
        model_name="fraud",
        version="1",
        digest=model.digest,
        uri=model.uri,
        target=target,
        **{**PLAN, "limits": limits},
    )
    assert plans[0].limits.ready_grace_seconds == grace


def test_a_rollout_of_another_process_on_this_machine_is_not_waited_for(trial, laptop):
    at = trial()
    folder = laptop.home / "serving"
    folder.mkdir()
    # The kernel tells apart who opened the lock, not which process.
    with exclusive_lock(folder / "fraud.rollout.lock"), pytest.raises(TargetChanged, match="under way on this machine"):
        at.run()
    assert at.target.calls == []
    assert at.run().decision == "pass"


def test_a_rollout_that_is_told_to_stop_says_what_it_leaves_and_goes_on_later(trial):
    at = trial()
    at.time.after(35, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Cancelled, match="modelyard split fraud --end"):
        at.run()
    assert signal.getsignal(signal.SIGTERM) == before
    assert (at.in_charge, at.target.canary.share) == ("1", 0)
    done = at.run()
    assert done.decision == "pass"
    assert [percent for _, percent, _ in at.target.history] == [5, 0, 5, 25, 50, 100, 100]
    told = [event["text"] for event in done.events]
    assert any("Goes on" in text for text in told)
    assert any("told to stop: the canary gets no traffic" in text for text in told)


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_it_stops_a_rollout_goes_on_all_the_same(trial, before):
    at = trial()
    work = at.target.set_share

    def die(name, percent, **details):
        if percent:
            return work(name, percent, **details)
        if not before:
            work(name, percent)
        raise Killed

    at.target.set_share = die
    at.time.after(35, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Killed):
        at.run()
    at.target.set_share = work
    assert at.run().decision == "pass"


def test_whether_a_process_is_at_work_on_a_rollout_can_be_asked(trial, laptop):
    at = trial()
    held = []
    at.time.after(35, lambda: held.append(is_held(laptop.home, "fraud")))
    assert not is_held(laptop.home, "fraud")
    assert at.run().decision == "pass"
    assert held == [True]
    assert not is_held(laptop.home, "fraud")


def tampered(model: ServedModel, folder: Path) -> ServedModel:
    """A version whose files are others than those that were signed."""
    copy = folder / Path(model.uri).name
    shutil.copytree(model.uri, copy)
    (copy / "model.ubj").write_bytes(b"other")
    return replace(model, uri=str(copy))


@pytest.fixture
def tamper(laptop, monkeypatch, tmp_path):
    """Alters the files of a version, wherever the registry looks for them."""
    bring = versions.bring

    def alter(number: str) -> None:
        bad = tampered(laptop.versions[number], tmp_path)

        def bring_the_bad_one(version, folder):
            if str(version.version) == number:
                verify_model(Path(bad.uri), model_name="fraud", digest=bad.digest)
            return bring(version, folder)

        monkeypatch.setattr(versions, "bring", bring_the_bad_one)

    return alter


@pytest.mark.parametrize("under_way", [False, True])
def test_a_version_that_was_tampered_with_is_rolled_back_with_its_reason_in_the_report(trial, tamper, under_way):
    at = trial()
    if under_way:
        at.target.kill(60, before=True)
        with pytest.raises(Killed):
            at.run()
        at.target.revive()
        assert at.target.canary.share > 0
    tamper("3")
    done = at.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert "version 3 was refused" in done.reasons[0]
    assert (at.in_charge, at.target.canary) == ("1", None)
    assert "refused" in client().get_model_version("fraud", "3").tags["rejected_reason"]
    assert "version 3 was refused" in render_report("fraud", done)
    timeline_of("fraud", done)


def test_a_version_in_charge_that_was_tampered_with_stays_an_error(trial, tamper):
    at = trial()
    tamper("1")
    with pytest.raises(VerificationFailed):
        at.run("1")
    assert at.in_charge == "1"


def test_with_a_champion_that_was_tampered_with_no_canary_keeps_its_traffic(trial, tamper):
    at = trial()
    at.target.kill(60, before=True)
    with pytest.raises(Killed):
        at.run()
    at.target.revive()
    tamper("1")
    with pytest.raises(VerificationFailed):
        at.run()
    assert at.target.canary is None


def test_a_run_that_cannot_be_written_to_does_not_undo_the_rollout(at_target, monkeypatch, capsys):
    log = rolling_out._log

    def lose_the_server(*arguments):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        log(*arguments)

    monkeypatch.setattr(rolling_out, "_log", lose_the_server)
    assert at_target(run_id="a" * 32).decision == "pass"
    assert "lacks the rollout's report" in capsys.readouterr().out
