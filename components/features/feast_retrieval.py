"""The way through Feast itself, for what only it can read: warehouses, Spark, other registries, on-demand views."""

from typing import Any

import polars as pl
from feast import FeatureStore
from feast.errors import FeatureServiceNotFoundException
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import load_repo_config

from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.features.feature_repo import (
    AS_OF_STORE,
    DUMMY_KEY,
    RepoSettings,
    definitions_digest,
    unknown_service,
)
from modelyard.components.features.fetching import Joined, Request, require_columns

# Engines return rows in any order; this column tells which is which.
_ROW = "modelyard_row"
_MOMENT = "event_timestamp"


def join_through_feast(settings: RepoSettings, request: Request, rows: pl.DataFrame) -> Joined:
    """Has Feast's offline store join the features, and checks that every row came back once.

    Raises:
        InvalidInput: the service is unknown, or the store cannot leave out what was created after the moment.
        ModelyardError: rows were lost or repeated.
    """
    store = FeatureStore(repo_path=str(settings.folder), config=_config(settings, request))
    try:
        service = store.get_feature_service(request.feature_service)
    except FeatureServiceNotFoundException as error:
        raise unknown_service(request.feature_service, [known.name for known in store.list_feature_services()]) from error
    views, keys, requested = _inputs(store, service, settings.project)
    require_columns(rows, keys, "join key")
    require_columns(rows, requested, "request feature")
    columns = dict.fromkeys((request.timestamp_column, *keys, *requested, request.label, *request.entity_features))
    frame = _retrieve(store, request, service, rows.select(*columns))
    served = {
        projection.name_to_use(): tuple(
            f"{projection.name_alias or projection.name}__{feature.name}" if request.full_feature_names else feature.name
            for feature in projection.features
        )
        for projection in service.feature_view_projections
    }
    return Joined(frame, tuple(keys), served, definitions_digest(service.to_proto().spec, views))


def _inputs(store: FeatureStore, service: Any, project: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Specifications of the service's views by name, and the entity rows' columns that they join by or are computed from."""
    views: dict[str, Any] = {}
    keys: list[str] = []
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
            keys += [projection.join_key_map.get(name, name) for name in names]
    return views, list(dict.fromkeys(keys)), list(dict.fromkeys(requested))


def _config(settings: RepoSettings, request: Request) -> Any:
    config = load_repo_config(settings.folder, settings.folder / "feature_store.yaml")
    if settings.joins_as_of:
        config.offline_config = {
            "type": AS_OF_STORE,
            "filter_by_created_timestamp": request.filter_by_created_timestamp,
        }
    return config


def _retrieve(store: FeatureStore, request: Request, service: Any, rows: pl.DataFrame) -> pl.DataFrame:
    asked = rows.with_row_index(_ROW).rename({request.timestamp_column: _MOMENT})
    try:
        job = store.get_historical_features(
            entity_df=asked.to_pandas(),
            features=service,
            full_feature_names=request.full_feature_names,
            filter_by_created_timestamp=request.filter_by_created_timestamp,
        )
    except NotImplementedError as error:
        raise InvalidInput(
            "filter_by_created_timestamp", True, f"{error}; turn it off to accept rows that were created after the moment"
        ) from error
    result = pl.DataFrame(job.to_arrow())
    found = result.get_column(_ROW).cast(pl.Int64)
    if found.len() != rows.height or found.n_unique() != rows.height:
        raise ModelyardError(
            f"the offline store {store.config.offline_store.type} returned {found.n_unique()} of {rows.height} entity rows, "
            f"in {found.len()} rows: it does not fit for training data"
        )
    ordered = result.with_columns(found).sort(_ROW).drop(_ROW)
    moments = rows.get_column(request.timestamp_column)
    return ordered.drop(_MOMENT).with_columns(moments, rows.get_column(request.label))
