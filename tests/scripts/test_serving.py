"""``modelyard serve|status|stop|rollback|promote|split`` with real processes and a real registry."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.errors import NotAvailable
from modelyard.components.rollout import record
from modelyard.components.rollout.record import Progress
from modelyard.components.serving.local.processes import find
from modelyard.components.serving.local.target import Health, LocalTarget
from modelyard.components.serving.target import Arm, ServedModel, ServingState
from modelyard.components.storage.locks import exclusive_lock
from modelyard.scripts import cli, serving
from modelyard.scripts.serving import _described_health, _golden_row
from tests.services.servers import free_port
from tests.support.signed_models import make_signed_model
from tests.support.simulated_target import SimulatedTarget, SimulatedTime

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A home whose registry has two versions of fraud, the first one champion, and one of loans, whose model was altered."""
    home = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from modelyard.components.tracking.connection import client

        registry = client()
        for name, seed in (("fraud", 1), ("fraud", 2), ("loans", 3)):
            signed = make_signed_model(home / "made" / str(seed), seed=seed, model_name=name)
            place = home / "models" / name / signed.model_digest.removeprefix("blake3:")
            shutil.copytree(home / "made" / str(seed) / "signed", place)
            if seed != 2:
                registry.create_registered_model(name)
            version = registry.create_model_version(name, str(place), tags={"digest": signed.model_digest})
            if seed != 2:
                registry.set_registered_model_alias(name, "champion", version.version)
        (place / "modelyard.json").write_text("{}")
    yield home
    LocalTarget(home).stop()
    assert find(str(home)) == []


@pytest.fixture
def home(released, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(released))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return released


@pytest.fixture
def cluster(home, monkeypatch):
    """Stands for a cluster; ``asked`` is how it was to serve when it was opened last."""
    target = SimulatedTarget(SimulatedTime())
    target.mirrors = False

    def opened(name, serving):
        target.asked = serving
        return {"kserve": target}[name]

    monkeypatch.setattr(serving, "open_target", opened)
    return target


def run(*words, status=cli.OK):
    found = cli.main([str(word) for word in words])
    assert found == status


def test_a_model_is_served_looked_at_split_rolled_back_and_stopped(home, capsys):
    port = free_port()
    run("serve", "fraud", "--port", port)
    shown = capsys.readouterr().out
    assert f"fraud  http://127.0.0.1:{port}/v1/models/fraud:predict" in shown
    assert re.search(r"^  stable +version 1 +100 % +ready", shown, re.MULTILINE)
    (line,) = [line for line in shown.splitlines() if line.startswith("curl ")]
    answer = json.loads(subprocess.check_output(shlex.split(line)))
    assert 0 < answer["predictions"][0]["probability"] < 1
    served = find(str(home))

    run("serve", "fraud")
    assert find(str(home)) == served
    capsys.readouterr()

    run("status")
    shown = capsys.readouterr().out
    assert re.search(r"^  stable +version 1 +100 % +ready +1 answered, 0 rejected, 0 failed$", shown, re.MULTILINE)
    assert re.search(rf"^proxy +Envoy on 127.0.0.1:{port}, pid \d+$", shown, re.MULTILINE)
    assert re.search(r"^supervisor +pid \d+$", shown, re.MULTILINE)

    run("split", "fraud", "--version", 2, "--share", 30)
    shown = capsys.readouterr().out
    assert re.search(r"^  stable +version 1 +70 % ", shown, re.MULTILINE)
    assert re.search(r"^  canary +version 2 +30 % +ready", shown, re.MULTILINE)
    run("split", "fraud", "--version", 2, "--share", 10, "--mirror")
    assert re.search(r"^  canary +version 2 +copy of 10 % +ready", capsys.readouterr().out, re.MULTILINE)
    run("status", "fraud", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["fraud"]["canary"]["mirrored"] is True
    assert found["models"]["fraud"]["stable"]["counts"]["answered"] == 1
    assert found["models"]["fraud"]["url"] == f"http://127.0.0.1:{port}"
    assert found["port"] == port
    assert {found["supervisor"], found["proxy"], *(one["pid"] for one in found["predictors"].values())} == {
        process.pid for process in find(str(home))
    }
    run("split", "fraud", "--end")
    assert "canary" not in capsys.readouterr().out

    run("split", "fraud", "--version", 2, "--share", 50)
    # The registry promotes only in place of the version that was judged against.
    run("promote", "fraud", status=cli.FAILED)
    assert "judged against no champion, but the champion is version 1" in capsys.readouterr().err
    assert LocalTarget(home).state("fraud").canary.share == 50
    run("promote", "fraud", "--version", 1)
    assert capsys.readouterr().out == "fraud: version 1 is in charge\n"
    run("split", "fraud", "--end")

    run("serve", "fraud", "--version", 2)
    assert re.search(r"^  previous +version 1 ", capsys.readouterr().out, re.MULTILINE)
    run("rollback", "fraud", "--reason", "too many complaints")
    assert "fraud: version 1 is in charge, version 2 was taken back" in capsys.readouterr().out
    promoted = Progress("2", LocalTarget(home).state("fraud").previous.digest, "", {}, decision="pass", outcome="promoted")
    notes = record.read(LocalTarget(home), "fraud")
    notes.rollout = promoted
    notes.pending = [{"action": "reject", "version": "2", "digest": "", "replacing": "", "reason": ""}]
    record.write(LocalTarget(home), "fraud", notes)
    run("status", "fraud")
    shown = capsys.readouterr().out
    assert "previous  version 2, taken back: too many complaints\n" in shown
    assert "modelyard serve fraud --version 2 serves it again" in shown
    assert "modelyard rollback" not in shown
    assert "rollout   version 2: pass, promoted; taken back since: too many complaints\n" in shown
    assert "registry  not told yet: version 2 is to be sent back\n" in shown
    assert "the next rollout, rollback or modelyard serve fraud tells it" in shown
    run("status", "fraud", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["fraud"]["rolled_back"]["reason"] == "too many complaints"
    assert found["models"]["fraud"]["registry_pending"] == notes.pending
    assert len(found["latency_edges"]) + 1 == len(found["models"]["fraud"]["stable"]["counts"]["latency"])
    assert len(found["score_edges"]) + 1 == len(found["models"]["fraud"]["stable"]["counts"]["scores"])
    LocalTarget(home).write_record("fraud", None)

    for _ in range(2):
        run("stop")
        assert find(str(home)) == []
    capsys.readouterr()
    run("status")
    shown = capsys.readouterr().out
    assert "stopped: modelyard serve brings back what was served" in shown
    assert "version 1" in shown
    run("serve")
    shown = capsys.readouterr().out
    assert re.search(r"^  stable +version 1 +100 % +ready", shown, re.MULTILINE)
    assert f"127.0.0.1:{port}/" in shown


def test_a_refused_version_is_told_with_its_reason_and_exit_code(home, capsys):
    run("serve", "loans", status=cli.FAILED)
    assert "altered" in capsys.readouterr().err
    run("split", "fraud", "--version", 1, "--share", 10, status=cli.BAD_INPUT)
    assert "it is in charge already" in capsys.readouterr().err


def test_the_status_shows_why_a_version_failed_and_how_the_last_rollout_ended(home, capsys):
    run("serve", "fraud", "--port", free_port())
    target = LocalTarget(home)
    digest = target.state("fraud").stable.model.digest
    target.start_canary("fraud", ServedModel("9", "blake3:" + "0" * 64, str(target.model_directory("fraud"))))
    rollout = Progress("9", digest, "", {}, decision="fail", outcome="rolled_back", reasons=["it is slow", "it errs"])
    record.write(target, "fraud", record.Record(rollout=rollout))
    capsys.readouterr()
    run("status", "fraud")
    shown = capsys.readouterr().out
    assert re.search(r"^  canary +version 9 +0 % +failed\n +.*another version", shown, re.MULTILINE)
    assert "  rollout   version 9: fail, rolled back: it is slow; it errs\n" in shown
    run("status", "--json")
    found = json.loads(capsys.readouterr().out)["models"]["fraud"]
    assert found["rollout"]["reasons"] == ["it is slow", "it errs"]
    assert found["canary"]["failed"] is True
    assert found["stable"]["model"]["digest"] == digest
    canary = target.state("fraud").canary.model.digest
    watching = record.Record(rollout=Progress("9", canary, "", {}, phase="watching"))
    target.write_record("fraud", watching.to_json())
    with exclusive_lock(home / "serving" / "fraud.rollout.lock"):
        run("status", "fraud")
        assert "  rollout   version 9: watching\nproxy" in capsys.readouterr().out
    run("status", "fraud")
    assert (
        "  rollout   version 9: watching\n            interrupted, has 0 % of the traffic: run the release again to go on, "
        "or modelyard split fraud --end\n"
    ) in capsys.readouterr().out
    target.roll_back("fraud")
    run("status", "fraud")
    assert "            interrupted: run the release again to go on\n" in capsys.readouterr().out
    target.write_record("fraud", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "nobody"], "model = 'nobody': the registry has no champion"),
        (["serve", "fraud", "--version", "77"], "no such version"),
        (["serve", "--version", "1"], "name the model as well"),
        (["serve", "fraud", "--port", "70000"], "port = 70000"),
        (["serve", "../fraud"], "model_name"),
        (["status", "nobody"], "it is not served here"),
        (["rollback", "nobody"], "nobody"),
        (["split", "nobody", "--version", "1", "--share", "5"], "no version in charge"),
        (["split", "fraud", "--share", "5"], "give --version and --share, or --end"),
        (["split", "fraud", "--version", "2", "--share", "101"], "--share = 101"),
        (["split", "fraud", "--end", "--share", "5"], "--end"),
        (["split", "nobody", "--end"], "it is not served here; what is: fraud"),
        (["promote", "fraud"], "no version of 'fraud' is on trial"),
        (["promote", "fraud", "--version", "9"], "version = '9'"),
        (["status", "fraud", "--namespace", "models"], "give --target kserve with it"),
        (["status", "--target", "kserve"], "name the one to show: modelyard status NAME --target kserve"),
        (["status", "nobody", "--target", "kserve"], "it is not served there"),
        (["split", "fraud", "--version", "2", "--share", "5", "--mirror", "--target", "kserve"], "cannot copy traffic"),
        (["split", "nobody", "--version", "2", "--share", "5", "--target", "kserve"], "promote nobody --version"),
    ],
)
def test_bad_input_is_one_clear_line(home, words, message, capsys, cluster):
    run(*words, status=cli.BAD_INPUT)
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("modelyard: ")
    assert message in line


def test_what_a_cluster_serves_is_looked_at_split_promoted_and_rolled_back(home, cluster, capsys):
    there = ("--target", "kserve", "--namespace", "models")
    run("promote", "fraud", "--version", 1, *there)
    assert cluster.asked == {"namespace": "models"}
    run("status", "fraud", *there)
    shown = capsys.readouterr().out
    assert re.search(r"^  stable +version 1 +100 %  ready$", shown, re.MULTILINE)
    assert "proxy" not in shown
    run("split", "fraud", "--version", 2, "--share", 20, *there)
    assert re.search(r"^  canary +version 2 +20 %  ready$", capsys.readouterr().out, re.MULTILINE)
    notes = record.read(cluster, "fraud")
    notes.rollout = Progress("2", cluster.canary.model.digest, "", {})
    record.write(cluster, "fraud", notes)
    run("status", "fraud", *there)
    assert "modelyard split fraud --end --target kserve --namespace models" in capsys.readouterr().out
    notes = record.read(cluster, "fraud")
    notes.holder = {"token": "somebody", "until": time.time() + 60}
    notes.promoted = {"model": {"version": "2"}, "answer": None}
    record.write(cluster, "fraud", notes)
    run("status", "fraud", *there)
    shown = capsys.readouterr().out
    assert "interrupted" not in shown
    assert "promotion of version 2, half done: modelyard promote fraud --target kserve --namespace models" in shown
    begun = {"from": asdict(cluster.state("fraud").stable.model), "to": None, "trial": False, "answer": None}
    cluster.write_record("fraud", {**cluster.read_record("fraud"), "promoted": {}, "rolled_back": begun})
    run("status", "fraud", *there)
    shown = capsys.readouterr().out
    assert "rollback of version 1, half done: modelyard rollback fraud --target kserve --namespace models finishes it" in shown
    cluster.write_record("fraud", None)
    run("status", "fraud", "--json", *there)
    found = json.loads(capsys.readouterr().out)["models"]["fraud"]
    assert (found["canary"]["share"], found["stable"]["counts"]) == (20, None)
    run("rollback", "fraud", *there)
    assert "fraud: version 1 is in charge, version 2 was taken back" in capsys.readouterr().out
    cluster.stable.ready, cluster.stable.reason = False, "no node has a free GPU"
    run("status", "fraud", *there, status=cli.FAILED)
    assert "no node has a free GPU" in capsys.readouterr().out


@pytest.mark.parametrize("away", [False, True])
def test_a_version_that_is_not_ready_in_time_is_not_left_on_trial(home, cluster, capsys, away):
    run("promote", "fraud", "--version", 1, "--target", "kserve", "--namespace", "models")
    work = cluster.start_canary

    def wait_in_vain(*arguments):
        work(*arguments)
        cluster.unreachable = {"roll_back"} if away else set()
        raise NotAvailable("waited 900 s in vain")

    cluster.start_canary = wait_in_vain
    split = ("split", "fraud", "--version", 2, "--share", 20, "--target", "kserve", "--namespace", "models")
    run(*split, status=cli.NOT_AVAILABLE)
    shown = capsys.readouterr().err
    assert "waited 900 s in vain" in shown
    assert (cluster.canary is not None) == away
    assert ("modelyard split fraud --end --target kserve --namespace models" in shown) == away
    # One that was on trial before stays so.
    cluster.unreachable, cluster.start_canary = set(), work
    run(*split)
    cluster.start_canary = wait_in_vain
    run(*split, status=cli.NOT_AVAILABLE)
    assert cluster.canary.share == 20


def test_where_nothing_was_served_there_is_nothing_to_bring_back_or_to_stop(tmp_path, monkeypatch, capsys):
    # --home sets it for the whole process.
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    run("status", "--home", tmp_path / "new")
    assert "nothing is served here" in capsys.readouterr().out
    run("stop", "--home", tmp_path / "new")
    run("serve", "--home", tmp_path / "new", status=cli.BAD_INPUT)
    assert "nothing was served here yet" in capsys.readouterr().err
    assert not (tmp_path / "new" / "serving").exists()


def test_the_status_shows_restarts_and_what_runs_without_a_state():
    restarted = {"fraud-v1-a": {"pid": 7, "port": 1, "crashes": 3, "log": "/log"}, "fraud-v2-b": {"crashes": 0}}
    shown = "\n".join(_described_health(Health(True, 8080, 1, 2, restarted, ""), ["fraud"]))
    assert "fraud-v1-a: 3 since the supervisor started (log: /log)" in shown
    assert "fraud-v2-b" not in shown
    (line,) = _described_health(Health(False, 8080, 1, 2, {}, "state.json is gone"), [])
    assert line == "problem     state.json is gone"


def test_a_look_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from modelyard.scripts import cli; cli.main(['status'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'mlflow', 'kserve', 'polars', 'numpy', 'kfp'}))"
    )
    environment = {**os.environ, "MODELYARD_HOME": str(tmp_path)}
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert shown.splitlines()[-1] == ""


def test_the_row_to_ask_about_has_its_categories_by_name_and_its_gaps_empty(tmp_path):
    features = (Feature("amount"), Feature("country", ("de", "fr")), Feature("age"), Feature("city", ("x",)))
    write_spec(tmp_path, ModelSpec(features, label="fraud", model_file="model.ubj", threshold=0.5))
    golden = {"features": [], "rows": [[0.1234567890123, 1.0, None, None]], "scores": [0.5]}
    Path(tmp_path, "golden_rows.json").write_text(json.dumps(golden))
    assert _golden_row(tmp_path) == {"amount": 0.1234568, "country": "fr", "age": None, "city": None}


def test_a_version_in_charge_that_does_not_answer_is_told_with_its_log_and_what_to_do(tmp_path, monkeypatch, capsys):
    model = ServedModel("3", "blake3:3", "/models/3")
    stable = Arm(model, 100, ready=False, failed=True, reason="it crashed 5 times\nTraceback")
    logs = {"fraud-v3-abc": {"log": "/logs/fraud-v3-abc.log"}, "fraud-v30-abc": {"log": "/logs/other.log"}}
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    monkeypatch.setattr(LocalTarget, "start", lambda self: None)
    monkeypatch.setattr(LocalTarget, "model_names", lambda self: ["fraud"])
    monkeypatch.setattr(LocalTarget, "state", lambda self, name: ServingState(name, stable, previous=model))
    monkeypatch.setattr(LocalTarget, "health", lambda self: Health(True, 8080, 1, 2, logs, ""))
    run("serve", status=cli.FAILED)
    assert capsys.readouterr().err == (
        "modelyard: version 3 of 'fraud' does not answer: it crashed 5 times. Log: /logs/fraud-v3-abc.log. "
        "Try again with modelyard serve fraud, or serve another version: modelyard rollback fraud\n"
    )
