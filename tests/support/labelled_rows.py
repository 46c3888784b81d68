"""Small labelled rows of every kind of column, for the tests of the trainers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset

FEATURES = ("amount", "risk", "country", "night")
START = datetime(2024, 1, 1, tzinfo=UTC)


def labelled_frame(rows: int, seed: int, *, day: int = 0, countries: tuple[str, ...] = ("FR", "DE", "IT")) -> pl.DataFrame:
    """Rows whose label depends on every feature; a tenth of the amounts and some countries are missing."""
    random = np.random.default_rng(seed)
    amount, risk = random.lognormal(3, 1, rows), random.normal(size=rows)
    country, night = random.choice(np.array(countries), rows), random.random(rows) < 0.3
    logit = np.log(amount) + 1.5 * risk + 1.0 * (country == "DE") + 1.0 * night - 5.5
    return pl.DataFrame(
        {
            "customer_id": random.integers(0, 50, rows),
            "event_timestamp": [START + timedelta(days=day, seconds=second) for second in range(rows)],
            "amount": amount,
            "risk": risk,
            "country": country,
            "night": night,
            "fraud": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        }
    ).with_columns(
        pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")),
        pl.when(pl.int_range(pl.len()) % 10 == 3).then(None).otherwise("amount").alias("amount"),
        pl.when(pl.int_range(pl.len()) % 17 == 5).then(None).otherwise("country").alias("country"),
    )


def write_rows(path: Path, frame: pl.DataFrame, features: tuple[str, ...] = FEATURES) -> Path:
    """Writes the frame as a dataset with the roles of this module's columns."""
    write_dataset(frame, path, DatasetInfo(Roles(features, "fraud", "event_timestamp", ("customer_id",)), {"from": "a test"}))
    return path
