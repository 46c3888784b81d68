import socket
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage import uris
from tests.services.fixtures import gcs_emulator, moto_s3, rclone_s3  # noqa: F401

STORES = ["rclone_s3", "moto_s3", "gcs_emulator"]


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "source"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "empty").write_bytes(b"")
    (root / "deep" / "er" / "b ü+%.bin").write_bytes(bytes(range(256)) * 40)
    (root / "last").write_bytes(b"z")
    return root


@pytest.fixture(params=STORES)
def bucket(request, monkeypatch) -> str:
    """URI of a bucket on a real server."""
    server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return ("gs" if request.param == "gcs_emulator" else "s3") + "://bucket/" + request.node.name.replace("/", "_")


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "file://host/x"])
def test_an_unknown_uri_is_refused(uri, tmp_path):
    with pytest.raises(InvalidInput, match="uri"):
        uris.download(uri, tmp_path / "x")


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://bucket/", "s3://bucket/a//b", "gs://bucket/a/../b"])
def test_a_uri_without_a_clear_place_is_refused(uri):
    with pytest.raises(InvalidInput, match="bucket and a path"):
        uris.exists(uri)


@pytest.mark.parametrize("part", ["", "/etc", "..", "a/../b", "a//b", "."])
def test_a_joined_part_cannot_lead_out(part):
    with pytest.raises(InvalidInput, match="uri part"):
        uris.join("s3://bucket/a", part)


def test_parts_are_joined_with_one_slash():
    assert uris.join("s3://bucket/a/", "b", "c/d") == "s3://bucket/a/b/c/d"


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_folder_is_read_where_it_is(form, folder, tmp_path):
    assert uris.download(form.format(folder), tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()
    assert uris.exists(form.format(folder))
    assert not uris.exists(form.format(tmp_path / "nothing"))
    with pytest.raises(InvalidInput, match="nothing is there"):
        uris.download(form.format(tmp_path / "nothing"), tmp_path / "unused")


def test_a_file_uri_may_have_escapes(tmp_path):
    (tmp_path / "a b").write_text("x")
    assert uris.download((tmp_path / "a b").as_uri(), tmp_path / "unused").read_text() == "x"


def test_a_local_upload_appears_at_once_and_overwrites_nothing(folder, tmp_path):
    uris.upload_directory(folder, str(tmp_path / "copy"))
    assert contents(tmp_path / "copy") == contents(folder)
    with pytest.raises(FileExistsError):
        uris.upload_directory(folder, str(tmp_path / "copy"))


@pytest.mark.parametrize("odd", ["link", "nothing"])
def test_only_folders_of_regular_files_are_uploaded(odd, folder, tmp_path):
    if odd == "link":
        (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="folder"):
        uris.upload_directory(folder if odd == "link" else tmp_path / "nothing", str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.server
def test_a_folder_comes_back_as_it_went(bucket, folder, tmp_path):
    uri = f"{bucket}/folder"
    assert not uris.exists(uri)
    uris.upload_directory(folder, uri, last="last")
    assert uris.exists(uri)
    assert contents(uris.download(uri, tmp_path / "back")) == contents(folder)


@pytest.mark.server
def test_a_single_object_becomes_a_file(bucket, folder, tmp_path):
    uris.upload_directory(folder, f"{bucket}/folder")
    assert uris.download(f"{bucket}/folder/a.txt", tmp_path / "file").read_bytes() == b"a"
    assert uris.download(f"{bucket}/folder/empty", tmp_path / "empty").read_bytes() == b""


@pytest.mark.server
@pytest.mark.parametrize("mebibytes", [9, 66], ids=["sent in one request", "sent in parts"])
def test_a_file_larger_than_one_part_comes_back_whole(bucket, tmp_path, mebibytes):
    (tmp_path / "source").mkdir()
    content = bytes(range(256)) * (mebibytes * 4096)
    (tmp_path / "source" / "large").write_bytes(content)
    uris.upload_directory(tmp_path / "source", f"{bucket}/large-{mebibytes}")
    assert uris.download(f"{bucket}/large-{mebibytes}", tmp_path / "back").joinpath("large").read_bytes() == content


@pytest.mark.server
def test_a_name_that_is_the_beginning_of_another_is_told_apart(bucket, folder, tmp_path):
    uris.upload_directory(folder, f"{bucket}/model-2")
    assert not uris.exists(f"{bucket}/model")
    with pytest.raises(InvalidInput, match="nothing is there"):
        uris.download(f"{bucket}/model", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.server
def test_nothing_stored_is_overwritten(bucket, folder, tmp_path):
    uris.upload_directory(folder, f"{bucket}/folder", last="last")
    before = contents(folder)
    (folder / "a.txt").write_bytes(b"b")
    with pytest.raises(FileExistsError, match=r"a\.txt"):
        uris.upload_directory(folder, f"{bucket}/folder", last="last")
    assert contents(uris.download(f"{bucket}/folder", tmp_path / "back")) == before


@pytest.mark.server
def test_an_upload_that_was_cut_short_lacks_the_last_file_and_is_completed_by_the_next(bucket, folder, tmp_path, monkeypatch):
    from modelyard.components.storage import gcs, s3

    store = gcs if bucket.startswith("gs") else s3
    send = store._send

    def break_down(*arguments):
        if any("deep" in str(argument) for argument in arguments):
            raise ConnectionAbortedError
        send(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_send", break_down)
        with pytest.raises(ConnectionAbortedError):
            uris.upload_directory(folder, f"{bucket}/folder", last="last")
    assert not uris.exists(f"{bucket}/folder/last")
    uris.upload_directory(folder, f"{bucket}/folder", last="last")
    assert contents(uris.download(f"{bucket}/folder", tmp_path / "back")) == contents(folder)


@pytest.mark.server
def test_a_file_is_put_over_the_one_before_and_removed(bucket, tmp_path):
    uri, source = f"{bucket}/state/one.bin", tmp_path / "source"
    assert uris.get_file(uri, tmp_path / "back") is None
    # The last is larger than one part.
    for content in (b"first, the longest of the short ones", b"second", b"", bytes(range(256)) * (48 * 4096)):
        source.write_bytes(content)
        uris.put_file(source, uri, patience=20)
        assert uris.get_file(uri, tmp_path / "back").read_bytes() == content
    uris.put_file(source, f"{uri}.more")
    uris.remove(uri)
    uris.remove(uri)
    assert uris.get_file(uri, tmp_path / "again") is None
    assert not (tmp_path / "again").exists()
    assert uris.exists(f"{uri}.more")


@pytest.mark.server
def test_a_folder_is_no_file_to_get(bucket, folder, tmp_path):
    uris.upload_directory(folder, f"{bucket}/folder")
    assert uris.get_file(f"{bucket}/folder", tmp_path / "back") is None


@pytest.mark.server
def test_a_file_cannot_be_put_into_a_missing_bucket(bucket, folder):
    scheme = bucket.partition("://")[0]
    with pytest.raises(NotAvailable, match=f"{scheme}://nowhere/x"):
        uris.put_file(folder / "a.txt", f"{scheme}://nowhere/x")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_that_takes_connections_and_never_answers_is_given_up(scheme, folder, monkeypatch):
    # A listener that nobody accepts from: the system takes the connection, and the request is never read.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(NotAvailable, match=f"{scheme}://bucket/x: the store cannot be reached"):
            uris.put_file(folder / "a.txt", f"{scheme}://bucket/x", patience=1)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_file_is_put_over_the_one_before_and_removed(form, folder, tmp_path):
    uri = form.format(tmp_path / "state" / "one")
    assert uris.get_file(uri, tmp_path / "unused") is None
    for name in ("a.txt", "last"):
        uris.put_file(folder / name, uri)
        assert uris.get_file(uri, tmp_path / "unused").read_bytes() == (folder / name).read_bytes()
    uris.remove(uri)
    uris.remove(uri)
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.server
def test_a_missing_bucket_is_named(bucket, folder, tmp_path):
    scheme = bucket.partition("://")[0]
    with pytest.raises(NotAvailable, match=f"{scheme}://nowhere/x.*bucket"):
        uris.upload_directory(folder, f"{scheme}://nowhere/x")


@pytest.mark.server
def test_a_minio_uri_is_the_same_place_as_its_s3_uri(rclone_s3, folder, tmp_path, monkeypatch):  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    uris.upload_directory(folder, "minio://bucket/as-kfp-names-it")
    assert contents(uris.download("s3://bucket/as-kfp-names-it", tmp_path / "back")) == contents(folder)


@pytest.mark.server
def test_a_server_without_a_host_name_for_each_bucket_works(rclone_s3, folder, tmp_path, monkeypatch):  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value.replace("127.0.0.1", "localhost"))
    uris.upload_directory(folder, "s3://bucket/by-host-name")
    assert contents(uris.download("s3://bucket/by-host-name", tmp_path / "back")) == contents(folder)


@pytest.mark.server
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "wrong", "access"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access is denied|secret key"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_a_refusal_names_the_place_and_what_to_do(rclone_s3, variable, value, message, tmp_path, monkeypatch):  # noqa: F811
    for name, right in rclone_s3.environment.items():
        monkeypatch.setenv(name, right)
    monkeypatch.setenv(variable, value)
    with pytest.raises(NotAvailable, match=f"s3://bucket/x: .*({message})"):
        uris.download("s3://bucket/x", tmp_path / "back")


def test_missing_credentials_are_named(tmp_path, monkeypatch):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(NotAvailable, match="AWS_ACCESS_KEY_ID"):
        uris.download("s3://bucket/x", tmp_path / "back")


@pytest.mark.server
def test_a_download_that_arrives_short_leaves_nothing(rclone_s3, folder, tmp_path, monkeypatch):  # noqa: F811
    from modelyard.components.storage import s3

    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    uris.upload_directory(folder, "s3://bucket/short")
    fetch = s3._fetch

    def cut(client, bucket, stored, path):
        fetch(client, bucket, stored, path)
        with path.open("r+b") as file:
            file.truncate(max(stored.size - 1, 0))

    monkeypatch.setattr(s3, "_fetch", cut)
    with pytest.raises(NotAvailable, match="bytes of"):
        uris.download("s3://bucket/short", tmp_path / "back")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.server
def test_a_key_that_would_lead_out_of_the_folder_is_refused(moto_s3, tmp_path, monkeypatch):  # noqa: F811
    import boto3

    for name, value in moto_s3.environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").put_object(Bucket="bucket", Key="escape/a/../../../../evil", Body=b"x")
    with pytest.raises(InvalidInput, match="no path below"):
        uris.download("s3://bucket/escape", tmp_path / "inner" / "back")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.server
def test_of_two_writers_of_one_object_the_second_is_refused_by_the_store_itself(moto_s3, folder, monkeypatch):  # noqa: F811
    from modelyard.components.storage import s3

    for name, value in moto_s3.environment.items():
        monkeypatch.setenv(name, value)
    uris.upload_directory(folder, "s3://bucket/rivals")
    (folder / "a.txt").write_bytes(b"b")
    asked = []
    # The rival wrote between our asking and our writing: the first answer is out of date.
    monkeypatch.setattr(s3, "_head", lambda client, bucket, key: asked.append(key))
    with pytest.raises(FileExistsError, match=r"a\.txt"):
        uris.upload_directory(folder, "s3://bucket/rivals")
    assert asked
