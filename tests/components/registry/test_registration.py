import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry import registration, versions
from modelyard.components.registry.promotion import promote_model, reject_challenger
from modelyard.components.signing.verification import verify_model
from modelyard.components.tracking.connection import client

REGISTER = (
    "import sys; from modelyard.components.registry.registration import register_model\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "print(register_model(sys.argv[1], evaluation=sys.argv[2], model_name='fraud').version)\n"
)


def start_registration(release) -> subprocess.Popen[str]:
    """Starts a process that registers a model when it is told to go on, and waits until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", REGISTER, release.signed, release.evaluation],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def registered_versions() -> list[str]:
    return [str(version.version) for version in versions.all_versions(client(), "fraud")]


def test_a_model_is_registered_with_what_there_is_to_know_about_it(release, home):
    gates = [{"name": "good enough", "decision": "pass"}, {"name": "better", "decision": "pass"}]
    made = release(gates=gates, metrics={"average_precision": {"value": 0.71234567, "low": 0.6, "high": 0.8}}).register()
    version = client().get_model_version("fraud", made.version)
    assert version.tags["digest"] == made.digest
    assert version.tags["decision"] == "pass"
    assert json.loads(version.tags["gates"]) == {"good enough": "pass", "better": "pass"}
    assert version.tags["metric.average_precision"] == "0.712346"
    assert version.tags["judged_against"] == "none"
    assert version.tags["data_digest"] == "blake3:" + "d" * 64
    assert version.tags["signer"].startswith("sha256:")
    assert made.uri == version.source == str(home / "models" / "fraud" / made.digest.removeprefix("blake3:"))
    assert verify_model(made.uri, model_name="fraud", digest=made.digest)
    assert versions.aliases(client(), "fraud") == {"challenger": made.version}


def test_the_run_that_trained_it_and_the_version_name_each_other(release, home):
    run = client().create_run(client().create_experiment("x")).info.run_id
    made = release(run_id=run).register()
    assert client().get_model_version("fraud", made.version).run_id == run
    assert client().get_run(run).data.tags["modelyard.registered_version"] == f"fraud/{made.version}"


def test_a_run_that_does_not_exist_is_named(release, home):
    with pytest.raises(InvalidInput, match="run_id"):
        release().register(run_id="0" * 32)


def test_the_run_must_be_the_one_it_was_signed_with(release):
    with pytest.raises(InvalidInput, match="signed as that of run abc"):
        release(run_id="abc").register(run_id="def")


def test_the_same_digest_gives_the_same_version(release):
    first = release().register()
    assert release().register() == first
    assert registered_versions() == ["1"]
    assert release(seed=1).register().version == "2"
    assert release().register() == first


def test_what_is_stored_is_kept_and_not_overwritten(release):
    first = release()
    made = first.register()
    before = (Path(made.uri) / "model.sig").read_bytes()
    release().register()
    assert (Path(made.uri) / "model.sig").read_bytes() == before == (first.signed / "model.sig").read_bytes()


def test_a_stored_model_that_was_altered_is_noticed_when_it_is_registered_again(release):
    made = release().register()
    (Path(made.uri) / "model.ubj").write_bytes(b"other")
    with pytest.raises(VerificationFailed, match=r"altered since it was signed: model\.ubj"):
        release().register()
    shutil.rmtree(made.uri)
    with pytest.raises(VerificationFailed, match="gone from the store"):
        release().register()


def test_what_lies_in_the_store_already_is_verified_before_a_version_names_it(release, home):
    signed = release()
    digest = verify_model(signed.signed).model_digest.removeprefix("blake3:")
    other = release(seed=1)
    shutil.copytree(other.signed, home / "models" / "fraud" / digest)
    with pytest.raises(VerificationFailed, match="another version"):
        signed.register()
    assert registered_versions() == []


def test_an_altered_model_is_not_registered(release, home):
    spoilt = release()
    (spoilt.signed / "added").write_text("x")
    with pytest.raises(VerificationFailed):
        spoilt.register()
    assert registered_versions() == []
    assert not (home / "models").exists()


def test_the_evaluation_must_be_the_one_it_was_signed_with(release):
    first = release()
    first.evaluation.write_text(first.evaluation.read_text().replace("0.71", "0.99"))
    with pytest.raises(InvalidInput, match="another one than the model was signed with"):
        first.register()


def test_a_model_is_registered_under_the_name_it_was_signed_with(release):
    first = release()
    with pytest.raises(VerificationFailed, match="not 'credit'"):
        registration.register_model(first.signed, evaluation=first.evaluation, model_name="credit")


def test_the_champion_does_not_become_its_own_challenger(release):
    made = release().register()
    promote_model("fraud", made.version, made.digest)
    assert release().register() == made
    assert versions.aliases(client(), "fraud") == {"champion": made.version}


def test_a_rejected_model_that_is_released_again_is_a_challenger_again(release):
    made = release().register()
    reject_challenger("fraud", made.version, "slow")
    assert versions.aliases(client(), "fraud") == {}
    release().register()
    assert versions.aliases(client(), "fraud") == {"challenger": made.version}
    assert "rejected_reason" not in client().get_model_version("fraud", made.version).tags


def test_a_local_store_beside_a_shared_registry_is_refused(release, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match="MODELYARD_MODEL_STORE"):
        release().register()


def test_a_registry_that_does_not_answer_is_an_error(release, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://bucket/models")
    with pytest.raises(NotAvailable, match="MLflow"):
        release().register()


def test_processes_that_register_one_digest_at_once_get_one_version(release):
    started = [start_registration(release()) for _ in range(3)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    told = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 3
    assert told == {registered_versions()[0]}
    assert len(registered_versions()) == 1
    assert versions.aliases(client(), "fraud") == {"challenger": told.pop()}


def test_a_second_version_that_a_killed_rival_left_is_removed_by_the_next_registration(release):
    made = release().register()
    tags = client().get_model_version("fraud", made.version).tags
    left = client().create_model_version("fraud", made.uri, tags=tags, await_creation_for=0)
    assert len(registered_versions()) == 2
    assert release().register() == made
    assert registered_versions() == [made.version] != [str(left.version)]


def test_a_registration_that_was_killed_at_any_moment_is_completed_by_the_next(release, home):
    """Eight registrations are killed, each a little later than the one before; then one runs to its end."""
    again = release()
    for step in range(8):
        process = start_registration(release())
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(0.04 * step)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert len(registered_versions()) <= 1
    made = again.register()
    assert registered_versions() == [made.version]
    assert versions.aliases(client(), "fraud") == {"challenger": made.version}
    assert verify_model(made.uri, model_name="fraud", digest=made.digest)
    assert [path.name for path in (home / "models" / "fraud").iterdir()] == [made.digest.removeprefix("blake3:")]


@pytest.mark.parametrize("step", ["keep", "create_model_version", "_one_version", "_challenge"])
def test_a_registration_that_stopped_after_each_of_its_steps_is_completed_by_the_next(release, monkeypatch, step):
    from mlflow.tracking import MlflowClient

    owner = MlflowClient if step == "create_model_version" else registration
    work = getattr(owner, step)

    def stop(*arguments, **details):
        work(*arguments, **details)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stop)
        with pytest.raises(KeyboardInterrupt):
            release().register()
    made = release().register()
    assert registered_versions() == [made.version] == ["1"]
    assert versions.aliases(client(), "fraud") == {"challenger": "1"}
