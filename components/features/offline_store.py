"""A Feast offline store with an as-of join, for training data from files at the speed of one pass over them.

Name it in a repo's ``feature_store.yaml``; everything but historical retrieval is Feast's DuckDB store::

    offline_store:
      type: modelyard.components.features.offline_store.AsOfDuckDBOfflineStore

``fetch_features`` uses the same join for every repo on files, so this is for those who call Feast themselves. Unlike Feast's
own store it leaves out rows created after the moment unless told otherwise (``filter_by_created_timestamp: false`` beside
``type``), keeps the entity rows' order, and finds relative paths from the feature repo rather than from the working directory.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores import duckdb, offline_utils
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from modelyard.components.errors import InvalidInput
from modelyard.components.features.feature_repo import DUMMY_KEY, scan_parquet
from modelyard.components.features.point_in_time import FeatureSource, point_in_time_join


class AsOfDuckDBOfflineStoreConfig(duckdb.DuckDBOfflineStoreConfig):
    """Settings of ``AsOfDuckDBOfflineStore``.

    Attributes:
        type: the store's class path.
        filter_by_created_timestamp: leave out feature rows created after the entity row's moment, even where the caller of
            ``get_historical_features`` does not ask for it.
    """

    type: str = "modelyard.components.features.offline_store.AsOfDuckDBOfflineStore"
    filter_by_created_timestamp: bool = True


class AsOfDuckDBOfflineStore(duckdb.DuckDBOfflineStore):
    """Feast's DuckDB store with an as-of join for historical features; see the module."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Plans the retrieval; the job reads the sources when its result is asked for.

        Raises:
            InvalidInput: the entity rows are not a data frame, or lack a column that a view needs.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise InvalidInput("entity_df", type(entity_df).__name__, "give the entity rows as a pandas data frame")
        moment = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        entity_rows = pl.from_pandas(entity_df)
        if entity_rows.schema[moment] == pl.String:
            entity_rows = entity_rows.with_columns(pl.col(moment).str.to_datetime(time_unit="us", time_zone="UTC"))
        settings = config.offline_store
        cutoff = filter_by_created_timestamp or getattr(settings, "filter_by_created_timestamp", True)
        sources = [_source(view, feature_refs, str(config.repo_path), full_feature_names) for view in feature_views]
        views = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return _AsOfRetrievalJob(
            entity_rows,
            moment,
            sources,
            cutoff,
            [view for view in views if view.mode != "substrait"],
            full_feature_names,
            RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in entity_df.columns if column != moment],
                min_event_timestamp=_datetime(entity_rows.get_column(moment).min()),
                max_event_timestamp=_datetime(entity_rows.get_column(moment).max()),
            ),
            str(config.repo_path),
        )


def _datetime(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _source(view: FeatureView, feature_refs: list[str], repo_path: str, full_feature_names: bool) -> FeatureSource:
    source = view.batch_source
    if source is None:
        raise InvalidInput("feature view", view.name, "it has no batch source, so it has no history to train on")
    served_as = view.projection.name_to_use()
    features = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == served_as]
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    aliases = view.projection.join_key_map
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_KEY]
    return FeatureSource(
        name=served_as,
        rows=_rows(source, repo_path),
        event=source.timestamp_field,
        created=source.created_timestamp_column or "",
        keys={aliases.get(key, key): key for key in keys},
        features={feature: prefix + feature for feature in features},
        ttl=view.ttl or None,
    )


def _rows(source: DataSource, repo_path: str) -> pl.LazyFrame:
    rows: pl.LazyFrame
    if isinstance(source, FileSource) and (source.file_format is None or isinstance(source.file_format, ParquetFormat)):
        rows = scan_parquet(source.path, Path(repo_path), source.s3_endpoint_override or "")
    else:
        rows = pl.DataFrame(duckdb._read_data_source(source, repo_path).to_pyarrow()).lazy()
    return rows.rename(dict(source.field_mapping), strict=False) if source.field_mapping else rows


class _AsOfRetrievalJob(RetrievalJob):
    def __init__(
        self,
        entity_rows: pl.DataFrame,
        moment: str,
        sources: list[FeatureSource],
        cutoff: bool,
        on_demand_feature_views: list[OnDemandFeatureView],
        full_feature_names: bool,
        metadata: RetrievalMetadata,
        repo_path: str,
    ) -> None:
        super().__init__()
        self._entity_rows = entity_rows
        self._moment = moment
        self._sources = sources
        self._cutoff = cutoff
        self._on_demand_feature_views = on_demand_feature_views
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._repo_path = repo_path

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pyarrow.Table:
        return point_in_time_join(
            self._entity_rows, self._moment, self._sources, filter_by_created_timestamp=self._cutoff
        ).to_arrow()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        import ibis

        duckdb._write_data_source(
            ibis.memtable(self._to_arrow_internal(timeout)),
            storage.to_data_source(),
            self._repo_path,
            "overwrite",
            allow_overwrite,
        )
