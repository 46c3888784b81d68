"""What MLflow's registry and server say of a model, and that the digest has the last word."""

import shutil

import pytest

from modelyard.components.signing.verification import verify_model
from modelyard.components.tracking.connection import client
from tests.components.initializer.conftest import publish
from tests.services.fixtures import mlflow_server, rclone_s3  # noqa: F401

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def _empty_registry(tmp_path_factory):
    """A database of MLflow's, which takes seconds to make."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client()
    return home / "mlflow.db"


@pytest.fixture(scope="session")
def _published() -> dict[int, str]:
    """Where the versions are published, once for all tests."""
    return {}


@pytest.fixture
def registered(_empty_registry, _published, on_s3, released, asked, tmp_path, monkeypatch):
    """A registry in which version 1 of fraud is the one that is asked for, the champion, and version 2 is another."""
    shutil.copy(_empty_registry, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    registry = client()
    registry.create_registered_model("fraud")
    for seed in (0, 1):
        if seed not in _published:
            _published[seed] = publish(on_s3, released[seed], "registered")
        tags = {"digest": released[seed].digest}
        registry.create_model_version("fraud", _published[seed], tags=tags, await_creation_for=0)
    registry.set_registered_model_alias("fraud", "champion", "1")
    return registry


@pytest.fixture
def destination(tmp_path):
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_a_registered_version_comes_from_where_the_registry_keeps_it(registered, asked, run, destination, monkeypatch):
    monkeypatch.setenv("MODEL_VERSION", "1")
    for source in ("models:/fraud/1", "models:/fraud@champion"):
        assert run(source, destination).status == 0
        assert verify_model(destination, model_name="fraud", digest=asked.digest)


def test_a_version_that_the_registry_knows_as_another_one_is_refused(registered, asked, run, destination, monkeypatch):
    outcome = run("models:/fraud/2", destination)
    assert (outcome.status, list(destination.iterdir())) == (1, [])
    assert f"not {asked.digest}" in outcome.error
    monkeypatch.setenv("MODEL_VERSION", "2")
    assert "models:/fraud/1 is version 1, not 2" in run("models:/fraud/1", destination).error


def test_an_alias_that_moved_leads_to_nothing_else(registered, run, destination):
    registered.set_registered_model_alias("fraud", "champion", "2")
    outcome = run("models:/fraud@champion", destination)
    assert (outcome.status, list(destination.iterdir())) == (1, [])
    assert "is another version" in outcome.error


def test_a_registry_that_lies_about_a_digest_is_found_out(registered, released, run, destination):
    registered.set_model_version_tag("fraud", "2", "digest", released[0].digest)
    outcome = run("models:/fraud/2", destination)
    assert (outcome.status, list(destination.iterdir())) == (1, [])
    assert f"its digest is {released[1].digest}, not" in outcome.error


def test_what_mlflow_does_not_know_is_named(registered, run, destination):
    for source in ("models:/fraud/9", "models:/fraud@nobody", "models:/credit/1", "runs:/0123/model"):
        outcome = run(source, destination)
        assert (outcome.status, outcome.error.count("\n")) == (1, 1)
        assert f"source = '{source}': MLflow" in outcome.error


def test_what_lies_on_a_disk_that_the_pod_does_not_have_is_refused(registered, released, run, destination):
    version = registered.create_model_version("fraud", str(released[0].directory), await_creation_for=0).version
    outcome = run(f"models:/fraud/{version}", destination)
    assert outcome.status == 1
    assert f"MLflow keeps it at {released[0].directory}, where this pod cannot read" in outcome.error


@pytest.mark.slow
def test_an_mlflow_that_does_not_answer_is_named(asked, run, destination, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for source in ("models:/fraud/1", "runs:/0123/model", "mlflow-artifacts:/1/model"):
        outcome = run(source, destination)
        assert (outcome.status, outcome.error.count("\n"), list(destination.iterdir())) == (1, 1, [])
        assert "MLflow" in outcome.error
        assert "127.0.0.1:9" in outcome.error


@pytest.mark.slow
def test_what_the_server_keeps_comes_through_the_server(
    mlflow_server,  # noqa: F811
    rclone_s3,  # noqa: F811
    released,
    asked,
    run,
    tmp_path,
    monkeypatch,
):
    for name, value in mlflow_server.environment.items():
        monkeypatch.setenv(name, value)
    tracking = client()
    experiment = tracking.create_experiment(tmp_path.name)
    made = tracking.create_run(experiment).info
    tracking.log_artifacts(made.run_id, str(released[0].directory), "signed")
    assert made.artifact_uri.startswith("mlflow-artifacts:/")
    for position, source in enumerate((f"runs:/{made.run_id}/signed", f"{made.artifact_uri}/signed")):
        destination = tmp_path / str(position)
        assert run(source, destination).status == 0
        assert verify_model(destination, model_name="fraud", digest=asked.digest)
    outcome = run(f"runs:/{made.run_id}/nothing", tmp_path / "none")
    assert (outcome.status, list((tmp_path / "none").iterdir())) == (1, [])
    # What the server keeps is altered behind its back.
    (path,) = (rclone_s3.folder / "bucket" / "mlflow" / experiment / made.run_id).rglob("model.ubj")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    outcome = run(f"runs:/{made.run_id}/signed", tmp_path / "none")
    assert (outcome.status, list((tmp_path / "none").iterdir())) == (1, [])
    assert "altered since it was signed: model.ubj" in outcome.error
