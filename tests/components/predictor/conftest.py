import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import write_golden_rows
from modelyard.components.predictor.app import App
from modelyard.components.predictor.configuration import Configuration
from modelyard.components.predictor.logged import LoggedPredictions
from modelyard.components.predictor.metrics import Metrics
from modelyard.components.predictor.served_model import ServedModel
from modelyard.components.signing.sign import sign_model
from tests.components.predictor.processes import PredictorProcess, start_predictor
from tests.support.signed_models import attestations, make_signed_model

MIXED = (Feature("amount"), Feature("country", ("DE", "FR", "US")), Feature("hour"))


def _make_mixed_model(folder: Path) -> None:
    """A signed model of two numbers and a category, ``folder/signed``."""
    import xgboost

    model = folder / "model"
    model.mkdir(parents=True)
    generator = np.random.default_rng(3)
    matrix = np.stack(
        [generator.normal(size=300), generator.integers(0, 3, 300), generator.integers(0, 24, 300)], axis=1
    ).astype(np.float32)
    label = (matrix[:, 0] + matrix[:, 1] > 1.5).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgboost.DMatrix(matrix, label), num_boost_round=5
    )
    booster.save_model(model / "model.ubj")
    spec = ModelSpec(MIXED, "fraud", "model.ubj", 0.5, data={"digest": "blake3:" + "d" * 64})
    write_spec(model, spec)
    write_golden_rows(model, spec, matrix[:4], booster.predict(xgboost.DMatrix(matrix[:4])))
    sign_model(model, **attestations(folder / "inputs", model), signed_model=folder / "signed", model_name="fraud")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Signed directories by name: ``first`` and ``second`` versions of one model, and ``mixed``, which has a category."""
    root = tmp_path_factory.mktemp("predictor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(root / "home"))
        for variable in ("MODELYARD_TRUST", "MODELYARD_SIGNING_KEY", "MODELYARD_VERIFICATION_KEY", "MODELYARD_MODEL_STORE"):
            patch.delenv(variable, raising=False)
        make_signed_model(root / "first")
        make_signed_model(root / "second", seed=1)
        _make_mixed_model(root / "mixed")
        yield {name: root / name / "signed" for name in ("first", "second", "mixed")}


@pytest.fixture(autouse=True)
def _home(models, monkeypatch) -> None:
    """The laptop whose key signed the models."""
    monkeypatch.setenv("MODELYARD_HOME", str(models["first"].parents[1] / "home"))


@pytest.fixture(scope="session")
def load(models) -> Callable[..., ServedModel]:
    """Loads one of the models in this process; each is loaded once."""
    loaded: dict[str, ServedModel] = {}

    def load_model(name: str) -> ServedModel:
        if name not in loaded:
            loaded[name] = ServedModel("fraud", models[name], Configuration(version="7"))
            loaded[name].load()
        return loaded[name]

    return load_model


@pytest.fixture(scope="session")
def make_app(load) -> Callable[..., App]:
    """The application of one of the models, with counts of its own."""

    def make(name: str = "first", max_request_bytes: int = 100_000, log_folder: str = "", offers_reload: bool = True) -> App:
        async def no_reload() -> str:
            return ""

        model = load(name)
        metrics = Metrics("fraud", "7", model.loaded.digest)
        return App(model, metrics, LoggedPredictions(log_folder), no_reload, max_request_bytes, offers_reload)

    return make


@pytest.fixture(scope="session")
def served(models, tmp_path_factory) -> Iterator[PredictorProcess]:
    """A predictor of ``first`` as a process, which many tests share and none stops."""
    predictor = start_predictor(tmp_path_factory.mktemp("served"), models["first"], MODEL_VERSION="7")
    predictor.wait_for("ready")
    yield predictor
    assert predictor.stop() == 0


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., PredictorProcess]]:
    """Starts predictors that end with the test."""
    started: list[PredictorProcess] = []

    def start_one(model: Path, **arguments) -> PredictorProcess:
        started.append(start_predictor(tmp_path / f"predictor-{len(started)}", model, **arguments))
        return started[-1]

    yield start_one
    for predictor in started:
        if predictor.process.poll() is None:
            predictor.process.kill()
            predictor.process.wait()


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], str]:
    """The digest that a signed directory says it has."""
    return lambda directory: json.loads((directory / "provenance.json").read_text())["model_digest"]
