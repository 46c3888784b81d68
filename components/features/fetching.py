"""Training data from a Feast feature repo: labelled rows, each with its features as of its own moment.

The entity rows say what is wanted: keys, a moment and the label. Nothing that was not known at that moment is added, no row
is lost or repeated, and the dataset says where it came from.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from blake3 import blake3

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.features.feature_repo import RepoSettings, plan_from_registry, read_settings
from modelyard.components.features.point_in_time import point_in_time_join
from modelyard.components.storage.uris import download, local_path

_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Request:
    """What to fetch.

    Attributes:
        feature_repo_uri: folder of an applied Feast feature repo.
        entity_rows_uri: Parquet or CSV file, or a folder of Parquet files, with the join keys, moments and labels.
        feature_service: feature service of that repo.
        label: column of the entity rows to predict, 0 or 1.
        timestamp_column: column of the entity rows with the moment as of which features are wanted; UTC if it has no time zone.
        start: first moment to include, ISO date or time; empty for no limit.
        end: first moment to leave out, ISO date or time; empty for no limit.
        entity_features: further columns of the entity rows that are features: what comes with a request at prediction time.
        kept_columns: further columns of the entity rows that stay in the dataset without being features.
        full_feature_names: name features ``view__feature``.
        filter_by_created_timestamp: leave out feature rows created after the moment.
    """

    feature_repo_uri: str
    entity_rows_uri: str
    feature_service: str
    label: str
    timestamp_column: str = "event_timestamp"
    start: str = ""
    end: str = ""
    entity_features: Sequence[str] = ()
    kept_columns: Sequence[str] = ()
    full_feature_names: bool = False
    filter_by_created_timestamp: bool = True


@dataclass(frozen=True)
class Fetched:
    """Rows of the dataset written, and the digest of its file."""

    rows: int
    digest: str


@dataclass(frozen=True)
class Joined:
    """Entity rows with features.

    Attributes:
        frame: the rows, in the order of the entity rows.
        entities: the columns they were joined by.
        features: the columns added, by the view that serves them.
        revision: digest of the feature definitions.
    """

    frame: pl.DataFrame
    entities: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    revision: str


def fetch_training_data(request: Request, training_data: str | os.PathLike[str]) -> Fetched:
    """Joins features to the entity rows and writes the dataset to ``training_data``.

    Raises:
        InvalidInput: something in the request cannot be used, or a feature has no value in any row.
        ModelyardError: the offline store did not return every row once.
    """
    with _scratch(request.feature_repo_uri, request.entity_rows_uri) as scratch:
        repo = _brought("feature_repo_uri", request.feature_repo_uri, Path(scratch, "feature_repo"))
        path = _brought("entity_rows_uri", request.entity_rows_uri, Path(scratch, "entity_rows"))
        settings = read_settings(repo)
        rows = _entity_rows(path, request)
        joined = _join(settings, request, rows)
        lineage = {
            "project": settings.project,
            "feature_service": request.feature_service,
            "repo_revision": joined.revision,
            "offline_store": settings.offline_store,
            "filter_by_created_timestamp": request.filter_by_created_timestamp,
            "kept_columns": list(request.kept_columns),
            "entity_rows": {"digest": _content_digest(path), "rows": rows.height},
        }
    features = tuple(name for names in joined.features.values() for name in names) + tuple(request.entity_features)
    frame = _checked(joined, rows, features, request)
    moments = frame.get_column(request.timestamp_column)
    lineage |= {
        "rows": frame.height,
        "positives": int(frame.get_column(request.label).sum()),
        "start": moments.min().isoformat(),  # type: ignore[union-attr]
        "end": moments.max().isoformat(),  # type: ignore[union-attr]
        "without_features": _without_features(joined),
    }
    roles = Roles(features, request.label, request.timestamp_column, joined.entities)
    columns = (request.timestamp_column, *joined.entities, *features, request.label, *request.kept_columns)
    write_dataset(frame.select(*dict.fromkeys(columns)), training_data, DatasetInfo(roles, lineage))
    return Fetched(frame.height, file_digest(training_data))


def _scratch(*uris: str) -> AbstractContextManager[str]:
    """A temporary folder for downloads, or none where nothing is downloaded, since a killed step leaves it behind."""
    if all(local_path(uri) is not None for uri in uris):
        return nullcontext("")
    return tempfile.TemporaryDirectory(prefix="modelyard-")


def _brought(field: str, uri: str, destination: Path) -> Path:
    """What ``uri`` names, on this machine; an error names the parameter rather than only its value."""
    try:
        return download(uri, destination)
    except InvalidInput as error:
        raise InvalidInput(field, uri, error.remedy) from error


def _join(settings: RepoSettings, request: Request, rows: pl.DataFrame) -> Joined:
    plan = plan_from_registry(settings, request.feature_service, full_feature_names=request.full_feature_names)
    if plan is None:
        from modelyard.components.features.feast_retrieval import join_through_feast

        return join_through_feast(settings, request, rows)
    keys = tuple(dict.fromkeys(key for source in plan.sources for key in source.keys))
    require_columns(rows, keys, "join key")
    asked = rows.select(*dict.fromkeys((request.timestamp_column, *keys, request.label, *request.entity_features)))
    frame = point_in_time_join(
        asked, request.timestamp_column, plan.sources, filter_by_created_timestamp=request.filter_by_created_timestamp
    )
    features = {source.name: tuple(source.features.values()) for source in plan.sources}
    return Joined(frame, keys, features, plan.revision)


def _checked(joined: Joined, rows: pl.DataFrame, features: Sequence[str], request: Request) -> pl.DataFrame:
    """The joined rows with the kept columns, which take no part in the join and so come as they were given."""
    if joined.frame.height != rows.height:
        raise ModelyardError(f"the offline store returned {joined.frame.height} rows for {rows.height} entity rows")
    for view, share in _without_features(joined).items():
        if share == 1.0:
            raise InvalidInput(
                "feature view",
                view,
                "none of its features has a value for any row: check its ttl, its join keys and its time span",
            )
    for name in features:
        column = joined.frame.get_column(name)
        if (column.fill_nan(None) if column.dtype.is_float() else column).null_count() == column.len():
            where = "entity_features" if name in request.entity_features else "feature"
            raise InvalidInput(
                where, name, "no row has a value for it, so nothing can be learned from it: fill it or leave it out"
            )
    for name in request.kept_columns:
        if name in features:
            raise InvalidInput("kept_columns", name, "it is a feature and stays in the dataset anyway; leave it out here")
    return joined.frame.with_columns(rows.select(*dict.fromkeys(request.kept_columns)).get_columns())


def _without_features(joined: Joined) -> dict[str, float]:
    """For each view the share of rows for which it has no value at all."""
    return {
        view: float(joined.frame.select(pl.all_horizontal(pl.col(name).is_null() for name in names).mean()).item())
        for view, names in joined.features.items()
        if names
    }


def _entity_rows(path: Path, request: Request) -> pl.DataFrame:
    rows = read_rows(path)
    require_columns(rows, [request.timestamp_column], "timestamp_column")
    require_columns(rows, [request.label], "label")
    require_columns(rows, request.entity_features, "entity_features")
    require_columns(rows, request.kept_columns, "kept_columns")
    if request.label in request.kept_columns:
        raise InvalidInput("kept_columns", request.label, "the label stays in the dataset anyway; leave it out here")
    if request.label in request.entity_features:
        raise InvalidInput("entity_features", request.label, "the label is what is to be predicted; it cannot be a feature")
    rows = rows.with_columns(_moments(rows.get_column(request.timestamp_column)))
    moment = pl.col(request.timestamp_column)
    available = rows.height
    oldest, newest = rows.select(moment.min().alias("oldest"), moment.max().alias("newest")).row(0)
    start, end = parse_moment("start", request.start), parse_moment("end", request.end)
    if start is not None:
        rows = rows.filter(moment >= start)
    if end is not None:
        rows = rows.filter(moment < end)
    if rows.is_empty():
        raise InvalidInput(
            "entity rows",
            f"[{request.start}, {request.end})",
            f"there is no row in this span; the {available} given are from {oldest} to {newest}",
        )
    return rows.with_columns(_labels(rows.get_column(request.label)))


def read_rows(path: Path) -> pl.DataFrame:
    """The rows of a Parquet or CSV file, or of all Parquet files of a folder in the order of their names.

    Raises:
        InvalidInput: there is nothing there that can be read, or no row in it.
    """
    rows = _read(path)
    if rows.is_empty():
        raise InvalidInput("entity_rows_uri", str(path), f"the {'folder' if path.is_dir() else 'file'} holds no rows")
    return rows


def _read(path: Path) -> pl.DataFrame:
    if path.is_dir():
        parts = _parts(path)
        if not parts:
            raise InvalidInput("entity_rows_uri", str(path), "the folder holds no .parquet file")
        frames = [_read_parquet(part) for part in parts]
        try:
            return pl.concat(frames, how="vertical_relaxed")
        except pl.exceptions.PolarsError as error:
            remedy = f"its .parquet files are not parts of one table ({error}); give the folder of one"
            raise InvalidInput("entity_rows_uri", str(path), remedy) from error
    with path.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return _read_parquet(path)
    try:
        rows = pl.read_csv(path, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        return pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        # What follows the first line is advice on calling the reader.
        raise _neither(path, str(error).partition("\n")[0]) from error
    if rows.width == 1:
        raise _neither(path, f"its first line has no comma: {rows.columns[0][:80]!r}")
    return rows


def _neither(path: Path, reason: str) -> InvalidInput:
    remedy = f"it can be read neither as Parquet nor as CSV with commas and a header line ({reason})"
    return InvalidInput("entity_rows_uri", str(path), remedy)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except pl.exceptions.ComputeError as error:
        raise InvalidInput("entity_rows_uri", str(path), f"it is not a whole Parquet file ({error})") from error


def _parts(folder: Path) -> list[Path]:
    return sorted(part for part in folder.rglob("*.parquet") if part.is_file() and not part.name.startswith((".", "_")))


def _content_digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    digest = blake3()
    for part in _parts(path):
        digest.update(f"{file_digest(part)}  {part.relative_to(path).as_posix()}\n".encode())
    return "blake3:" + digest.hexdigest()


def require_columns(rows: pl.DataFrame, columns: Sequence[str], field: str) -> None:
    """Checks that the entity rows have these columns.

    Raises:
        InvalidInput: one is missing; the message names it and ``field``.
    """
    for column in columns:
        if column not in rows.columns:
            raise InvalidInput(field, column, f"the entity rows lack this column; they have {', '.join(rows.columns)}")


def _moments(column: pl.Series) -> pl.Series:
    """The column as UTC microseconds."""
    if column.dtype == pl.String:
        parsed = column.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        if wrong := column.filter(parsed.is_null() & column.is_not_null()).head(1).to_list():
            raise InvalidInput(column.name, wrong[0], "its values must be ISO timestamps such as 2018-08-08T12:00:00Z")
        column = parsed
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise InvalidInput(column.name, str(column.dtype), "it must be a column of timestamps or dates")
    if missing := column.null_count():
        raise InvalidInput(
            column.name, f"{missing} null values", "every entity row needs a moment; drop or complete these rows"
        )
    zoned = column.dt.replace_time_zone("UTC") if column.dtype.time_zone is None else column.dt.convert_time_zone("UTC")
    return zoned.cast(pl.Datetime("us", "UTC"))


def parse_moment(field: str, given: str) -> datetime | None:
    """A moment written as an ISO date or time, UTC if it has no time zone; None for an empty text.

    Raises:
        InvalidInput: it is not such a text; the message names ``field``.
    """
    if not given:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise InvalidInput(field, given, "give an ISO date or time such as 2018-08-08 or 2018-08-08T12:00:00Z") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _labels(column: pl.Series) -> pl.Series:
    """The column as 0 and 1."""
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise InvalidInput(column.name, str(column.dtype), "the label must be a number, 0 or 1, or a boolean")
    others = column.cast(pl.Float64).is_in([0.0, 1.0]).fill_null(value=False).not_()
    if others.any():
        raise InvalidInput(
            column.name,
            column.filter(others)[0],
            f"the label must be 0 or 1 in every row, but it is not in {others.sum()}; drop or correct these",
        )
    return column.cast(pl.Int8)
