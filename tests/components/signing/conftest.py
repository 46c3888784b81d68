import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelyard.components.signing.provenance import Provenance
from tests.support.signed_models import make_signed_model


@dataclass(frozen=True)
class Signed:
    """A signed model directory that a test may spoil."""

    directory: Path
    provenance: Provenance


@pytest.fixture(scope="session")
def _home(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MODELYARD_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def _models(_home, tmp_path_factory) -> dict[int, Signed]:
    """Two versions of one model, signed with the key of one laptop."""
    root = tmp_path_factory.mktemp("models")
    return {seed: Signed(root / str(seed) / "signed", make_signed_model(root / str(seed), seed=seed)) for seed in (0, 1)}


@pytest.fixture
def home(_home, monkeypatch) -> Path:
    """The laptop whose key signed the models."""
    monkeypatch.setenv("MODELYARD_HOME", str(_home))
    for variable in ("MODELYARD_TRUST", "MODELYARD_SIGNING_KEY", "MODELYARD_VERIFICATION_KEY", "MODELYARD_MODEL_STORE"):
        monkeypatch.delenv(variable, raising=False)
    return _home


def _copy(signed: Signed, to: Path) -> Signed:
    shutil.copytree(signed.directory, to)
    return Signed(to, signed.provenance)


@pytest.fixture
def signed(home, _models, tmp_path) -> Signed:
    return _copy(_models[0], tmp_path / "first")


@pytest.fixture
def newer(home, _models, tmp_path) -> Signed:
    """Another version of the same model, by the same signer."""
    return _copy(_models[1], tmp_path / "newer")
