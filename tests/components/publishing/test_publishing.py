import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.publishing.publishing import publish_model
from modelyard.components.signing.provenance import Provenance
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import gcs, s3, uris
from tests.services.fixtures import gcs_emulator, rclone_s3  # noqa: F401

PUBLISH = (
    "import sys; from modelyard.components.publishing.publishing import publish_model\n"
    "from modelyard.components.storage import s3\n"
    "send = s3._send\n"
    "def slowly(client, bucket, key, path):\n"
    "    send(client, bucket, key, path); print(key, flush=True); sys.stdin.readline()\n"
    "s3._send = slowly\n"
    "publish_model(sys.argv[1], model_name='fraud', destination=sys.argv[2])\n"
)


@pytest.fixture
def digest(signed) -> str:
    return Provenance.from_json((signed / "provenance.json").read_bytes()).model_digest


@pytest.fixture(params=["rclone_s3", "gcs_emulator"])
def bucket(request, monkeypatch, tmp_path) -> str:
    """A prefix in a bucket of a real server."""
    for name, value in request.getfixturevalue(request.param).environment.items():
        monkeypatch.setenv(name, value)
    return f"{'gs' if request.param == 'gcs_emulator' else 's3'}://bucket/{tmp_path.name}"


@pytest.fixture
def on_s3(rclone_s3, monkeypatch, tmp_path) -> str:  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"


def place(bucket: str, signed: Path, digest: str) -> str:
    """Where a model is published, one folder for each signature of it."""
    return f"{bucket}/fraud/{digest.removeprefix('blake3:')}-{file_digest(signed / 'model.sig').removeprefix('blake3:')[:16]}"


def stored(server, tmp_path: Path) -> dict[str, bytes]:
    """What a bucket holds for this test, by relative name."""
    root = server.folder / "bucket" / tmp_path.name
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_on_this_machine_a_model_lies_under_its_name_and_digest(signed, digest, tmp_path):
    published = publish_model(signed, model_name="fraud", destination=str(tmp_path / "store"))
    assert published.digest == digest
    assert published.uri == str(tmp_path / "store" / "fraud" / digest.removeprefix("blake3:"))
    assert verify_model(published.uri, model_name="fraud", digest=digest)
    assert publish_model(signed, model_name="fraud", destination=str(tmp_path / "store")) == published


def test_without_a_destination_it_is_the_store_of_models(signed, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELYARD_MODEL_STORE", str(tmp_path / "store"))
    assert publish_model(signed, model_name="fraud").uri.startswith(str(tmp_path / "store" / "fraud"))


def test_in_a_cluster_a_folder_of_the_pod_is_no_destination(signed, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", os.environ["MODELYARD_HOME"] + "/keys/signing.pub")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MODELYARD_HOME")
    with pytest.raises(InvalidInput, match="destination"):
        publish_model(signed, model_name="fraud", destination=str(tmp_path))


def test_what_is_not_the_signed_model_it_is_said_to_be_is_not_published(signed, tmp_path):
    with pytest.raises(VerificationFailed, match="not 'credit'"):
        publish_model(signed, model_name="credit", destination=str(tmp_path / "store"))
    spoilt = tmp_path / "spoilt"
    shutil.copytree(signed, spoilt)
    (spoilt / "model.ubj").write_bytes(b"other")
    with pytest.raises(VerificationFailed, match=r"altered since it was signed: model\.ubj"):
        publish_model(spoilt, model_name="fraud", destination=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.server
def test_in_a_bucket_a_model_lies_under_its_digest_and_publishing_again_changes_nothing(bucket, signed, digest, tmp_path):
    published = publish_model(signed, model_name="fraud", destination=f"{bucket}/")
    assert published.uri == place(bucket, signed, digest)
    assert publish_model(signed, model_name="fraud", destination=bucket) == published
    copy = uris.download(published.uri, tmp_path / "copy")
    assert verify_model(copy, model_name="fraud", digest=digest)


@pytest.mark.server
def test_a_connection_that_drops_publishes_no_signature_and_the_next_attempt_completes_it(
    bucket, signed, digest, tmp_path, monkeypatch
):
    module = gcs if bucket.startswith("gs") else s3
    send = module._send

    def drop(*arguments):
        if "golden_rows.json" in str(arguments):
            raise ConnectionResetError
        send(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_send", drop)
        with pytest.raises(ConnectionResetError):
            publish_model(signed, model_name="fraud", destination=bucket)
    assert not uris.exists(f"{place(bucket, signed, digest)}/model.sig")
    published = publish_model(signed, model_name="fraud", destination=bucket)
    assert verify_model(uris.download(published.uri, tmp_path / "copy"), digest=digest)


@pytest.mark.server
def test_a_copy_that_was_altered_is_noticed_and_not_overwritten(on_s3, rclone_s3, signed, tmp_path):  # noqa: F811
    publish_model(signed, model_name="fraud", destination=on_s3)
    (path,) = (rclone_s3.folder / "bucket" / tmp_path.name).rglob("model.ubj")
    altered = path.read_bytes()[:-1] + b"?"
    path.write_bytes(altered)
    with pytest.raises(FileExistsError, match=r"something else at .*model\.ubj already"):
        publish_model(signed, model_name="fraud", destination=on_s3)
    assert path.read_bytes() == altered


@pytest.mark.server
def test_what_is_altered_on_its_way_is_noticed_when_it_is_there(on_s3, rclone_s3, signed, tmp_path, monkeypatch):  # noqa: F811
    """The store answers well and keeps something else: what lies there is what is verified."""
    upload = uris.upload_directory

    def upload_and_spoil(source, uri, **details):
        upload(source, uri, **details)
        (path,) = (rclone_s3.folder / "bucket" / tmp_path.name).rglob("model.ubj")
        path.write_bytes(path.read_bytes()[:-7])

    monkeypatch.setattr(uris, "upload_directory", upload_and_spoil)
    with pytest.raises(VerificationFailed, match=r"model\.ubj"):
        publish_model(signed, model_name="fraud", destination=on_s3)


@pytest.mark.server
def test_a_publication_killed_before_its_last_file_is_no_model_yet_and_is_completed_by_the_next(
    on_s3,
    rclone_s3,  # noqa: F811
    signed,
    digest,
    tmp_path,
):
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, signed, on_s3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    sent = process.stdout.readline().strip()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = stored(rclone_s3, tmp_path)
    assert any(sent.endswith(name) for name in there)
    assert not any(name.endswith("model.sig") for name in there)
    published = publish_model(signed, model_name="fraud", destination=on_s3)
    assert verify_model(uris.download(published.uri, tmp_path / "copy"), digest=digest)


@pytest.mark.server
def test_a_store_that_cannot_be_reached_is_named(on_s3, signed, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match=f"{on_s3}/fraud/"):
        publish_model(signed, model_name="fraud", destination=on_s3)
