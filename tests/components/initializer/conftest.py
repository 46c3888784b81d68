import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelyard.components import lean_imports, termination
from modelyard.components.initializer.__main__ import main
from modelyard.components.initializer.asked_for import AskedFor
from modelyard.components.publishing.publishing import publish_model
from tests.support.signed_models import make_signed_model


@dataclass(frozen=True)
class Released:
    """A signed model directory and its digest."""

    directory: Path
    digest: str


@pytest.fixture(scope="session")
def _released(tmp_path_factory) -> tuple[Path, dict[int, Released]]:
    """A laptop's home and two versions of one model, signed with its key."""
    root = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(root / "home"))
        made = {seed: make_signed_model(root / str(seed), seed=seed) for seed in (0, 1)}
    return root / "home", {seed: Released(root / str(seed) / "signed", made[seed].model_digest) for seed in made}


@pytest.fixture
def released(_released, monkeypatch) -> dict[int, Released]:
    """The versions, whose key this process trusts."""
    home, versions = _released
    monkeypatch.setenv("MODELYARD_HOME", str(home))
    for variable in ("MODELYARD_TRUST", "MODELYARD_VERIFICATION_KEY", "MODELYARD_MODEL_STORE", "MODEL_VERSION", "MODEL_LAYOUT"):
        monkeypatch.delenv(variable, raising=False)
    return versions


@pytest.fixture
def asked(released, monkeypatch) -> AskedFor:
    """The first version is asked for."""
    monkeypatch.setenv("MODEL_NAME", "fraud")
    monkeypatch.setenv("MODEL_DIGEST", released[0].digest)
    return AskedFor("fraud", released[0].digest)


@pytest.fixture(params=["rclone_s3", "gcs_emulator"])
def server(request, monkeypatch):
    """A real object store."""
    server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def on_s3(rclone_s3, monkeypatch):
    """The object store that keeps its objects as files."""
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    return rclone_s3


@pytest.fixture
def on_gcs(gcs_emulator, monkeypatch):
    """Google Cloud Storage."""
    for name, value in gcs_emulator.environment.items():
        monkeypatch.setenv(name, value)
    return gcs_emulator


def publish(server, released: Released, prefix: str) -> str:
    """Publishes a version to a server's bucket; returns its URI."""
    scheme = "gs" if "STORAGE_EMULATOR_HOST" in server.environment else "s3"
    return publish_model(released.directory, model_name="fraud", destination=f"{scheme}://bucket/{prefix}").uri


@dataclass(frozen=True)
class Outcome:
    """How a run of the initializer ended.

    Attributes:
        status: its exit status.
        error: what it wrote to standard error.
        message: what Kubernetes would show as the container's last words.
    """

    status: int
    error: str
    message: str


@pytest.fixture
def run(released, tmp_path, monkeypatch, capsys) -> Iterator[Callable[..., Outcome]]:
    """Runs the initializer as its container does, in this process."""
    message = tmp_path / "termination-log"
    monkeypatch.setattr(termination, "TERMINATION_LOG", message)
    handler = signal.getsignal(signal.SIGTERM)
    # This process is not the initializer's afterwards.
    monkeypatch.setattr(lean_imports, "_own_process", False)

    def run(source: str, destination: Path) -> Outcome:
        message.write_text("")
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
            status = main([source, str(destination)])
        return Outcome(status, capsys.readouterr().err, message.read_text())

    yield run
    signal.signal(signal.SIGTERM, handler)
