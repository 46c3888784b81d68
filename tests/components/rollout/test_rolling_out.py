import json
import os
import signal

import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout import rolling_out
from modelyard.components.rollout.rolling_out import Cancelled, rollout_model
from modelyard.components.serving.target import TargetChanged
from modelyard.components.storage.locks import exclusive_lock
from modelyard.components.tracking.connection import client
from tests.components.rollout.conftest import PLAN


@pytest.fixture
def at_target(trial, laptop, monkeypatch, tmp_path):
    """A target under the name ``simulated``, and the arguments of a rollout there that ends at once: version 1 is in charge."""
    at = trial()
    monkeypatch.setattr(rolling_out, "open_target", lambda name: {"simulated": at.target}[name])
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
    assert (at.in_charge, at.target.canary.share) == ("1", 5)
    done = at.run()
    assert done.decision == "pass"
    assert any("Goes on" in event["text"] for event in done.events)


def test_a_run_that_cannot_be_written_to_does_not_undo_the_rollout(at_target, monkeypatch, capsys):
    log = rolling_out._log

    def lose_the_server(*arguments):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setattr("modelyard.components.tracking.connection._FIRST_CALL_RETRIES", "0")
        log(*arguments)

    monkeypatch.setattr(rolling_out, "_log", lose_the_server)
    assert at_target(run_id="a" * 32).decision == "pass"
    assert "lacks the rollout's report" in capsys.readouterr().out
