from pathlib import Path

import pytest

from tests.support.signed_models import make_signed_model


@pytest.fixture(scope="session")
def _signed(tmp_path_factory) -> tuple[Path, Path]:
    """A laptop's home and a model signed with its key."""
    root = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(root / "home"))
        make_signed_model(root)
    return root / "home", root / "signed"


@pytest.fixture
def signed(_signed, monkeypatch) -> Path:
    """A signed model directory, which no test alters, of the laptop that this process is on."""
    home, directory = _signed
    monkeypatch.setenv("MODELYARD_HOME", str(home))
    for variable in ("MODELYARD_TRUST", "MODELYARD_SIGNING_KEY", "MODELYARD_VERIFICATION_KEY", "MODELYARD_MODEL_STORE"):
        monkeypatch.delenv(variable, raising=False)
    return directory
