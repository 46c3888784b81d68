"""A small Feast repo whose sources a test rewrites, and the ways to ask it: Feast's own DuckDB store is the oracle."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import polars as pl
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_source import DataSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.repo_config import RepoConfig, load_repo_config
from feast.types import Float64, Int64, String

from modelyard.components.features.feature_repo import AS_OF_STORE

PROJECT = "oracle"
SERVICE = "everything"
TTL = timedelta(hours=2)
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)

# Columns of the sources; a view without created, one with two keys, one joined by another name.
SOURCES = {
    "customer": {"customer_id": pl.Int64, "spent": pl.Float64, "visits": pl.Int64},
    "pair": {"customer_id": pl.Int64, "shop": pl.String, "score": pl.Float64},
    "shop": {"shop": pl.String, "rating": pl.Float64},
}


class ElsewhereOfflineStore(DuckDBOfflineStore):
    """A store that this package does not know: it has to be called through Feast."""


class ElsewhereOfflineStoreConfig(DuckDBOfflineStoreConfig):
    type: str = "tests.support.feast_oracle.ElsewhereOfflineStore"


class LossyOfflineStore(DaskOfflineStore):
    """Feast's default store under a name that this package does not know."""


class LossyOfflineStoreConfig(DaskOfflineStoreConfig):
    type: str = "tests.support.feast_oracle.LossyOfflineStore"


def create_repo(folder: Path, source: Callable[..., DataSource] = FileSource) -> None:
    """Applies the definitions in ``folder``; its sources are empty files until ``write_source`` fills them.

    Args:
        folder: where the repo is made.
        source: Feast's class of the sources, or what makes one of the same arguments.
    """
    # DuckDB takes a file rewritten within the same moment for the one that it knows.
    ibis.get_backend().raw_sql("SET enable_external_file_cache = false")
    (folder / "data").mkdir(parents=True)
    choose_store(folder, "duckdb")
    for name in SOURCES:
        write_source(folder, name, [])
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    types = {pl.Int64: Int64, pl.Float64: Float64, pl.String: String}

    def view(file: str, entities: list[Entity], ttl: timedelta, created: str, name: str = "") -> FeatureView:
        columns = {column: kind for column, kind in SOURCES[file].items() if column not in ("customer_id", "shop")}
        return FeatureView(
            name=name or file,
            entities=entities,
            ttl=ttl,
            schema=[Field(name=column, dtype=types[kind]) for column, kind in columns.items()],
            source=source(
                name=name or file,
                path=str(folder / "data" / f"{file}.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column=created,
            ),
        )

    views = [
        view("customer", [customer], TTL, "created"),
        view("pair", [customer, shop], timedelta(0), "created"),
        view("shop", [shop], TTL, ""),
    ]
    # A view of its own: Feast cannot compare services that hold one view twice.
    again = view("shop", [shop], TTL, "", name="shop_again")
    home = again.with_name("home").with_join_key_map({"shop": "home_shop"})
    store = FeatureStore(repo_path=str(folder))
    store.apply([customer, shop, *views, again, FeatureService(name=SERVICE, features=[*views, home])])


def choose_store(folder: Path, offline_store: str) -> None:
    """Rewrites ``feature_store.yaml`` for another offline store."""
    Path(folder, "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: data/registry.db\noffline_store:\n  type: {offline_store}\n"
        "online_store:\n  type: sqlite\n  path: data/online.db\nentity_key_serialization_version: 3\n"
    )


def write_source(folder: Path, name: str, rows: list[dict]) -> None:
    """Replaces a source's rows, each a dict of its columns, ``event_timestamp`` and ``created``."""
    moment = pl.Datetime("us", "UTC")
    schema = {**SOURCES[name], "event_timestamp": moment, "created": moment}
    pl.DataFrame(rows, schema=schema).write_parquet(folder / "data" / f"{name}.parquet")


def config(folder: Path, offline_store: str = "duckdb", **settings: object) -> RepoConfig:
    """The repo's configuration with another offline store."""
    loaded = load_repo_config(folder, folder / "feature_store.yaml")
    loaded.offline_config = {"type": offline_store, **settings}
    return loaded


def ask(folder: Path, entity_rows: pl.DataFrame, offline_store: str, *, cutoff: bool, service: str = SERVICE) -> pl.DataFrame:
    """What a store answers through Feast, with full feature names, sorted by the entity rows' column ``row``."""
    settings = {"filter_by_created_timestamp": cutoff} if offline_store == AS_OF_STORE else {}
    store = FeatureStore(repo_path=str(folder), config=config(folder, offline_store, **settings))
    job = store.get_historical_features(
        entity_df=entity_rows.to_pandas(),
        features=store.get_feature_service(service),
        full_feature_names=True,
        filter_by_created_timestamp=cutoff,
    )
    return pl.DataFrame(job.to_arrow())
