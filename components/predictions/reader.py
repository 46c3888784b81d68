"""Reads a prediction log back, by time and by version.

Only the folders of the days asked for are opened. Versions of a model may have other features: a row's struct then holds null
for those that its version does not have.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.predictions.layout import SUFFIX, day_folder, day_of, is_file_of
from modelyard.components.storage import uris

COLUMNS = {
    "request_id": pl.String(),
    "row": pl.Int32(),
    "time": pl.Datetime("us", "UTC"),
    "model_name": pl.String(),
    "version": pl.String(),
    "digest": pl.String(),
    "key": pl.String(),
    "mirrored": pl.Boolean(),
    "score": pl.Float64(),
    "decision": pl.Int8(),
}
FEATURES = "features"


def read_predictions(
    uri: str,
    model_name: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    versions: Sequence[str] = (),
    features: bool = True,
) -> pl.DataFrame:
    """The rows of a log in order of time.

    Args:
        uri: the log: path, ``s3://`` or ``gs://``.
        model_name: whose predictions.
        start: from this moment on; without a time zone it is UTC. None: from the first.
        end: before this moment. None: to the last.
        versions: of these versions; none given: of all.
        features: whether the column ``features`` is wanted, which takes most of the reading.

    Raises:
        InvalidInput: there is no log of this model, none of its rows is asked for, or a file is damaged; the message names it.
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    check_model_name(model_name)
    start, end = _utc(start), _utc(end)
    if start is not None and end is not None and start >= end:
        raise InvalidInput("end", end.isoformat(), f"give a moment after start, {start.isoformat()}")
    with TemporaryDirectory(prefix="modelyard-") as scratch:
        files = _files(uri, model_name, start, end, Path(scratch))
        wanted = [path for path in files if not versions or any(is_file_of(path.name, version) for version in versions)]
        parts = [_read(path, start, end, versions, features) for path in wanted]
    parts = [part for part in parts if part.height]
    if not parts:
        asked = f"start {start}, end {end}, versions {', '.join(versions) or 'all'}"
        raise InvalidInput("predictions", uri, f"the log of {model_name} has no rows of {asked}; ask for others")
    return pl.concat(_alike(parts)).sort("time", "request_id", "row")


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _files(uri: str, model_name: str, start: datetime | None, end: datetime | None, scratch: Path) -> list[Path]:
    """The files of the days from ``start`` to ``end``, brought to this machine."""
    log = uris.join(uri, model_name)
    local = uris.local_path(log)
    if local is None:
        local = scratch / model_name
        if not uris.exists(log):
            raise InvalidInput("predictions", uri, f"there is no log of {model_name}; check the URI and the name")
        if start is None:
            uris.download(log, local)
        else:
            local.mkdir()
            for asked in _days(start, end or datetime.now(UTC)):
                folder = uris.join(log, day_folder(asked))
                if uris.exists(folder):
                    uris.download(folder, local / day_folder(asked))
    elif not local.is_dir():
        raise InvalidInput("predictions", uri, f"there is no log of {model_name}; check the URI and the name")
    first, last = start.date() if start else date.min, _last_day(end) if end else date.max
    days = [(day, path) for path in local.iterdir() if (day := day_of(path.name))]
    return [file for day, path in sorted(days) if first <= day <= last for file in sorted(path.glob(f"*{SUFFIX}"))]


def _days(start: datetime, end: datetime) -> list[date]:
    return [start.date() + timedelta(days=step) for step in range((_last_day(end) - start.date()).days + 1)]


def _last_day(end: datetime) -> date:
    """The day of the last moment before ``end``."""
    return (end - timedelta(microseconds=1)).date()


def _read(path: Path, start: datetime | None, end: datetime | None, versions: Sequence[str], features: bool) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path, columns=[*COLUMNS, *([FEATURES] if features else [])], hive_partitioning=False)
        frame = frame.with_columns(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput("predictions", str(path), f"this file of the log cannot be read ({reason}); remove it") from error
    if start is not None:
        frame = frame.filter(pl.col("time") >= start)
    if end is not None:
        frame = frame.filter(pl.col("time") < end)
    return frame.filter(pl.col("version").is_in(list(versions))) if versions else frame


def _alike(parts: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """The parts with one struct of features: those of all; what is a number here and text there is text."""
    if FEATURES not in parts[0].columns:
        return parts
    kinds: dict[str, Any] = {}
    for part in parts:
        for field in _fields(part):
            known = kinds.setdefault(field.name, field.dtype)
            if known != field.dtype:
                kinds[field.name] = pl.String()
    return [part.with_columns(_struct(part, kinds)) for part in parts]


def _struct(part: pl.DataFrame, kinds: dict[str, Any]) -> pl.Expr:
    held = {field.name for field in _fields(part)}
    fields = [
        (pl.col(FEATURES).struct.field(name) if name in held else pl.lit(None)).cast(kind).alias(name)
        for name, kind in kinds.items()
    ]
    return pl.struct(fields).alias(FEATURES)


def _fields(part: pl.DataFrame) -> list[pl.Field]:
    kind = part.schema[FEATURES]
    return kind.fields if isinstance(kind, pl.Struct) else []
