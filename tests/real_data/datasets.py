"""Makes a Feast repo and labelled entity rows of each real dataset, from files that are not part of this repository."""

import calendar
import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

HERE = Path(__file__).parent
DATA = Path(os.environ.get("MODELYARD_TEST_DATA", HERE.parents[2] / "shared" / "data"))


def require(*parts: str) -> Path:
    """Path of a data file; skips the test where it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real data is not here: {path} (set MODELYARD_TEST_DATA to the folder that holds {parts[0]}/)")
    return path


def _repo(name: str, folder: Path) -> Path:
    repo = folder / "feature_repo"
    shutil.copytree(HERE / name, repo, ignore=shutil.ignore_patterns("__pycache__"))
    (repo / "data").mkdir()
    return repo


def _apply(repo: Path) -> Path:
    feast = Path(sys.executable).with_name("feast")
    subprocess.run([feast, "apply"], cwd=repo, check=True, capture_output=True, env={**os.environ, "FEAST_USAGE": "False"})
    return repo


def credit_scoring(folder: Path, change_definitions: Callable[[Path], None] | None = None) -> tuple[Path, Path]:
    """Feature repo and entity rows of 28,638 loan applications, 2020-08-25 to 2021-08-25; label ``loan_status``.

    ``change_definitions`` may edit the copy's ``features.py`` before it is applied.
    """
    repo = _repo("credit_scoring", folder)
    if change_definitions:
        change_definitions(repo / "features.py")
    history = pl.read_csv(require("credit_scoring", "credit_history_sample.csv"), try_parse_dates=True)
    times = pl.col("event_timestamp", "created_timestamp").dt.replace_time_zone("UTC").dt.cast_time_unit("us")
    history.with_columns(times).write_parquet(repo / "data" / "credit_history.parquet")
    zips = pl.read_parquet(require("credit_scoring", "zipcode_table.parquet"))
    zips.with_columns(pl.col("event_timestamp", "created_timestamp").dt.cast_time_unit("us")).write_parquet(
        repo / "data" / "zipcode_table.parquet"
    )
    loans = pl.read_parquet(require("credit_scoring", "loan_table.parquet"))
    rows = folder / "loans.parquet"
    loans.drop("created_timestamp").with_columns(pl.col("event_timestamp").dt.cast_time_unit("us")).write_parquet(rows)
    return _apply(repo), rows


def bank_marketing(folder: Path) -> tuple[Path, Path]:
    """Feature repo and entity rows of 41,188 calls, May 2008 to November 2010; label ``subscribed``.

    The file is in time order but gives only month names: the year follows from the months' turn, the moment within a month
    from the row's place in it. ``duration`` is left out, because it is known only after the call.
    """
    repo = _repo("bank_marketing", folder)
    calls = pl.read_csv(require("bank_marketing", "bank-additional-full.csv"), separator=";", infer_schema_length=None).drop(
        "duration"
    )
    calls = calls.rename({name: name.replace(".", "_") for name in calls.columns})
    months = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if number}
    year, previous, starts = 2008, 5, []
    for name in calls["month"]:
        month = months[name]
        if month < previous:
            year += 1
        previous = month
        starts.append(dt.datetime(year, month, 1, tzinfo=dt.UTC))
    calls = calls.with_columns(
        pl.Series("month_start", starts).dt.cast_time_unit("us"),
        pl.int_range(pl.len()).alias("client_id"),
        pl.lit("PT").alias("market"),
    ).with_columns(
        (
            pl.col("month_start")
            + pl.duration(
                seconds=(pl.int_range(pl.len()).over("month_start") * 28 * 86400 / pl.len().over("month_start")).cast(pl.Int64)
            )
        ).alias("event_timestamp"),
        (pl.col("y") == "yes").cast(pl.Int64).alias("subscribed"),
    )
    economy = ["emp_var_rate", "cons_price_idx", "cons_conf_idx", "euribor3m", "nr_employed"]
    changed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in economy)
    calls.filter(changed).select("market", "event_timestamp", *economy).write_parquet(repo / "data" / "economy.parquet")
    profile = [
        "client_id", "event_timestamp", "age", "job", "marital", "education", "default", "housing", "loan", "contact",
        "poutcome", "campaign", "pdays", "previous",
    ]  # fmt: skip
    calls.select(profile).write_parquet(repo / "data" / "clients.parquet")
    rows = folder / "calls.parquet"
    calls.select("client_id", "market", "event_timestamp", "subscribed").write_parquet(rows)
    return _apply(repo), rows
