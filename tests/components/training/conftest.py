import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.labelled_rows import labelled_frame, write_rows


@dataclass(frozen=True)
class Rows:
    train: Path
    validation: Path


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Rows:
    """Training and later validation rows; a country occurs in the later ones only."""
    folder = tmp_path_factory.mktemp("rows")
    return Rows(
        write_rows(folder / "train.parquet", labelled_frame(3000, 0)),
        write_rows(folder / "validation.parquet", labelled_frame(1500, 1, day=5, countries=("FR", "DE", "IT", "XX"))),
    )


@pytest.fixture(scope="session")
def _database(tmp_path_factory) -> Path:
    """An empty MLflow database, so that each test need not make its own."""
    from modelyard.components import tracking

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("MODELYARD_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.client()
    return folder / "mlflow.db"


@pytest.fixture
def home(_database, tmp_path, monkeypatch) -> Path:
    """A laptop's home of its own, without anything from the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(_database, folder / "mlflow.db")
    monkeypatch.setenv("MODELYARD_HOME", str(folder))
    for name in ("TRACKING_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    return folder


@pytest.fixture
def runs(home):
    """Gives every MLflow run of the home, newest first."""
    from modelyard.components import tracking

    def all_runs() -> list:
        client = tracking.client()
        return client.search_runs([found.experiment_id for found in client.search_experiments()])

    return all_runs
