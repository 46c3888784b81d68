"""Reads a Feast feature repo: its settings, and what a feature service needs, without starting Feast where that will do.

Feast itself starts in five to fifteen seconds. A repo whose registry is a local file, and whose service draws on Parquet files
only, is read from the registry's own format instead; everything else (other registries, warehouses, on-demand views) goes
through Feast.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from blake3 import blake3

from modelyard.components.errors import InvalidInput
from modelyard.components.features.feast_protos import registry_format
from modelyard.components.features.point_in_time import FeatureSource

AS_OF_STORE = "modelyard.components.features.offline_store.AsOfDuckDBOfflineStore"
# Feast's default store, dask, drops rows (feast #6787) and serves features without a timestamp; DuckDB's is right but slow.
_READ_AS_OF = {
    AS_OF_STORE,
    "dask",
    "duckdb",
    "feast.infra.offline_stores.dask.DaskOfflineStore",
    "feast.infra.offline_stores.duckdb.DuckDBOfflineStore",
    "file",
}
_WRONG = {"ray", "feast.infra.offline_stores.contrib.ray_offline_store.ray.RayOfflineStore"}
# What a service's definition repeats of its views', in other words each time that Feast writes it.
_REPEATED_OF_THE_VIEW = (
    "batch_source",
    "created_timestamp_column",
    "date_partition_column",
    "stream_source",
    "timestamp_field",
)
# The key that Feast gives to a view without entities.
DUMMY_KEY = "__dummy_id"


@dataclass(frozen=True)
class RepoSettings:
    """What ``feature_store.yaml`` says.

    Attributes:
        folder: the feature repo, absolute.
        project: Feast project.
        offline_store: store type or class path, as written there; Feast's default if nothing is.
        registry_file: the registry, if it is a local file; otherwise None.
    """

    folder: Path
    project: str
    offline_store: str
    registry_file: Path | None

    @property
    def joins_as_of(self) -> bool:
        """Whether the store reads files, so that this package's as-of join takes its place."""
        return self.offline_store in _READ_AS_OF


@dataclass(frozen=True)
class ServicePlan:
    """What a feature service serves, ready to be joined.

    Attributes:
        sources: one for each of its feature views.
        revision: digest of the definitions of the service and its views.
    """

    sources: Sequence[FeatureSource]
    revision: str


def read_settings(folder: Path) -> RepoSettings:
    """Reads ``feature_store.yaml``; environment variables in it are expanded, as Feast does.

    Raises:
        InvalidInput: there is none, it is not readable, or it names a store that gives wrong training data.
    """
    path = folder / "feature_store.yaml"
    if not path.is_file():
        raise InvalidInput("feature_repo_uri", str(folder), "give a Feast feature repo: a folder with a feature_store.yaml")
    try:
        content = yaml.safe_load(os.path.expandvars(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise InvalidInput("feature_store.yaml", str(path), f"it must be YAML ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("project"), str):
        raise InvalidInput("feature_store.yaml", str(path), "it must be a mapping that names its project")
    store = content.get("offline_store") or "dask"
    if isinstance(store, dict):
        store = store.get("type", "dask")
    if store in _WRONG:
        raise InvalidInput(
            "offline_store",
            store,
            "it ignores the ttl and drops rows with unknown or repeated keys; use duckdb, spark or a warehouse",
        )
    registry = content.get("registry", "data/registry.db")
    if isinstance(registry, dict):
        plain = (
            set(registry) <= {"path", "registry_type", "cache_ttl_seconds"} and registry.get("registry_type", "file") == "file"
        )
        registry = registry.get("path") if plain else None
    local = isinstance(registry, str) and "://" not in registry
    return RepoSettings(folder.resolve(), content["project"], str(store), folder.resolve() / registry if local else None)


def plan_from_registry(settings: RepoSettings, feature_service: str, *, full_feature_names: bool = False) -> ServicePlan | None:
    """What the service serves, read from the registry file; None where only Feast itself can tell.

    Raises:
        InvalidInput: the repo has not been applied, or has no such service.
    """
    if settings.registry_file is None or not settings.joins_as_of:
        return None
    registry = registry_format().Registry()
    try:
        registry.ParseFromString(settings.registry_file.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInput(
            "feature_repo_uri",
            str(settings.folder),
            f"it lacks its registry {settings.registry_file.name}; run `feast apply` in it first",
        ) from error
    services = {service.spec.name: service.spec for service in _of(settings.project, registry.feature_services)}
    if feature_service not in services:
        raise unknown_service(feature_service, services)
    views = {
        view.spec.name: view.spec
        for view in (*_of(settings.project, registry.feature_views), *_of(settings.project, registry.stream_feature_views))
    }
    service = services[feature_service]
    if not all(
        projection.feature_view_name in views
        and not projection.version_tag
        and _is_parquet(views[projection.feature_view_name].batch_source)
        for projection in service.features
    ):
        return None
    sources = [
        _source(settings.folder, views[projection.feature_view_name], projection, full_feature_names)
        for projection in service.features
    ]
    serving = {projection.feature_view_name: views[projection.feature_view_name] for projection in service.features}
    return ServicePlan(sources, definitions_digest(service, serving))


def unknown_service(feature_service: str, existing: Iterable[str]) -> InvalidInput:
    """The error for a service that the repo has not; it lists those that it has."""
    return InvalidInput(
        "feature_service",
        feature_service,
        f"the feature repo has no such service; it has {', '.join(sorted(existing)) or 'none'}",
    )


def definitions_digest(service: Any, views: Mapping[str, Any]) -> str:
    """Digest of what a feature service serves: its specification and those of its views, without the times they were applied.

    Args:
        service: Feast's ``FeatureServiceSpec``.
        views: Feast's specification of each view that takes part, by name.
    """
    own = _content(service)
    for projection in own.features:
        for repeated in _REPEATED_OF_THE_VIEW:
            projection.ClearField(repeated)
    digest = blake3(own.SerializeToString(deterministic=True))
    for name in sorted(views):
        digest.update(_content(views[name]).SerializeToString(deterministic=True))
    return "blake3:" + digest.hexdigest()


def scan_parquet(uri: str, folder: Path, endpoint: str = "") -> pl.LazyFrame:
    """The rows of a Parquet file, a folder or a pattern of them.

    Args:
        uri: path, relative to the feature repo or absolute, or a ``file://``, ``s3://`` or ``gs://`` URI.
        folder: the feature repo.
        endpoint: S3 endpoint, if it is not AWS's own or that of the environment.
    """
    if "://" in uri and not uri.startswith("file://"):
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        if not (uri.startswith("s3://") and endpoint):
            return pl.scan_parquet(uri)
        plain = str(endpoint.startswith("http://")).lower()
        return pl.scan_parquet(uri, storage_options={"aws_endpoint_url": endpoint, "aws_allow_http": plain})
    return pl.scan_parquet(folder / uri.removeprefix("file://"))


def _of(project: str, definitions: Iterable[Any]) -> list[Any]:
    return [definition for definition in definitions if definition.spec.project == project]


def _is_parquet(source: Any) -> bool:
    form = source.file_options.file_format
    return source.type == source.BATCH_FILE and form.WhichOneof("format") in (None, "parquet_format")


def _source(folder: Path, view: Any, projection: Any, full_feature_names: bool) -> FeatureSource:
    source = view.batch_source
    rows = scan_parquet(source.file_options.uri, folder, source.file_options.s3_endpoint_override)
    if source.field_mapping:
        rows = rows.rename(dict(source.field_mapping), strict=False)
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_KEY]
    prefix = f"{projection.feature_view_name_alias or view.name}__" if full_feature_names else ""
    return FeatureSource(
        name=projection.feature_view_name_alias or view.name,
        rows=rows,
        event=source.timestamp_field,
        created=source.created_timestamp_column,
        keys={projection.join_key_map.get(key, key): key for key in keys},
        features={column.name: prefix + column.name for column in projection.feature_columns},
        ttl=view.ttl.ToTimedelta() or None,
    )


def _content(specification: Any) -> Any:
    copy = type(specification)()
    copy.CopyFrom(specification)
    _remove_registration(copy)
    return copy


def _remove_registration(message: Any) -> None:
    """Removes what only a registry knows: when something was applied, and to which project."""
    for field, value in message.ListFields():
        if field.name in ("meta", "project"):
            message.ClearField(field.name)
            continue
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            # Indexing a map of plain values gives values, of messages the messages.
            parts = [value[key] for key in value if hasattr(value[key], "ListFields")]
        else:
            parts = value if hasattr(value, "__len__") else [value]
        for part in parts:
            _remove_registration(part)
