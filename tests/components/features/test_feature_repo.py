"""Reading feature repos: settings, registries and definitions as users have them."""

import sys
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.errors import InvalidInput
from modelyard.components.features.feature_repo import plan_from_registry, read_settings
from modelyard.components.features.fetching import Request, fetch_training_data

T = datetime(2024, 1, 1, tzinfo=UTC)


def _yaml(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "feature_store.yaml").write_text(text)
    return folder


def test_feasts_defaults_are_ours(tmp_path):
    settings = read_settings(_yaml(tmp_path, "project: p\n"))
    assert settings.offline_store == "dask"
    assert settings.joins_as_of
    assert settings.registry_file == tmp_path / "data/registry.db"


def test_environment_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/registries/r.db")
    settings = read_settings(_yaml(tmp_path, "project: p\nregistry: ${WHERE}\noffline_store: {type: spark}\n"))
    assert str(settings.registry_file) == "/registries/r.db"
    assert not settings.joins_as_of


@pytest.mark.parametrize("registry", ["s3://bucket/r.db", "{registry_type: sql, path: 'sqlite:///r.db'}"])
def test_a_registry_that_is_no_local_file_is_left_to_feast(tmp_path, registry):
    settings = read_settings(_yaml(tmp_path, f"project: p\nregistry: {registry}\noffline_store: duckdb\n"))
    assert settings.registry_file is None
    assert plan_from_registry(settings, "any") is None


@pytest.mark.parametrize("text", ["- a\n", "project: 7\n", "project: [\n"])
def test_settings_that_are_none_are_refused(tmp_path, text):
    with pytest.raises(InvalidInput, match=r"feature_store\.yaml"):
        read_settings(_yaml(tmp_path, text))


def test_a_folder_that_is_no_feature_repo_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="give a Feast feature repo"):
        read_settings(tmp_path)


def test_a_repo_that_was_never_applied_says_so(tmp_path):
    settings = read_settings(_yaml(tmp_path, "project: p\noffline_store: duckdb\n"))
    with pytest.raises(InvalidInput, match="run `feast apply` in it first"):
        plan_from_registry(settings, "any")


def test_renamed_columns_folders_of_parts_on_demand_views_and_a_sql_registry_are_served(tmp_path, monkeypatch):
    """One repo with what the other tests leave out, read without Feast first and through Feast where it must be."""
    # The image that fetches has no Spark.
    for name in [name for name in sys.modules if name.startswith("feast.infra.offline_stores.contrib.spark")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64

    folder = _yaml(tmp_path / "repo", _settings("data/registry.db"))
    (folder / "data" / "parts").mkdir(parents=True)
    for key in (1, 2):
        row = {"customer": [key], "at": [T], "n": [10.0 * key]}
        pl.DataFrame(row).write_parquet(folder / "data" / "parts" / f"{key}.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(
        name="parts",
        path=str(folder / "data" / "parts" / "*.parquet"),
        timestamp_field="event_timestamp",
        field_mapping={"customer": "customer_id", "at": "event_timestamp", "n": "spent"},
    )
    view = FeatureView(
        name="spending", entities=[customer], ttl=timedelta(days=1), schema=[Field(name="spent", dtype=Float64)], source=source
    )

    @on_demand_feature_view(
        sources=[view, RequestSource(name="request", schema=[Field(name="amount", dtype=Float64)])],
        schema=[Field(name="share", dtype=Float64)],
        mode="pandas",
    )
    def shares(inputs):
        import pandas

        return pandas.DataFrame({"share": inputs["amount"] / inputs["spent"]})

    services = [FeatureService(name="plain", features=[view]), FeatureService(name="shared", features=[view, shares])]
    FeatureStore(repo_path=str(folder)).apply([customer, view, shares, *services])
    rows = pl.DataFrame(
        {"event_timestamp": [T, T - timedelta(days=1), T], "customer_id": [2, 1, 1], "amount": [5.0, 5.0, 5.0], "y": [0, 1, 1]}
    )
    rows.write_parquet(tmp_path / "rows")

    def fetch(service):
        fetch_training_data(Request(str(folder), str(tmp_path / "rows"), service, "y"), tmp_path / "data")
        return read_dataset(tmp_path / "data")

    assert plan_from_registry(read_settings(folder), "plain") is not None
    frame, _ = fetch("plain")
    assert frame["spent"].to_list() == [20.0, None, 10.0]

    assert plan_from_registry(read_settings(folder), "shared") is None
    frame, info = fetch("shared")
    assert info.roles.features == ("spent", "share")
    assert info.roles.entities == ("customer_id",)
    assert frame["spent"].to_list() == [20.0, None, 10.0]
    assert frame["share"].to_list()[::2] == [0.25, 0.5]

    database = f"{{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.sqlite'}}"
    _yaml(folder, _settings(database))
    FeatureStore(repo_path=str(folder)).apply([customer, view, services[0]])
    frame, _ = fetch("plain")
    assert frame["spent"].to_list() == [20.0, None, 10.0]
    with pytest.raises(InvalidInput, match="feature_service = 'loans': the feature repo has no such service; it has plain"):
        fetch("loans")


def _settings(registry):
    return (
        f"project: p\nprovider: local\nregistry: {registry}\noffline_store: {{type: duckdb}}\n"
        "online_store: {type: sqlite, path: data/online.db}\nentity_key_serialization_version: 3\n"
    )
