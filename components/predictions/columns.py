"""Answered requests as columns of Arrow, made in the log's own thread from what the requests gave."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelyard.components.artifacts.model import Feature

_NANOSECONDS_A_DAY = 86_400 * 10**9
_TIME = pa.timestamp("us", tz="UTC")


class Answered(NamedTuple):
    """One answered request as it was handed over; ``rows``, ``scores`` and ``decisions`` of equal length.

    ``size`` is the memory it takes, in bytes, roughly; ``mirrored`` is whether it was a copy, whose answer nobody got.
    """

    request_id: str
    key: str
    at_ns: int
    rows: Any
    scores: Any
    decisions: Any
    height: int
    size: int
    mirrored: bool = False

    @property
    def day(self) -> int:
        """Days since 1970."""
        return self.at_ns // _NANOSECONDS_A_DAY


def date_of(day: int) -> date:
    """The date of a number of days since 1970."""
    return datetime.fromtimestamp(day * 86_400, UTC).date()


def record_batch(requests: Sequence[Answered], features: Sequence[Feature]) -> pa.RecordBatch:
    """The rows of some requests, without the columns that are the same for all (see ``complete``).

    Args:
        requests: at least one; their rows are dictionaries by feature name, lists in feature order, or arrays of shape (rows,
            features), in which floats stand for a category's code.
        features: the model's features.

    Raises:
        Exception: of any kind, whatever a value that fits no column raises.
    """
    counts = np.fromiter((request.height for request in requests), np.int64, len(requests))
    total = int(counts.sum())
    which = np.repeat(np.arange(len(requests)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    scores = np.concatenate([np.asarray(request.scores, np.float64).reshape(-1) for request in requests])
    decisions = np.concatenate([np.asarray(request.decisions).reshape(-1) for request in requests])
    if len(scores) != total or len(decisions) != total:
        raise ValueError(f"{total} rows, {len(scores)} scores and {len(decisions)} decisions do not belong together")
    times = np.fromiter((request.at_ns // 1000 for request in requests), np.int64, len(requests))
    fields = [pa.field(feature.name, pa.string() if feature.categories else pa.float64()) for feature in features]
    columns = _feature_columns([request.rows for request in requests], features)
    return pa.RecordBatch.from_arrays(
        [
            _texts([request.request_id for request in requests]).take(pa.array(which)),
            pa.array((np.arange(total) - first).astype(np.int32)),
            pa.array(times[which]).cast(_TIME),
            _texts([request.key for request in requests]).take(pa.array(which)),
            pa.array([request.mirrored for request in requests]).take(pa.array(which)),
            pa.array(scores),
            pa.array(decisions.astype(np.int8)),
            pa.StructArray.from_arrays(columns, fields=fields),
        ],
        names=["request_id", "row", "time", "key", "mirrored", "score", "decision", "features"],
    )


def complete(batches: Sequence[pa.RecordBatch], model_name: str, version: str, digest: str) -> pa.Table:
    """The batches as one table with all columns of the log, in order."""
    table = pa.Table.from_batches(list(batches))
    for position, (name, value) in enumerate((("model_name", model_name), ("version", version), ("digest", digest)), start=3):
        table = table.add_column(position, name, pa.repeat(value, table.num_rows))
    return table


def _feature_columns(parts: Sequence[Any], features: Sequence[Feature]) -> list[pa.Array]:
    """One array for each feature; neighbours of a kind are converted together."""
    pieces = []
    start = 0
    while start < len(parts):
        kind = _kind(parts[start])
        stop = start + 1
        while stop < len(parts) and _kind(parts[stop]) == kind:
            stop += 1
        pieces.append(_KINDS[kind](parts[start:stop], features))
        start = stop
    return pieces[0] if len(pieces) == 1 else [pa.concat_arrays(column) for column in zip(*pieces)]


def _kind(rows: Any) -> str:
    if isinstance(rows, np.ndarray):
        return "codes" if rows.dtype.kind == "f" else "values"
    return "named" if isinstance(rows[0], dict) else "ordered"


def _from_named(parts: Sequence[Any], features: Sequence[Feature]) -> list[pa.Array]:
    rows = [row for part in parts for row in part]
    return [_column([row.get(feature.name) for row in rows], feature) for feature in features]


def _from_ordered(parts: Sequence[Any], features: Sequence[Feature]) -> list[pa.Array]:
    columns = list(zip(*(row for part in parts for row in part), strict=True))
    if len(columns) != len(features):
        raise ValueError(f"{len(columns)} values in a row; the model has {len(features)} features")
    return [_column(values, feature) for values, feature in zip(columns, features)]


def _from_values(parts: Sequence[np.ndarray], features: Sequence[Feature]) -> list[pa.Array]:
    return _from_ordered([part.tolist() for part in parts], features)


def _from_codes(parts: Sequence[np.ndarray], features: Sequence[Feature]) -> list[pa.Array]:
    matrix = np.concatenate(parts)
    if matrix.ndim != 2 or matrix.shape[1] != len(features):
        raise ValueError(f"an array of shape {matrix.shape}; the model has {len(features)} features")
    columns = []
    for position, feature in enumerate(features):
        values = matrix[:, position].astype(np.float64)
        if not feature.categories:
            columns.append(pa.array(values, from_pandas=True))
            continue
        known = (values >= 0) & (values < len(feature.categories))
        codes = np.where(known, values, 0).astype(np.int64)
        columns.append(pa.array(feature.categories, pa.string()).take(pa.array(codes, mask=~known)))
    return columns


_KINDS: dict[str, Callable[[Sequence[Any], Sequence[Feature]], list[pa.Array]]] = {
    "named": _from_named,
    "ordered": _from_ordered,
    "values": _from_values,
    "codes": _from_codes,
}


def _column(values: Sequence[Any], feature: Feature) -> pa.Array:
    if feature.categories:
        return _texts(values)
    try:
        numbers = pa.array(values, pa.float64(), from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError):
        # Booleans, and integers that a float does not hold exactly.
        numbers = pa.array([None if value is None else float(value) for value in values], pa.float64(), from_pandas=True)
    # Of NumPy's short floats, the conversion does not take NaN for missing.
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _texts(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.string(), from_pandas=True)
    except (pa.ArrowException, TypeError, UnicodeError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    """A category as the model reads it; what UTF-8 cannot say is replaced."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return str(value).encode("utf-8", "replace").decode("utf-8")
