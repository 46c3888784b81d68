from pathlib import Path

import pytest

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.registry.champion import Champion
from tests.components.evaluation.tiny_models import transactions, write_model, write_test_set


@pytest.fixture(scope="session")
def strong(tmp_path_factory) -> Path:
    """A model that sees every feature."""
    return write_model(tmp_path_factory.mktemp("strong") / "model", transactions(5000, 1))


@pytest.fixture(scope="session")
def weak(tmp_path_factory) -> Path:
    """A model that lacks the best feature."""
    return write_model(tmp_path_factory.mktemp("weak") / "model", transactions(5000, 1), ("amount", "hour", "country"))


@pytest.fixture(scope="session")
def test_set(tmp_path_factory) -> Path:
    return write_test_set(transactions(5000, 2), tmp_path_factory.mktemp("data") / "test.parquet")


def champion_of(model: Path) -> Champion:
    return Champion("3", model_digest(model), model)
