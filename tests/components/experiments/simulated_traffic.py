"""Traffic of customers whose rows resemble each other, split between two versions, and its labels."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.components.artifacts.model import Feature
from modelyard.components.experiments.estimators import ArmRows, ranked_rows
from modelyard.components.predictions.writer import PredictionLog

FIRST = datetime(2026, 5, 1, tzinfo=UTC)
THRESHOLD = 0.2


@dataclass(frozen=True)
class Requests:
    """One row each: key, moment in [0, 1), label and score."""

    keys: np.ndarray
    moments: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def requests(generator, keys, *, rows_per_key=5.0, rate=0.05, quality=1.5, alike=1.0) -> Requests:
    """Customers who come at different times, send few or many requests, and differ in how often they are positive.

    Args:
        generator: of random numbers.
        keys: customers.
        rows_per_key: mean requests of each.
        rate: of the positives, for the customer in the middle.
        quality: how far positives score above negatives, in log-odds.
        alike: spread of the customers' own log-odds of being positive.
    """
    activity = generator.lognormal(0, 1, keys)
    counts = np.maximum(generator.poisson(activity * rows_per_key / activity.mean()), 1)
    key = np.repeat(np.arange(keys), counts)
    first = generator.random(keys)[key] * 0.8
    moments = first + generator.random(len(key)) * (1 - first)
    odds = np.log(rate / (1 - rate)) + generator.normal(0, alike, keys)[key]
    labels = generator.random(len(key)) < 1 / (1 + np.exp(-odds))
    height = generator.normal(size=len(key)) + quality * labels - 3 + generator.normal(0, 0.5, keys)[key]
    return Requests(key, moments, labels, 1 / (1 + np.exp(-height)))


def arm(found: Requests, looks: int) -> ArmRows:
    """The same as an arm's rows, seen in equal steps of time."""
    return ranked_rows(
        found.scores, found.labels, found.scores >= THRESHOLD, found.keys, (found.moments * looks).astype(np.int64)
    )


def split_by_key(generator, keys, share, **traffic) -> tuple[Requests, Requests]:
    """Requests to two versions, each key's to one of them."""
    control = requests(generator, round(keys * (1 - share)), **traffic)
    trial = requests(generator, round(keys * share), **traffic)
    return control, replace(trial, keys=trial.keys + keys)


def split_by_request(generator, keys, share, **traffic) -> tuple[Requests, Requests]:
    """Requests to two versions, one of which chance chooses each time."""
    found = requests(generator, keys, **traffic)
    return divided(found, generator.random(len(found.keys)) < share)


def divided(found: Requests, in_trial: np.ndarray) -> tuple[Requests, Requests]:
    """The requests of the control and those of the trial."""
    columns = found.keys, found.moments, found.labels, found.scores
    control, trial = (Requests(*(column[part] for column in columns)) for part in (~in_trial, in_trial))
    return control, trial


def predictions(
    seed, *, keys=600, share=0.5, days=30.0, quality=(1.5, 1.5), rate=0.1, split_by="key"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log of versions 1 and 2 as the reader gives it, and all labels."""
    generator = np.random.default_rng(seed)
    parts = []
    chance = None
    for version, part in (("1", 1 - share), ("2", share)):
        if split_by == "key":
            found = requests(generator, round(keys * part), quality=quality[version == "2"], rate=rate)
            prefix = f"v{version}-"
        else:
            # The same customers, times and labels for both versions, of which each request meets one.
            found = requests(np.random.default_rng(seed + 10**6), keys, quality=quality[version == "2"], rate=rate)
            chance = generator.random(len(found.keys)) < share if chance is None else chance
            found = divided(found, chance)[version == "2"]
            prefix = "k"
        microseconds = (found.moments * days * 86_400e6).astype(np.int64)
        parts.append(
            pl.DataFrame(
                {
                    "key": [f"{prefix}{key}" for key in found.keys],
                    "time": pl.Series(microseconds).cast(pl.Duration("us")) + FIRST,
                    "version": version,
                    "score": found.scores,
                    "decision": (found.scores >= THRESHOLD).astype(np.int8),
                    "label": found.labels.astype(np.int8),
                }
            )
        )
    frame = pl.concat(parts).sort("time").with_row_index("number")
    frame = frame.with_columns(pl.format("r{}", "number").alias("request_id"), pl.lit(0, pl.Int32).alias("row"))
    log = frame.select("request_id", "row", "time", "version", "key", pl.lit(False).alias("mirrored"), "score", "decision")
    return log, frame.select("request_id", "label")


def write_log(folder: Path, frame: pl.DataFrame, model_name: str = "fraud") -> None:
    """Writes a log as predictors do."""
    for (version,), part in frame.group_by("version", maintain_order=True):
        log = PredictionLog(
            str(folder),
            model_name=model_name,
            version=version,
            digest=f"digest of {version}",
            features=(Feature("amount"),),
            rotate_rows=1 << 30,
            max_rows=1 << 30,
            max_bytes=1 << 40,
        )
        for row in part.iter_rows(named=True):
            at = round((row["time"] - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000
            log.append(
                row["request_id"], row["key"], at, [[1.0]], np.array([row["score"]]), np.array([row["decision"]], np.int8)
            )
        assert log.close(60)
