"""The registry as a cluster has it: an MLflow server on PostgreSQL, models on S3 or Google Cloud Storage."""

import subprocess
import sys

import pytest

from modelyard.components.errors import NotAvailable, VerificationFailed
from modelyard.components.registry import versions
from modelyard.components.registry.champion import fetch_champion
from modelyard.components.registry.promotion import PromotionRefused, promote_model, reject_challenger
from modelyard.components.tracking.connection import client
from tests.services.fixtures import gcs_emulator, mlflow_server, moto_s3, rclone_s3  # noqa: F401

pytestmark = pytest.mark.server

PROMOTE = (
    "import sys; from modelyard.components.registry.promotion import promote_model\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "promote_model('fraud', sys.argv[1], sys.argv[2])\n"
)


@pytest.fixture(params=["s3", "gs"])
def store(request, home, monkeypatch, tmp_path) -> str:
    """The store of models in a bucket on a real server."""
    server = request.getfixturevalue("rclone_s3" if request.param == "s3" else "gcs_emulator")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    uri = f"{request.param}://bucket/{tmp_path.name}"
    monkeypatch.setenv("MODELYARD_MODEL_STORE", uri)
    return uri


def test_a_model_in_a_bucket_is_registered_promoted_and_fetched(store, release, tmp_path):
    made = release().register()
    assert made.uri.startswith(f"{store}/fraud/{made.digest.removeprefix('blake3:')}-")
    assert release().register() == made
    promote_model("fraud", made.version, made.digest)
    found = fetch_champion("fraud", tmp_path / "folder")
    assert (found.version, found.digest) == (made.version, made.digest)
    assert found.directory.parent == tmp_path / "folder"
    assert fetch_champion("fraud", tmp_path / "folder") == found


def test_an_upload_that_was_cut_short_is_not_registered_and_is_completed_by_the_next(store, release, tmp_path, monkeypatch):
    from modelyard.components.storage import gcs, s3

    module = s3 if store.startswith("s3") else gcs
    first = release()
    send = module._send

    def break_down(*arguments):
        if "model.ubj" in str(arguments):
            raise ConnectionAbortedError
        send(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_send", break_down)
        with pytest.raises(ConnectionAbortedError):
            first.register()
    assert versions.all_versions(client(), "fraud") == []
    made = first.register()
    promote_model("fraud", made.version, made.digest)
    assert fetch_champion("fraud", tmp_path / "folder").version == made.version


def test_an_object_altered_in_the_bucket_is_noticed_by_everybody(rclone_s3, release, tmp_path, monkeypatch):  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELYARD_MODEL_STORE", f"s3://bucket/{tmp_path.name}")
    made = release().register()
    (path,) = (rclone_s3.folder / "bucket" / tmp_path.name).rglob("model.ubj")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(VerificationFailed, match=r"model\.ubj"):
        promote_model("fraud", made.version, made.digest)
    client().set_registered_model_alias("fraud", "champion", made.version)
    with pytest.raises(VerificationFailed, match=r"model\.ubj"):
        fetch_champion("fraud", tmp_path / "folder")


def test_a_store_that_is_down_is_an_error(rclone_s3, release, tmp_path, monkeypatch):  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELYARD_MODEL_STORE", f"s3://bucket/{tmp_path.name}")
    made = release().register()
    promote_model("fraud", made.version, made.digest)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match="s3://"):
        fetch_champion("fraud", tmp_path / "folder")


@pytest.mark.slow
def test_on_postgresql_and_s3_two_releases_follow_each_other_and_rivals_cannot_both_win(
    mlflow_server,  # noqa: F811
    rclone_s3,  # noqa: F811
    release,
    tmp_path,
    monkeypatch,
):
    for name, value in {**rclone_s3.environment, **mlflow_server.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://bucket/models")
    assert fetch_champion("fraud", tmp_path / "folder") is None

    run = client().create_run(client().create_experiment("release")).info.run_id
    first = release(0, run_id=run).register()
    assert release(0, run_id=run).register() == first
    assert client().get_model_version("fraud", first.version).run_id == run
    assert promote_model("fraud", first.version, first.digest) == ""

    rivals = [release(seed, first).register() for seed in (1, 2)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, rival.version, rival.digest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rival in rivals
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    errors = [process.communicate("\n", timeout=200)[1] for process in started]
    won = [rival for rival, process in zip(rivals, started) if process.returncode == 0]
    assert len(won) == 1, errors
    lost = next(rival for rival in rivals if rival not in won)
    with pytest.raises(PromotionRefused):
        promote_model("fraud", lost.version, lost.digest)
    assert promote_model("fraud", won[0].version, won[0].digest) == first.version
    reject_challenger("fraud", lost.version, "it lost")
    assert versions.aliases(client(), "fraud") == {"champion": won[0].version, "previous": first.version}
    found = fetch_champion("fraud", tmp_path / "folder")
    assert (found.version, found.digest) == (won[0].version, won[0].digest)
