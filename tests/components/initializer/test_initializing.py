"""The initializer against real object stores, and what it does when they, the model or the volume are not as they should be."""

import filecmp
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.initializer.__main__ import main
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import gcs
from tests.components.initializer.conftest import Outcome, Released, publish
from tests.services.fixtures import gcs_emulator, rclone_s3  # noqa: F401
from tests.services.interrupted import interrupted
from tests.support.signed_models import attestations, make_signed_model, sign_model, train_small_model

pytestmark = pytest.mark.server

INITIALIZER = [sys.executable, "-m", "modelyard.components.initializer"]
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


def refused(outcome: Outcome, destination: Path, reason: str) -> None:
    """Checks that it ended with 1 and the reason, in one line, and left nothing."""
    assert outcome.status == 1
    assert reason in outcome.error
    assert outcome.error.count("\n") == 1
    assert outcome.message == outcome.error.removeprefix("refused: ").strip()
    assert list(destination.iterdir()) == []


def is_copy(destination: Path, directory: Path) -> bool:
    """Whether the destination holds the directory's files and nothing else."""
    names = {path.relative_to(directory) for path in directory.rglob("*")}
    there = {path.relative_to(destination) for path in destination.rglob("*")}
    files = [str(name) for name in names if (directory / name).is_file()]
    return names == there and filecmp.cmpfiles(directory, destination, files, shallow=False)[0] == files


@pytest.fixture
def destination(tmp_path) -> Path:
    """An empty volume, mounted where the model belongs."""
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_a_signed_model_comes_whole_and_a_second_call_changes_nothing(server, released, asked, run, destination, tmp_path):
    source = publish(server, released[0], tmp_path.name)
    mounted = destination.stat().st_ino
    assert run(source, destination) == Outcome(0, "", "")
    assert is_copy(destination, released[0].directory)
    assert verify_model(destination, model_name="fraud", digest=asked.digest)
    assert destination.stat().st_ino == mounted
    before = {path: path.stat().st_ino for path in destination.rglob("*")}
    assert run(source, destination) == Outcome(0, "", "")
    assert {path: path.stat().st_ino for path in destination.rglob("*")} == before


def test_another_user_can_read_what_comes(on_s3, released, asked, run, destination, tmp_path):
    """Triton, and a predictor beside Istio, run as somebody else."""
    assert run(publish(on_s3, released[0], tmp_path.name), destination).status == 0
    for path in destination.rglob("*"):
        needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        assert path.stat().st_mode & needed == needed, path


def test_a_connection_that_drops_now_and_then_is_made_up_for(server, released, asked, run, destination, tmp_path, monkeypatch):
    source = publish(server, released[0], tmp_path.name)
    with interrupted(server.url) as (url, interruptions):
        interruptions.victim, interruptions.left = "model.ubj", 2
        monkeypatch.setenv(ENDPOINTS[source[:2]], url)
        assert run(source, destination).status == 0
    assert interruptions.done == 2
    assert is_copy(destination, released[0].directory)


def test_a_connection_that_drops_each_time_is_the_reason(on_s3, released, asked, run, destination, tmp_path, monkeypatch):
    source = publish(on_s3, released[0], tmp_path.name)
    with interrupted(on_s3.url) as (url, interruptions):
        interruptions.victim, interruptions.left = "model.ubj", 1_000
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        refused(run(source, destination), destination, f"{source}: the connection broke off each time")
    assert interruptions.done > 1


@pytest.mark.slow
def test_a_connection_to_google_cloud_storage_that_drops_each_time_is_the_reason(
    on_gcs, released, asked, run, destination, tmp_path, monkeypatch
):
    source = publish(on_gcs, released[0], tmp_path.name)
    monkeypatch.setattr(gcs, "_RETRY_SECONDS", 5.0)
    with interrupted(on_gcs.url) as (url, interruptions):
        interruptions.victim, interruptions.left = "model.ubj", 1_000
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        refused(run(source, destination), destination, f"{source}: the store cannot be reached")
    assert interruptions.done > 1


def test_a_truncated_object_is_refused(on_s3, released, asked, run, destination, tmp_path):
    source = publish(on_s3, released[0], tmp_path.name)
    (path,) = (on_s3.folder / "bucket" / tmp_path.name).rglob("model.ubj")
    path.write_bytes(path.read_bytes()[:-100])
    refused(run(source, destination), destination, "1 of its files was altered since it was signed: model.ubj")


def test_a_truncated_object_on_google_cloud_storage_is_refused(on_gcs, released, asked, run, destination, tmp_path):
    from google.cloud import storage

    source = publish(on_gcs, released[0], tmp_path.name)
    blob = storage.Client().bucket("bucket").blob(f"{source.removeprefix('gs://bucket/')}/model.ubj")
    blob.upload_from_string(blob.download_as_bytes()[:-100])
    refused(run(source, destination), destination, "altered since it was signed: model.ubj")


def test_another_version_of_the_model_is_refused(server, released, asked, run, destination, tmp_path):
    source = publish(server, released[1], tmp_path.name)
    refused(run(source, destination), destination, f"its digest is {released[1].digest}, not {asked.digest}")


def test_another_model_is_refused(on_s3, released, asked, run, destination, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_NAME", "credit")
    refused(run(publish(on_s3, released[0], tmp_path.name), destination), destination, "it is the model 'fraud', not 'credit'")


def test_an_unsigned_model_is_refused(server, released, asked, run, destination, tmp_path, monkeypatch):
    from modelyard.components.storage import uris

    unsigned = tmp_path / "unsigned"
    shutil.copytree(released[0].directory, unsigned)
    (unsigned / "model.sig").unlink()
    scheme = "gs" if "STORAGE_EMULATOR_HOST" in server.environment else "s3"
    source = f"{scheme}://bucket/{tmp_path.name}/unsigned"
    uris.upload_directory(unsigned, source)
    refused(run(source, destination), destination, "is not signed: it has no model.sig")


def test_a_model_signed_by_somebody_else_is_refused(on_s3, released, asked, run, destination, tmp_path, monkeypatch):
    source = publish(on_s3, released[0], tmp_path.name)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "stranger"))
    make_signed_model(tmp_path / "strangers")
    refused(run(source, destination), destination, "does not match the provided public key")


def test_without_a_key_to_verify_by_nothing_is_trusted(on_s3, released, asked, run, destination, tmp_path, monkeypatch):
    source = publish(on_s3, released[0], tmp_path.name)
    monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", str(tmp_path / "absent.pub"))
    refused(run(source, destination), destination, "absent.pub")


def test_a_source_where_nothing_is_or_that_nobody_answers_at_is_named(on_s3, asked, run, destination, monkeypatch):
    refused(run("s3://bucket/nothing/here", destination), destination, "s3://bucket/nothing/here': nothing is there")
    refused(run("s3://no-such-bucket/x", destination), destination, "s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(run("s3://bucket/nothing/here", destination), destination, "s3://bucket/nothing/here")


@pytest.mark.parametrize(
    "source", ["", "/mnt/elsewhere", "file:///mnt", "pvc://claim/x", "https://host/x", "models:/fraud", "models:/fraud/latest"]
)
def test_a_source_that_goes_around_the_stores_is_refused(asked, run, destination, source):
    refused(run(source, destination), destination, "give one of s3://BUCKET/PATH")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MODEL_NAME", ""), ("MODEL_NAME", "../x"), ("MODEL_DIGEST", ""), ("MODEL_DIGEST", "sha256:ab"), ("MODEL_LAYOUT", "onnx")],
)
def test_a_pod_must_say_which_model_it_asks_for(asked, run, destination, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    refused(run("s3://bucket/x", destination), destination, f"= {value!r}: ")


def test_it_takes_two_arguments(capsys):
    handler = signal.getsignal(signal.SIGTERM)
    assert main(["s3://bucket/x"]) == 1
    signal.signal(signal.SIGTERM, handler)
    assert "two arguments" in capsys.readouterr().err


def test_what_is_not_ours_stays_and_nothing_is_put_beside_it(on_s3, released, asked, run, destination, tmp_path):
    (destination / "theirs").write_text("x")
    outcome = run(publish(on_s3, released[0], tmp_path.name), destination)
    assert (outcome.status, list(destination.iterdir())) == (1, [destination / "theirs"])
    assert "it holds something else (theirs)" in outcome.error


def test_a_full_disk_is_the_reason_and_holds_nothing_afterwards(on_s3, released, asked, tmp_path):
    source = publish(on_s3, released[0], tmp_path.name)
    volume = tmp_path / "volume"
    volume.mkdir()
    size = sum(path.stat().st_size for path in released[0].directory.rglob("*"))
    # Pages, so that not even the smallest files have room together.
    script = (
        'mount -t tmpfs -o size=8k tmpfs "$1" || exit 77; shift; "$@"; status=$?; '
        f'find {volume} -mindepth 1 | sed "s/^/left: /"; exit $status'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", volume, *INITIALIZER, source, volume]
    ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=120)
    if "unshare" in ended.stderr or ended.returncode == 77:
        pytest.skip(f"a small file system cannot be mounted here: {ended.stderr.strip()}")
    assert size > 8_192
    assert ended.returncode == 1
    assert ended.stderr == (
        f"refused: {source} cannot be put into {volume}: No space left on device; give the pod more ephemeral storage\n"
    )
    assert ended.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_one_that_is_ended_while_it_fetches_leaves_what_the_next_one_replaces(
    on_s3, released, asked, destination, tmp_path, number
):
    source = publish(on_s3, released[0], tmp_path.name)
    # It sends nothing of the last file, so that the process waits in the middle.
    with interrupted(on_s3.url) as (url, interruptions):
        interruptions.victim, interruptions.left, interruptions.body_bytes = "model.ubj", 1_000, 10**9
        process = subprocess.Popen([*INITIALIZER, source, destination], env={**os.environ, "AWS_ENDPOINT_URL": url})
        deadline = time.monotonic() + 60
        while interruptions.done == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert interruptions.done
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert not (destination / "model.sig").exists()
    ended = subprocess.run([*INITIALIZER, source, destination], capture_output=True, check=False, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{destination} holds fraud, {asked.digest}, from {source}: verified\n"
    assert is_copy(destination, released[0].directory)


def test_for_triton_its_repository_is_laid_out_and_nothing_else(
    on_s3, released, asked, run, destination, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODEL_LAYOUT", "triton")
    source = publish(on_s3, released[0], tmp_path.name)
    for _ in range(2):
        assert run(source, destination) == Outcome(0, "", "")
        assert list(destination.iterdir()) == [destination / "fraud"]
        files = {path.relative_to(destination).as_posix() for path in destination.rglob("*") if path.is_file()}
        assert {"fraud/config.pbtxt", "fraud/1/xgboost.ubj"} <= files
    assert (destination / "fraud/1/xgboost.ubj").read_bytes() == (released[0].directory / "model.ubj").read_bytes()


def test_for_triton_a_model_that_is_not_verified_is_not_laid_out(
    on_s3, released, asked, run, destination, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODEL_LAYOUT", "triton")
    source = publish(on_s3, released[1], tmp_path.name)
    refused(run(source, destination), destination, "it is another version")


@pytest.mark.slow
def test_memory_is_bounded_however_large_a_model_is(on_s3, released, asked, destination, tmp_path, monkeypatch):
    """Half a gigabyte of model comes in far less room than it takes, all that the process imports included."""
    model = train_small_model(tmp_path / "large" / "model")
    for part in range(8):
        (model / f"extra-{part}.bin").write_bytes(os.urandom(64 * 2**20))
    papers = attestations(tmp_path / "large" / "inputs", model)
    provenance = sign_model(model, **papers, signed_model=tmp_path / "large" / "signed", model_name="fraud")
    monkeypatch.setenv("MODEL_DIGEST", provenance.model_digest)
    source = publish(on_s3, Released(tmp_path / "large" / "signed", provenance.model_digest), tmp_path.name)
    # Not getrusage on Linux: there it counts what the process was before it became this one, a copy of the tests' own.
    script = (
        "import re, resource, sys; from modelyard.components.initializer.__main__ import main; status = main(sys.argv[1:])\n"
        "if sys.platform == 'linux': peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) >> 10\n"
        "else: peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20\n"
        "print(peak); sys.exit(status)"
    )
    command = [sys.executable, "-c", script, source, destination]
    ended = subprocess.run(command, capture_output=True, check=True, text=True, timeout=300)
    assert int(ended.stdout.splitlines()[-1]) < 320
    assert verify_model(destination, digest=provenance.model_digest)
