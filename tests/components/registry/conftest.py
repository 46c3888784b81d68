import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelyard.components.registry.registration import Registered, register_model
from tests.support.signed_models import attestations, sign_model, train_small_model


@pytest.fixture(scope="session")
def _empty_registry(tmp_path_factory) -> Path:
    """A home whose registry exists and is empty; making one takes MLflow seconds."""
    home = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from modelyard.components.tracking.connection import client

        client()
    return home


@pytest.fixture(scope="session")
def _trained(tmp_path_factory) -> Callable[[int], Path]:
    """Small models by seed, each trained once."""
    root = tmp_path_factory.mktemp("trained")

    def trained(seed: int) -> Path:
        return root / str(seed) if (root / str(seed)).exists() else train_small_model(root / str(seed), seed)

    return trained


@pytest.fixture
def home(_empty_registry, tmp_path, monkeypatch) -> Path:
    """A laptop with an empty registry."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(_empty_registry / "mlflow.db", home / "mlflow.db")
    monkeypatch.setenv("MODELYARD_HOME", str(home))
    for variable in ("MLFLOW_TRACKING_URI", "MODELYARD_MODEL_STORE", "MODELYARD_TRUST", "MODELYARD_SIGNING_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return home


@dataclass(frozen=True)
class Release:
    """A signed model and the evaluation that passed it."""

    signed: Path
    evaluation: Path

    def register(self, **details: Any) -> Registered:
        return register_model(self.signed, evaluation=self.evaluation, model_name="fraud", **details)


@pytest.fixture
def release(home, _trained, tmp_path) -> Callable[..., Release]:
    """Signs the small model of a seed; ``champion`` is the registered version it was judged against."""
    made: list[Path] = []

    def release(seed: int = 0, champion: Registered | None = None, run_id: str = "", **entries: Any) -> Release:
        folder = tmp_path / f"release{len(made)}"
        made.append(folder)
        against = {"version": champion.version, "digest": champion.digest} if champion else None
        papers = attestations(folder / "papers", _trained(seed), champion=against, **entries)
        sign_model(_trained(seed), **papers, signed_model=folder / "signed", model_name="fraud", run_id=run_id)
        return Release(folder / "signed", papers["evaluation"])

    return release
