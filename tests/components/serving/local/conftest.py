import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelyard.components.serving.local.predictor_process import find_predictors
from modelyard.components.serving.local.processes import ProcessIdentity, find, identify
from modelyard.components.serving.local.state import read_observed
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.target import ServedModel
from tests.services.servers import free_port
from tests.support.checked_traffic import CheckedTraffic
from tests.support.signed_models import make_signed_model


@dataclass
class Yard:
    """A home with signed models of three versions, whatever is served of them, and a port of its own."""

    home: Path
    models: dict[str, ServedModel]
    port: int

    @property
    def folder(self) -> Path:
        return self.home / "serving"

    def target(self) -> LocalTarget:
        return LocalTarget(self.home)

    def traffic(self, **arguments) -> CheckedTraffic:
        folders = {version: Path(model.uri) for version, model in self.models.items()}
        return CheckedTraffic(f"http://127.0.0.1:{self.port}", folders, **arguments)

    def supervisor(self) -> ProcessIdentity:
        return read_observed(self.folder).supervisor

    def proxy(self) -> ProcessIdentity:
        return identify(self.target().health().proxy)

    def predictor(self, version: str) -> ProcessIdentity:
        """The predictor that serves a version; there is one."""
        (found,) = [found for name, found in find_predictors(self.folder).items() if f"-v{version}-" in name]
        return found

    def processes(self) -> list[ProcessIdentity]:
        """Everything that runs for this home."""
        return find(str(self.home))

    def serve(self, version: str = "1") -> LocalTarget:
        """Puts a version in charge, without a canary."""
        target = self.target()
        target.roll_back("fraud")
        target.restore("fraud", self.models[version])
        return target


def until(so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def signed_versions(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A folder of keys, and the signed directories of three versions."""
    home = tmp_path_factory.mktemp("signer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(home))
        for version in ("1", "2", "3"):
            make_signed_model(home / version, seed=int(version))
    return home / "keys", {version: home / version / "signed" for version in ("1", "2", "3")}


def make_yard(home: Path, signed: tuple[Path, dict[str, Path]]) -> Yard:
    from modelyard.components.signing.verification import verify_model

    keys, directories = signed
    shutil.copytree(keys, home / "keys")
    models = {}
    for version, directory in directories.items():
        digest = verify_model(directory).model_digest
        place = home / "models" / "fraud" / digest.removeprefix("blake3:")
        shutil.copytree(directory, place)
        models[version] = ServedModel(version, digest, str(place))
    return Yard(home, models, free_port())


@pytest.fixture
def new_yard(tmp_path, signed_versions, monkeypatch) -> Iterator[Callable[..., Yard]]:
    """Makes a home in which nothing is served yet; everything that runs for it ends with the test."""
    made = []

    def make(home: Path = tmp_path / "home") -> Yard:
        monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", str(signed_versions[0] / "signing.pub"))
        yard = make_yard(home, signed_versions)
        monkeypatch.delenv("MODELYARD_VERIFICATION_KEY")
        monkeypatch.setenv("MODELYARD_SERVING_PORT", str(yard.port))
        monkeypatch.setenv("MODELYARD_HOME", str(home))
        made.append(yard)
        return yard

    yield make
    for yard in made:
        end(yard)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory, signed_versions) -> Iterator[Yard]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_VERIFICATION_KEY", str(signed_versions[0] / "signing.pub"))
        yard = make_yard(tmp_path_factory.mktemp("shared"), signed_versions)
    yield yard
    end(yard)


@pytest.fixture
def yard(shared_home, monkeypatch) -> Yard:
    """The home that the tests of a module share; a test says with ``serve`` how it begins."""
    monkeypatch.setenv("MODELYARD_SERVING_PORT", str(shared_home.port))
    monkeypatch.setenv("MODELYARD_HOME", str(shared_home.home))
    return shared_home


def end(yard: Yard) -> None:
    """Ends whatever runs for a home, however it is, and makes sure of it."""
    if yard.folder.is_dir():
        yard.target().stop()
    left = [found for found in yard.processes() if found.pid != os.getpid()]
    for process in left:
        process.signal(9)
    assert not left
