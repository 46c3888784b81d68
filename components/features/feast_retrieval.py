"""The way through Feast itself, for what only it can read: warehouses, Spark, other registries, on-demand views."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import polars as pl
from feast import FeatureStore
from feast.errors import FeastModuleImportError, FeatureServiceNotFoundException
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import load_repo_config

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.features.feature_repo import (
    AS_OF_STORE,
    DUMMY_KEY,
    RepoSettings,
    definitions_digest,
    unknown_service,
)
from modelyard.components.features.fetching import Joined, Request, require_columns
from modelyard.components.features.spark_session import SPARK_STORES, keep_whole_numbers, spark_session, spark_store

# Engines return rows in any order; this column tells which is which.
_ROW = "modelyard_row"
_PART = "modelyard_part"
_MOMENT = "event_timestamp"


def join_through_feast(settings: RepoSettings, request: Request, rows: pl.DataFrame) -> Joined:
    """Has Feast's offline store join the features, and checks that every row came back once.

    Raises:
        InvalidInput: the service is unknown, or the store cannot leave out what was created after the moment.
        NotAvailable: what the store needs is not installed.
        ModelyardError: rows were lost or repeated.
    """
    try:
        store = FeatureStore(repo_path=str(settings.folder), config=_config(settings, request))
    except FeastModuleImportError as error:
        raise NotAvailable(
            f"the offline store {settings.offline_store} needs a library that is not installed "
            f"({error.__cause__ or error}): add it to this step's image"
        ) from error
    try:
        service = store.get_feature_service(request.feature_service)
    except FeatureServiceNotFoundException as error:
        raise unknown_service(request.feature_service, [known.name for known in store.list_feature_services()]) from error
    views, joins, requested = _inputs(store, service, settings.project)
    keys = tuple(dict.fromkeys(key for join in joins for key in join))
    require_columns(rows, keys, "join key")
    require_columns(rows, requested, "request feature")
    columns = dict.fromkeys((request.timestamp_column, *keys, *requested, request.label, *request.entity_features))
    asked = rows.select(*columns)
    with spark_session() if settings.offline_store in SPARK_STORES else nullcontext():
        batches = _told_apart(asked, request.timestamp_column, joins)
        answers = [_retrieve(store, request, service, batch) for batch in batches]
    frame = _in_order(answers, asked, store.config.offline_store.type)
    served = {
        projection.name_to_use(): tuple(
            f"{projection.name_alias or projection.name}__{feature.name}" if request.full_feature_names else feature.name
            for feature in projection.features
        )
        for projection in service.feature_view_projections
    }
    return Joined(frame, keys, served, definitions_digest(service.to_proto().spec, views))


def _inputs(store: FeatureStore, service: Any, project: str) -> tuple[dict[str, Any], list[list[str]], list[str]]:
    """The specifications of the service's views, the columns each is joined by, and those that features are computed from."""
    views: dict[str, Any] = {}
    joins: list[list[str]] = []
    requested: list[str] = []
    projections = list(service.feature_view_projections)
    for projection in projections:
        view: Any = store.registry.get_any_feature_view(projection.name, project)
        views[projection.name] = view.to_proto().spec
        if isinstance(view, OnDemandFeatureView):
            projections += view.source_feature_view_projections.values()
            requested += view.get_request_data_schema()
        else:
            names = [column.name for column in view.entity_columns if column.name != DUMMY_KEY]
            joins.append([projection.join_key_map.get(name, name) for name in names])
    return views, joins, list(dict.fromkeys(requested))


def _config(settings: RepoSettings, request: Request) -> Any:
    config = load_repo_config(settings.folder, settings.folder / "feature_store.yaml")
    if settings.joins_as_of:
        config.offline_config = {
            "type": AS_OF_STORE,
            "filter_by_created_timestamp": request.filter_by_created_timestamp,
        }
    elif settings.offline_store in SPARK_STORES:
        config.offline_config = spark_store(config.offline_config)
    return config


def _told_apart(rows: pl.DataFrame, moment: str, joins: Sequence[Sequence[str]]) -> list[pl.DataFrame]:
    """The numbered entity rows, in as few parts as it takes for an engine to tell the rows of a part apart.

    Feast's SQL knows a row by its keys and its moment, written one after the other with nothing between: customer 1 in shop 23
    is customer 12 in shop 3, and both get what belongs to one of them.
    """
    numbered = rows.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64))
    parts: list[pl.Expr] = []
    for keys in joins:
        if len(keys) > 1:
            texts = [pl.col(key).cast(pl.String) for key in keys]
            # Where the whole is equal, the lengths of its pieces say whether they are.
            lengths = pl.concat_str([text.str.len_bytes().cast(pl.String) for text in texts], separator=" ")
            parts.append(lengths.rank("dense").over(moment, pl.concat_str(texts)))
    if not parts:
        return [numbered]
    # A row without one of its keys is nobody's.
    part = pl.concat_str([part.fill_null(1).cast(pl.String) for part in parts], separator=" ").alias(_PART)
    return numbered.with_columns(part).partition_by(_PART, include_key=False, maintain_order=True)


def _retrieve(store: FeatureStore, request: Request, service: Any, numbered: pl.DataFrame) -> pl.DataFrame:
    try:
        job = store.get_historical_features(
            entity_df=_in_pandas(numbered.rename({request.timestamp_column: _MOMENT})),
            features=service,
            full_feature_names=request.full_feature_names,
            filter_by_created_timestamp=request.filter_by_created_timestamp,
        )
    except NotImplementedError as error:
        raise InvalidInput(
            "filter_by_created_timestamp", True, f"{error}; turn it off to accept rows that were created after the moment"
        ) from error
    if store.config.offline_store.type in SPARK_STORES:
        keep_whole_numbers(job)
    return pl.DataFrame(job.to_arrow())


def _in_pandas(rows: pl.DataFrame) -> pd.DataFrame:
    """The rows for Feast. Whole numbers with gaps stay what they are: as floats, large ones would be taken for one another."""
    frame = rows.to_pandas()
    for column in rows:
        if column.dtype.is_integer() and column.null_count():
            frame[column.name] = pd.array(column.to_list(), dtype="Int64")
    return frame


def _in_order(answers: Sequence[pl.DataFrame], rows: pl.DataFrame, store: str) -> pl.DataFrame:
    """The answers in the order of the entity rows, each of which must be there once, with their own columns as they were."""
    result = pl.concat(answers, how="vertical_relaxed")
    found = result.get_column(_ROW).cast(pl.Int64)
    if found.len() != rows.height or found.n_unique() != rows.height:
        raise ModelyardError(
            f"the offline store {store} returned {found.n_unique()} of {rows.height} entity rows, in {found.len()} rows: it "
            "does not fit for training data. A row comes back twice where a source has two of one key, moment and creation"
        )
    ordered = result.with_columns(found).sort(_ROW).drop(_ROW, _MOMENT)
    return ordered.with_columns(rows.get_columns())
