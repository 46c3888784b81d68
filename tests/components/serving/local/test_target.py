"""The target with its real processes: supervisor, predictors and Envoy."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.predictions import writer
from modelyard.components.predictor import configuration
from modelyard.components.serving.local import target as local_target
from modelyard.components.serving.local.predictor_process import PredictorProcess
from modelyard.components.serving.local.state import Desired, make_folder, read_desired, read_observed, write_desired
from modelyard.components.serving.local.supervisor import LOCK_FILE
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.target import ArmCounts, RecordChanged, ServedModel, TargetChanged
from tests.components.serving.local.conftest import until
from tests.services.fixtures import rclone_s3  # noqa: F401
from tests.services.servers import free_port
from tests.support.signed_models import attestations, sign_model, train_small_model

pytestmark = pytest.mark.server


def test_a_release_from_the_first_version_to_a_rollback_loses_no_request(new_yard):
    yard = new_yard()
    target, models = yard.target(), yard.models
    assert target.state("fraud").stable is None
    target.start_canary("fraud", models["1"])
    first = target.state("fraud")
    assert first.stable is None
    assert (first.canary.ready, first.canary.share) == (True, 0)
    target.promote("fraud", models["1"].digest)
    with yard.traffic() as traffic:
        target.start_canary("fraud", models["2"])
        before = target.counts("fraud")
        assert before.canary.requests == 0
        for share in (5, 50, 20):
            target.set_share("fraud", share)
            state = target.state("fraud")
            assert (state.stable.share, state.canary.share) == (100 - share, share)
        until(lambda: traffic.answered["2"] > 20)
        counts = target.counts("fraud")
        assert counts.stable.requests > before.stable.requests
        assert counts.canary.answered > 15
        assert counts.canary.failed == counts.canary.rejected == 0

        target.promote("fraud", models["2"].digest)
        state = target.state("fraud")
        assert (state.stable.model, state.stable.share, state.canary) == (models["2"], 100, None)
        assert state.previous == models["1"]
        # A promoted arm is the same arm: what it has done is not forgotten.
        assert target.counts("fraud").stable.answered >= counts.canary.answered

        target.start_canary("fraud", models["3"])
        target.set_share("fraud", 40)
        until(lambda: traffic.answered["3"] > 20)
        target.roll_back("fraud")
        third = traffic.answered["3"]
        assert target.state("fraud").canary is None
        # Another trial of the same version begins at zero.
        target.start_canary("fraud", models["3"])
        assert target.counts("fraud").canary.requests == 0
        target.restore("fraud", models["1"])
        second = traffic.answered["2"]
        state = target.state("fraud")
        assert (state.stable.model, state.previous) == (models["1"], models["2"])
        until(lambda: len(yard.processes()) == 3)
        done = traffic.total
        until(lambda: traffic.total > done + 50)
        # At most what was in flight came from those that are gone.
        assert traffic.answered["3"] <= third + 3
        assert traffic.answered["2"] <= second + 3
        ones = target.counts("fraud").stable.answered
        until(lambda: target.counts("fraud").stable.answered > ones)
    assert not traffic.failed
    assert not traffic.wrong
    counts = target.counts("fraud").stable
    assert counts.answered == sum(counts.latency) == sum(counts.scores) > ones
    assert 0 < counts.flagged < counts.answered


def test_every_verb_can_be_repeated(yard):
    target, models = yard.serve("1"), yard.models
    target.start_canary("fraud", models["2"])
    canary = yard.predictor("2")
    target.start_canary("fraud", models["2"])
    assert yard.predictor("2") == canary
    for _ in range(2):
        target.set_share("fraud", 10, mirror=True)
        state = target.state("fraud")
        assert (state.stable.share, state.canary.share, state.canary.mirrored) == (100, 10, True)
    for _ in range(2):
        target.promote("fraud", models["2"].digest)
        assert target.state("fraud").previous == models["1"]
    for _ in range(2):
        target.restore("fraud", models["1"])
        assert target.state("fraud").previous == models["2"]
    for _ in range(2):
        target.roll_back("fraud")
    state = target.state("fraud")
    assert (state.stable.model, state.stable.share, state.canary, state.previous) == (models["1"], 100, None, models["2"])
    target.start_canary("fraud", models["1"])
    assert target.state("fraud").canary is None


def test_what_somebody_else_changed_is_said(yard):
    target, models = yard.serve("1"), yard.models
    with pytest.raises(TargetChanged, match="no version of 'fraud' is under trial"):
        target.set_share("fraud", 5)
    with pytest.raises(TargetChanged, match="cannot be promoted"):
        target.promote("fraud", models["2"].digest)
    target.start_canary("fraud", models["2"])
    with pytest.raises(TargetChanged, match="version 2 of 'fraud' is under trial already"):
        target.start_canary("fraud", models["3"])
    assert target.state("fraud").canary.model == models["2"]
    with pytest.raises(InvalidInput, match="percent = 101"):
        target.set_share("fraud", 101)


def altered(yard, folder):
    shutil.copytree(yard.models["2"].uri, folder)
    spec = json.loads((folder / "modelyard.json").read_text())
    (folder / "modelyard.json").write_text(json.dumps({**spec, "threshold": 0.01}))
    return ServedModel("9", yard.models["2"].digest, str(folder))


def replayed(yard, folder):
    shutil.copytree(yard.models["1"].uri, folder)
    return ServedModel("9", yard.models["2"].digest, str(folder))


def unsigned(yard, folder):
    shutil.copytree(yard.models["2"].uri, folder)
    (folder / "model.sig").unlink()
    return ServedModel("9", yard.models["2"].digest, str(folder))


def missing(yard, folder):
    return ServedModel("9", yard.models["2"].digest, str(folder))


def with_other_golden_rows(yard, folder):
    """Signed as it should be, but it does not score its golden rows: only the predictor can tell."""
    model = train_small_model(folder / "model", 9)
    golden = json.loads((model / "golden_rows.json").read_text())
    golden["scores"][0] = 1 - golden["scores"][0]
    (model / "golden_rows.json").write_text(json.dumps(golden))
    signed = sign_model(
        model, **attestations(folder / "inputs", model), signed_model=folder / "signed", model_name="fraud", run_id=""
    )
    return ServedModel("9", signed.model_digest, str(folder / "signed"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (altered, "altered"),
        (replayed, "another version"),
        (unsigned, "not signed"),
        (missing, "nothing is there|existing folder"),
        (with_other_golden_rows, "golden row 0"),
    ],
)
def test_a_model_that_is_refused_fails_with_the_reason_and_the_one_in_charge_goes_on(yard, tmp_path, make, reason):
    target = yard.serve("1")
    model = make(yard, tmp_path / "model")
    target.start_canary("fraud", model)
    canary = target.state("fraud").canary
    assert (canary.ready, canary.failed, canary.share) == (False, True, 0)
    assert re.search(reason, canary.reason), canary.reason
    with pytest.raises(NotAvailable, match="cannot get traffic"):
        target.set_share("fraud", 50)
    with pytest.raises(NotAvailable, match="cannot be served"):
        target.promote("fraud", model.digest)
    assert yard.traffic().ask() == "1"
    target.roll_back("fraud")
    with pytest.raises((VerificationFailed, NotAvailable), match=reason):
        target.restore("fraud", model)
    state = target.state("fraud")
    assert (state.stable.model, state.stable.ready, state.canary) == (yard.models["1"], True, None)


@pytest.mark.parametrize("which", ["predictor", "proxy", "supervisor"])
def test_a_killed_process_comes_back_and_no_answer_is_wrong(yard, which):
    target = yard.serve("1")
    target.start_canary("fraud", yard.models["2"])
    target.set_share("fraud", 50)
    before = target.state("fraud")
    with yard.traffic() as traffic:
        until(lambda: traffic.answered["2"] > 10)
        victim = {"predictor": lambda: yard.predictor("1"), "proxy": yard.proxy, "supervisor": yard.supervisor}[which]()
        assert victim.signal(signal.SIGKILL)
        until(lambda: not victim.alive())
        until(lambda: _whole(target.state("fraud")))
        assert target.state("fraud") == before
        done = traffic.total
        until(lambda: traffic.total > done + 50)
        ones, twos = traffic.answered["1"], traffic.answered["2"]
        until(lambda: traffic.answered["1"] > ones + 10 and traffic.answered["2"] > twos + 10)
    assert not traffic.wrong
    # Only what needs the one that was killed may fail, and nobody talks to the supervisor.
    expected = {
        "predictor": "ConnectionError: 50[234] ",
        "proxy": "Connection|BrokenPipe|RemoteDisconnected",
        "supervisor": "none",
    }
    assert all(re.match(expected[which], failure) for failure in traffic.failed), traffic.failed
    until(lambda: len(yard.processes()) == 4)


def _whole(state):
    return state.stable.ready and state.canary.ready


def test_a_supervisor_that_dies_leaves_its_predictors_to_the_next_one(yard):
    target = yard.serve("1")
    supervisor = yard.supervisor()
    supervisor.signal(signal.SIGKILL)
    until(lambda: not supervisor.alive())
    # Nothing else has changed, so nothing else is said.
    assert target.state("fraud").stable.ready
    supervisor, predictor, proxy = yard.supervisor(), yard.predictor("1"), yard.proxy()
    supervisor.signal(signal.SIGKILL)
    until(lambda: not supervisor.alive())
    # What it left dies too, and its socket with it.
    predictor.signal(signal.SIGKILL)
    (port,) = [arm.port for name, arm in read_observed(yard.folder).arms.items() if "-v1-" in name]
    until(lambda: target.state("fraud").stable.ready and yard.predictor("1") != predictor)
    assert target.state("fraud").stable.url == f"http://127.0.0.1:{port}"
    assert yard.proxy() == proxy
    assert yard.traffic().ask() == "1"


def test_pids_that_others_got_meanwhile_are_left_alone(yard):
    target = yard.serve("1")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        supervisor, predictor = yard.supervisor(), yard.predictor("1")
        for process in (supervisor, predictor, yard.proxy()):
            process.signal(signal.SIGKILL)
        until(lambda: not yard.processes())
        # As after a reboot: the files name pids, which are somebody else's now.
        for path in (
            yard.folder / "observed.json",
            *(yard.folder / "arms").iterdir(),
            yard.folder / "proxy" / "envoy.pid.json",
        ):
            content = path.read_text()
            for process in (supervisor, predictor):
                content = content.replace(f'"pid": {process.pid}', f'"pid": {stranger.pid}')
            path.write_text(content)
        assert str(stranger.pid) in (yard.folder / "observed.json").read_text()
        target.start()
        assert target.state("fraud").stable.ready
        assert yard.traffic().ask() == "1"
        target.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_stop_leaves_nothing_running_and_a_start_brings_everything_back(yard):
    target = yard.serve("1")
    target.start_canary("fraud", yard.models["2"])
    target.set_share("fraud", 30)
    before = target.state("fraud")
    for _ in range(2):
        target.stop()
        assert yard.processes() == []
    stopped = target.state("fraud")
    assert (stopped.stable.model, stopped.canary.model) == (before.stable.model, before.canary.model)
    assert not stopped.stable.ready
    assert "modelyard serve" in stopped.stable.reason
    assert target.counts("fraud") == ArmCounts(None, None)
    for _ in range(2):
        target.start()
        after = target.state("fraud")
        assert (after.stable.share, after.stable.ready, after.canary.share, after.canary.ready) == (70, True, 30, True)


def test_a_damaged_state_is_told_and_what_runs_goes_on_where_it_is(yard, monkeypatch):
    target = yard.serve("1")
    path = yard.folder / "state.json"
    good = path.read_bytes()
    with yard.traffic() as traffic:
        for bad in (good[: len(good) // 2], b"", b"[]", good.replace(b'"running"', b'"walking"')):
            path.write_bytes(bad)
            for verb in (target.state, target.counts, target.roll_back):
                with pytest.raises(InvalidInput, match=r"state\.json.*damaged.*goes on.*modelyard serve NAME"):
                    verb("fraud")
            assert path.read_bytes() == bad
        path.write_bytes(good.replace(b'"format_version": 1', b'"format_version": 2'))
        with pytest.raises(InvalidInput, match="reads version 1"):
            target.state("fraud")
        until(lambda: read_observed(yard.folder).problem is not None)
        done = traffic.total
        until(lambda: traffic.total > done + 20)
        path.write_bytes(good)
        until(lambda: read_observed(yard.folder).problem is None)
        # The other way on: without the file, and the model served anew.
        path.unlink()
        assert re.search("state.json is gone.*modelyard serve NAME.*modelyard stop", target.health().problem)
        monkeypatch.setenv("MODELYARD_SERVING_PORT", str(free_port()))
        target.restore("fraud", yard.models["2"])
        until(lambda: len(yard.processes()) == 3)
        assert target.state("fraud").stable.model == yard.models["2"]
    assert not traffic.failed
    assert not traffic.wrong
    path.write_bytes(b"{")
    target.stop()
    assert yard.processes() == []
    assert path.read_bytes() == b"{"
    path.unlink()


def test_a_port_in_use_is_told_and_another_one_works(new_yard):
    yard = new_yard()
    with socket.socket() as other:
        other.bind(("127.0.0.1", yard.port))
        other.listen()
        with pytest.raises(InvalidInput, match=rf"port = {yard.port}: it is in use.*{os.getpid()}.*--port"):
            yard.target().restore("fraud", yard.models["1"])
        assert yard.target().state("fraud").stable is None
        assert yard.processes() == []
        yard.port = free_port()
        target = LocalTarget(yard.home, yard.port)
        target.restore("fraud", yard.models["1"])
    assert target.state("fraud").url == f"http://127.0.0.1:{yard.port}"
    assert yard.traffic().ask() == "1"
    # The environment speaks where nothing runs yet; what runs moves only if it is told to, and only where it can.
    assert yard.target().state("fraud").url == f"http://127.0.0.1:{yard.port}"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InvalidInput, match="cannot move there"):
            LocalTarget(yard.home, other.getsockname()[1]).start()
    assert yard.traffic().ask() == "1"
    yard.port = free_port()
    LocalTarget(yard.home, yard.port).start()
    assert yard.traffic().ask() == "1"


def test_every_setting_of_a_predictor_and_of_its_log_reaches_it(new_yard, monkeypatch):
    tables = f"{configuration.__doc__}{writer.__doc__}"
    variables = set(re.findall(r"^\| ``([A-Z_]+)``", tables, re.MULTILINE)) - {"MODEL_VERSION", "MODEL_DIGEST"}
    assert {"MODEL_THRESHOLD", "MODELYARD_PREDICTION_LOG_DAYS"} <= variables
    yard = new_yard()
    for variable in variables:
        monkeypatch.setenv(variable, "7")
    arm = yard.target()._new_arm("fraud", yard.models["1"])
    assert variables <= arm.environment.keys()


@pytest.mark.parametrize(("log", "cloud"), [("", set()), ("s3://bucket/log", {"AWS_SECRET_ACCESS_KEY"})])
def test_a_supervisor_and_its_predictors_inherit_no_secret_that_they_do_not_need(new_yard, monkeypatch, log, cloud):
    yard, given = new_yard(), []
    monkeypatch.setattr(local_target, "spawn_detached", lambda command, *, environment, folder, log: given.append(environment))
    monkeypatch.setattr(local_target.LocalTarget, "_wait_until", lambda self, *_: self._start_supervisor())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    if log:
        monkeypatch.setenv("MODELYARD_PREDICTION_LOG", log)
    yard.target().start_canary("fraud", yard.models["1"])
    arm = read_desired(yard.folder).models["fraud"].canary
    given.append(PredictorProcess(arm, "fraud", yard.folder)._environment(yard.folder))
    assert [{name for name, value in found.items() if value == "secret"} for found in given] == [cloud, cloud]
    (yard.folder / "state.json").unlink()


def test_a_model_is_fetched_and_verified_before_anybody_else_has_to_wait(new_yard, monkeypatch):
    yard, free = new_yard(), []
    monkeypatch.setattr(local_target.LocalTarget, "_wait_until", lambda *_: None)
    bring = local_target.LocalTarget._bring

    def look_and_bring(self, *model):
        free.append(not (yard.folder / "state.lock").exists())
        return bring(self, *model)

    monkeypatch.setattr(local_target.LocalTarget, "_bring", look_and_bring)
    yard.target().start_canary("fraud", yard.models["1"])
    yard.target().start_canary("fraud", yard.models["1"])
    assert free == [True]
    (yard.folder / "state.json").unlink()


def test_a_supervisor_that_tells_nothing_is_replaced(new_yard, monkeypatch):
    monkeypatch.setattr(local_target, "_MUTE_SECONDS", 0.3)
    yard = new_yard()
    make_folder(yard.folder)
    # As one of another release, which holds the lock and tells what it sees in words of its own.
    mute = subprocess.Popen(
        [sys.executable, "-c", _MUTE, str(yard.folder / LOCK_FILE), "-m", local_target.SUPERVISOR, "--home", str(yard.home)],
        stdout=subprocess.PIPE,
    )
    assert mute.stdout.readline() == b"locked\n"
    reaper = threading.Thread(target=mute.wait)
    reaper.start()
    write_desired(yard.folder, Desired(running=True, port=yard.port))
    assert yard.target().health().supervisor not in (0, mute.pid)
    reaper.join()
    mute.stdout.close()
    assert mute.returncode == -signal.SIGTERM


_MUTE = """
import sys, time
from modelyard.components.storage.locks import exclusive_lock
with exclusive_lock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_be_is_refused(new_yard, port):
    yard = new_yard()
    with pytest.raises(InvalidInput, match=f"port = {port}"):
        LocalTarget(yard.home, port).restore("fraud", yard.models["1"])


_STEP = """
import sys
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.target import ServedModel
target = LocalTarget()
target.start_canary("fraud", ServedModel(*sys.argv[1:]))
target.promote("fraud", sys.argv[2])
print("served", flush=True)
sys.stdin.read()
"""


def test_everything_outlives_the_step_that_started_it_in_a_home_of_any_depth_and_stays_on_loopback(new_yard, tmp_path):
    yard = new_yard(tmp_path / ("a" * 90) / ("b" * 90) / "a home")
    model = yard.models["1"]
    folder = tmp_path / "step"
    folder.mkdir()
    step = subprocess.Popen(
        [sys.executable, "-c", _STEP, model.version, model.digest, model.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "KFP_SECRET": "hidden", "MODELYARD_RUN": "7"},
    )
    assert step.stdout.readline() == b"served\n"
    running = [process for process in yard.processes() if process.pid != step.pid]
    os.killpg(step.pid, signal.SIGKILL)
    step.communicate()
    shutil.rmtree(folder)
    time.sleep(0.5)
    assert len(running) == 3
    assert all(process.alive() for process in running)
    assert yard.traffic().ask() == "1"
    assert yard.target().counts("fraud").stable.answered == 1
    for identity in running:
        process = psutil.Process(identity.pid)
        assert process.cwd().startswith(str(yard.home))
        assert not {"KFP_SECRET", "MODELYARD_RUN"} & process.environ().keys()
        assert all(not file.path.startswith(str(folder)) for file in process.open_files())
        for connection in (
            process.net_connections("inet") if hasattr(process, "net_connections") else process.connections("inet")
        ):
            assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip == "127.0.0.1"
    predictor = psutil.Process(yard.predictor("1").pid).environ()
    assert predictor["OMP_NUM_THREADS"] == "1"
    assert predictor["TMPDIR"].startswith(str(yard.folder))
    assert (yard.folder.stat().st_mode & 0o777) == 0o700


def test_everything_ends_with_its_folder(new_yard):
    yard = new_yard()
    yard.target().restore("fraud", yard.models["1"])
    assert len(yard.processes()) == 3
    shutil.rmtree(yard.folder)
    until(lambda: yard.processes() == [])


@pytest.mark.slow
def test_a_remote_model_is_kept_here_for_as_long_as_it_may_be_needed(yard, rclone_s3, monkeypatch):  # noqa: F811
    from modelyard.components.storage.uris import upload_directory

    target = yard.serve("1")
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    digest = yard.models["2"].digest.removeprefix("blake3:")
    remote = ServedModel("2", yard.models["2"].digest, f"s3://bucket/fraud/{digest}")
    upload_directory(yard.models["2"].uri, remote.uri)
    copy = yard.folder / "models" / digest
    target.start_canary("fraud", remote)
    target.promote("fraud", remote.digest)
    assert yard.traffic().ask() == "2"
    target.restore("fraud", yard.models["3"])
    # The store may be gone by now.
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    # A copy that was damaged here would be fetched again, so an intact one is what is used.
    assert target.state("fraud").previous == remote
    assert copy.is_dir()
    target.restore("fraud", remote)
    assert yard.traffic().ask() == "2"
    for version in ("1", "3"):
        target.restore("fraud", yard.models[version])
    assert not copy.exists()


@pytest.mark.slow
def test_a_copy_that_was_damaged_here_is_fetched_again(yard, rclone_s3, monkeypatch):  # noqa: F811
    from modelyard.components.storage.uris import upload_directory

    target = yard.serve("1")
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    digest = yard.models["3"].digest.removeprefix("blake3:")
    remote = ServedModel("3", yard.models["3"].digest, f"s3://bucket/again/{digest}")
    upload_directory(yard.models["3"].uri, remote.uri)
    target.restore("fraud", remote)
    target.restore("fraud", yard.models["1"])
    (yard.folder / "models" / digest / "modelyard.json").write_text("{}")
    target.start_canary("fraud", remote)
    assert target.state("fraud").canary.ready


def test_the_rollouts_notes_are_kept_whole(new_yard):
    yard = new_yard()
    target = yard.target()
    assert target.read_record("fraud") is None
    target.write_record("fraud", {"format_version": 7, "step": 2})
    assert LocalTarget(yard.home).read_record("fraud") == {"format_version": 7, "step": 2}
    path = yard.folder / "records" / "fraud.json"
    path.write_text("{")
    with pytest.raises(InvalidInput, match=r"fraud\.json.*damaged"):
        target.read_record("fraud")
    target.write_record("fraud", None)
    target.write_record("fraud", None)
    target.write_record("fraud", {"revision": 1}, revision=0)
    with pytest.raises(RecordChanged, match="revision 0 and is at 1 now"):
        target.write_record("fraud", {"revision": 1}, revision=0)
    target.write_record("fraud", None, revision=1)
    assert target.read_record("fraud") is None
    with pytest.raises(InvalidInput, match="model_name"):
        target.read_record("../fraud")


def test_an_idle_supervisor_takes_next_to_no_processor_time(yard):
    yard.serve("1")
    until(lambda: len(yard.processes()) == 3)
    process = psutil.Process(yard.supervisor().pid)

    def spent() -> float:
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(4)
        return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)

    # On a busy machine the same work takes more of the processor, but hardly each time.
    assert any(spent() < 0.02 for _ in range(5))


_START_CANARY = """
import sys
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.target import ServedModel
LocalTarget().start_canary(sys.argv[1], ServedModel(*sys.argv[2:]))
"""


def test_two_verbs_at_once_both_come_to_be(yard):
    target = yard.serve("1")
    model = yard.models["2"]
    processes = [
        subprocess.Popen([sys.executable, "-c", _START_CANARY, "fraud", model.version, model.digest, model.uri])
        for _ in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert target.state("fraud").canary.ready
    assert len(yard.processes()) == 4
    assert len(read_desired(yard.folder).models["fraud"].arms) == 2
    assert Path(yard.predictor("2").command.split(" ")[0]).exists()
