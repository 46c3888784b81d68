from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry.champion import fetch_champion
from modelyard.components.registry.promotion import promote_model
from modelyard.components.tracking.connection import client


@pytest.fixture
def champion(release):
    made = release(0).register()
    promote_model("fraud", made.version, made.digest)
    return made


def test_a_model_without_versions_or_without_a_champion_has_none(release, tmp_path):
    assert fetch_champion("fraud", tmp_path / "folder") is None
    release().register()
    assert fetch_champion("fraud", tmp_path / "folder") is None


def test_the_champion_is_read_where_it_is_kept(champion, tmp_path):
    found = fetch_champion("fraud", tmp_path / "folder")
    assert (found.version, found.digest, str(found.directory)) == (champion.version, champion.digest, champion.uri)
    assert not (tmp_path / "folder").exists()


def test_an_altered_champion_is_an_error_and_not_the_absence_of_one(champion, tmp_path):
    (Path(champion.uri) / "model.ubj").write_bytes(b"other")
    with pytest.raises(VerificationFailed):
        fetch_champion("fraud", tmp_path)


def test_a_champion_that_is_another_version_than_the_registry_says_is_an_error(champion, release, tmp_path):
    other = release(1, champion).register()
    client().set_model_version_tag("fraud", champion.version, "digest", other.digest)
    with pytest.raises(VerificationFailed):
        fetch_champion("fraud", tmp_path)


def test_a_champion_that_something_else_registered_is_an_error(champion, tmp_path):
    other = client().create_model_version("fraud", champion.uri, await_creation_for=0)
    client().set_registered_model_alias("fraud", "champion", str(other.version))
    with pytest.raises(VerificationFailed, match="not registered by register_model"):
        fetch_champion("fraud", tmp_path)


def test_a_registry_that_does_not_answer_is_an_error_and_not_the_absence_of_a_champion(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match="MLflow"):
        fetch_champion("fraud", tmp_path)


def test_a_name_that_no_model_has_is_bad_input(home, tmp_path):
    with pytest.raises(InvalidInput, match="model_name"):
        fetch_champion("a' or name = 'b", tmp_path)
