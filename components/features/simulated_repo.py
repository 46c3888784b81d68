"""Writes simulated transactions as a Feast feature repo, ready to be read from wherever it is copied to.

The registry is written here as ``feast apply`` would write it (a test compares the two), because starting Feast takes longer
than everything else; the Python definitions lie beside it, so that ``feast apply`` can take over.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from modelyard.components.features.feast_protos import registry_format
from modelyard.components.features.simulation import Scale, simulate
from modelyard.components.features.windows import (
    CUSTOMER_FEATURES,
    LABEL_DELAY,
    TERMINAL_FEATURES,
    WINDOWS,
    customer_windows,
    terminal_windows,
)
from modelyard.components.storage.files import atomic_directory, atomic_file

PROJECT = "card_transactions"
FEATURE_SERVICE = "fraud_detection"
LABEL = "is_fraud"
ENTITY_FEATURES = ("amount", "night", "weekend")
REGISTRY = "data/registry.db"

_FEATURE_STORE = f"""\
project: {PROJECT}
provider: local
registry: {REGISTRY}
offline_store:
  type: modelyard.components.features.offline_store.AsOfDuckDBOfflineStore
online_store:
  type: sqlite
  path: data/online.db
entity_key_serialization_version: 3
"""


@dataclass(frozen=True)
class _View:
    name: str
    entity: str
    features: tuple[str, ...]
    ttl_days: int

    @property
    def join_key(self) -> str:
        return f"{self.entity}_id"

    @property
    def path(self) -> str:
        return f"data/{self.name}.parquet"


# Once a view's longest window has passed without a transaction, its last row says nothing about the moment any more.
_VIEWS = (
    _View("customer_windows", "customer", CUSTOMER_FEATURES, max(WINDOWS)),
    _View("terminal_windows", "terminal", TERMINAL_FEATURES, max(WINDOWS) + LABEL_DELAY),
)


@dataclass(frozen=True)
class Simulated:
    """How many transactions were written, and how many of them are frauds."""

    transactions: int
    frauds: int


def write_simulated_repo(feature_repo: str | os.PathLike[str], entity_rows: str | os.PathLike[str], scale: Scale) -> Simulated:
    """Simulates transactions; writes their features as a Feast repo and the labelled transactions as entity rows.

    Amount, night (before seven in the morning, UTC) and weekend are columns of the entity rows, because at prediction time
    they come with the request; name them in ``fetch_features``' ``entity_features``.

    Args:
        feature_repo: folder to write; one that an earlier attempt left is replaced.
        entity_rows: Parquet file to write: ``transaction_id``, ``event_timestamp``, ``customer_id``, ``terminal_id``,
            ``amount``, ``night``, ``weekend`` (0 or 1) and the label ``is_fraud``, by time.
        scale: how much to simulate.
    """
    transactions = simulate(scale)
    shutil.rmtree(feature_repo, ignore_errors=True)
    with atomic_directory(feature_repo) as folder:
        (folder / "data").mkdir()
        (folder / "feature_store.yaml").write_text(_FEATURE_STORE, encoding="utf-8")
        (folder / "features.py").write_text(_definitions(_VIEWS), encoding="utf-8")
        (folder / REGISTRY).write_bytes(_registry(_VIEWS, scale).SerializeToString(deterministic=True))
        customer_windows(transactions).write_parquet(folder / _VIEWS[0].path)
        terminal_windows(transactions).write_parquet(folder / _VIEWS[1].path)
    moment = pl.col("event_timestamp").dt
    with atomic_file(entity_rows) as partial:
        transactions.select(
            "transaction_id",
            "event_timestamp",
            "customer_id",
            "terminal_id",
            "amount",
            (moment.hour() <= 6).cast(pl.Int8).alias("night"),
            (moment.weekday() >= 6).cast(pl.Int8).alias("weekend"),
            LABEL,
        ).write_parquet(partial)
    return Simulated(transactions.height, int(transactions[LABEL].sum()))


def _definitions(views: Sequence[_View]) -> str:
    lines = [
        '"""Features of simulated card transactions. `feast apply` in this folder writes them to the registry."""',
        "",
        "from datetime import timedelta",
        "",
        "from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType",
        "from feast.types import Float64, Int64",
    ]
    for view in views:
        lines += [
            "",
            f'{view.entity} = Entity(name="{view.entity}", join_keys=["{view.join_key}"], value_type=ValueType.INT64)',
            f"{view.name} = FeatureView(",
            f'    name="{view.name}",',
            f"    entities=[{view.entity}],",
            f"    ttl=timedelta(days={view.ttl_days}),",
            "    schema=[",
            *(f'        Field(name="{name}", dtype={"Int64" if "_count_" in name else "Float64"}),' for name in view.features),
            "    ],",
            "    source=FileSource(",
            f'        name="{view.name}",',
            f'        path="{view.path}",',
            '        timestamp_field="event_timestamp",',
            '        created_timestamp_column="created",',
            "    ),",
            ")",
        ]
    names = ", ".join(view.name for view in views)
    lines += ["", f'{FEATURE_SERVICE} = FeatureService(name="{FEATURE_SERVICE}", features=[{names}])', ""]
    return "\n".join(lines)


def _registry(views: Sequence[_View], scale: Scale) -> Any:
    """Feast's registry, as a protocol buffer; its clock is the start of the simulation."""
    form = registry_format()
    registry = form.Registry(registry_schema_version="1", version_id=f"{PROJECT}-{scale.seed}")
    integer, real = form.ValueType.Enum.INT64, form.ValueType.Enum.DOUBLE
    registry.last_updated.FromDatetime(scale.start)
    clock = {"created_timestamp": registry.last_updated, "last_updated_timestamp": registry.last_updated}
    registry.projects.add(spec={"name": PROJECT}, meta=clock)
    registry.entities.add(spec={"name": "__dummy", "join_key": "__dummy_id", "project": PROJECT}, meta=clock)
    service = registry.feature_services.add(spec={"name": FEATURE_SERVICE, "project": PROJECT}, meta=clock)
    for view in views:
        registry.entities.add(
            spec={"name": view.entity, "value_type": integer, "join_key": view.join_key, "project": PROJECT}, meta=clock
        )
        source = registry.data_sources.add(
            type="BATCH_FILE",
            name=view.name,
            project=PROJECT,
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            file_options={"uri": view.path},
            data_source_class_type="feast.infra.offline_stores.file_source.FileSource",
            meta=clock,
        )
        columns = [{"name": name, "value_type": integer if "_count_" in name else real} for name in view.features]
        added = registry.feature_views.add(meta=clock)
        added.spec.name, added.spec.project, added.spec.version, added.spec.online = view.name, PROJECT, "latest", True
        added.spec.entities.append(view.entity)
        added.spec.entity_columns.add(name=view.join_key, value_type=integer)
        added.spec.ttl.FromSeconds(view.ttl_days * 86_400)
        added.spec.batch_source.CopyFrom(source)
        added.spec.batch_source.ClearField("project")
        projection = service.spec.features.add(
            feature_view_name=view.name,
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            view_type="featureView",
        )
        projection.batch_source.CopyFrom(added.spec.batch_source)
        for column in columns:
            added.spec.features.add(**column)
            projection.feature_columns.add(**column)
    return registry
