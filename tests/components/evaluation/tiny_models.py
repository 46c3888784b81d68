"""Small transactions and small real models on them, for the tests of this room."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import write_golden_rows

COUNTRIES = ("FR", "DE", "<b>XX</b>")
FEATURES = ("amount", "risk", "hour", "country")
START = datetime(2024, 1, 1, tzinfo=UTC)


def transactions(rows: int, seed: int, *, customers: int = 200, days: int = 10, rate: float = 0.08) -> pl.DataFrame:
    """Rows whose fraud depends on amount, risk and customer."""
    random = np.random.default_rng(seed)
    customer = random.integers(0, customers, rows)
    amount, risk = random.lognormal(3, 1, rows), random.normal(size=rows)
    trait = np.random.default_rng(99).normal(size=customers)[customer]
    logit = 0.8 * (np.log(amount) - 3) + 1.2 * risk + 0.5 * trait + random.normal(size=rows)
    seconds = np.sort(random.integers(0, days * 86_400, rows))
    moments = [START + timedelta(seconds=int(second)) for second in seconds]
    return pl.DataFrame(
        {
            "customer_id": customer,
            "event_timestamp": pl.Series(moments, dtype=pl.Datetime("us", "UTC")),
            "amount": amount,
            "risk": risk,
            "hour": (seconds % 86_400) // 3600,
            "country": random.choice(COUNTRIES, rows, p=[0.6, 0.38, 0.02]),
            "fraud": (logit > np.quantile(logit, 1 - rate)).astype(np.int8),
        }
    )


def write_test_set(frame: pl.DataFrame, path: Path, features: tuple[str, ...] = FEATURES) -> Path:
    roles = Roles(features, "fraud", "event_timestamp", ("customer_id",))
    write_dataset(frame, path, DatasetInfo(roles, {"feature_service": "fraud_v1", "repo": {"revision": "abc123"}}))
    return path


def write_model(folder: Path, frame: pl.DataFrame, features: tuple[str, ...] = FEATURES, rounds: int = 25) -> Path:
    """A trained model directory in the collection's format."""
    import xgboost

    spec = ModelSpec(
        features=tuple(Feature(name, COUNTRIES if name == "country" else None) for name in features),
        label="fraud",
        model_file="model.ubj",
        threshold=0.3,
        training={"parameters": {"max_depth": 3, "eta": 0.3}, "rounds": rounds, "versions": {"xgboost": xgboost.__version__}},
        data={"rows": frame.height, "positives": int(frame["fraud"].sum())},
    )
    matrix = spec.encode(frame)
    types = ["c" if feature.categories is not None else "q" for feature in spec.features]
    data = xgboost.DMatrix(matrix, frame["fraud"].to_numpy(), feature_types=types, enable_categorical=True)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "nthread": 2, "base_score": 0.5}, data, rounds
    )
    folder.mkdir(parents=True)
    booster.save_model(folder / spec.model_file)
    write_spec(folder, spec)
    scores = booster.predict(xgboost.DMatrix(matrix[:5], feature_types=types, enable_categorical=True))
    write_golden_rows(folder, spec, matrix[:5], scores)
    return folder
