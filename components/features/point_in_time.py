"""The point-in-time join: for each entity row, the feature values that were known at its moment.

Feast's semantics, which its engines implement with a range join and a sort, are answered here by one as-of join for each
source:

- a feature row counts from its event timestamp until that plus the ttl, both ends included;
- of several the newest counts, by event and then by creation time, even where its values are null;
- with the cutoff, a row does not count before it was created, so that a later correction does not leak into the past;
- every entity row comes back, once and in its place, whether or not it has features.

A row becomes available at the later of its event and its creation. Of the rows available at some moment the newest is the
running maximum, by key, in order of availability; so the as-of join on availability finds it, and an expired maximum means
that all others have expired too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from modelyard.components.errors import InvalidInput

_MOMENT = "__moment"
_KEY = "__key"
_AVAILABLE = "__available"
_AGE = "__age"
_ROW = "__row"
_SOURCE_ROW = "__source_row"


@dataclass(frozen=True)
class FeatureSource:
    """Where the values of one feature view are, and how they join.

    Attributes:
        name: the view's name, for messages.
        rows: the source's rows; only the columns named below are read.
        event: column with the moment that a row is about.
        created: column with the moment from which it was known; empty if the source has none.
        keys: source column by the entity rows' column that it equals; empty joins on time alone.
        features: output column by source column, in order.
        ttl: how long a row counts; None or zero means for ever.
    """

    name: str
    rows: pl.LazyFrame
    event: str
    created: str
    keys: Mapping[str, str]
    features: Mapping[str, str]
    ttl: timedelta | None = None


def point_in_time_join(
    entity_rows: pl.DataFrame, moment: str, sources: Sequence[FeatureSource], *, filter_by_created_timestamp: bool = True
) -> pl.DataFrame:
    """Adds the features of each source to the entity rows.

    Moments are compared in UTC and whole microseconds; one without a time zone is UTC.

    Args:
        entity_rows: rows with key and moment columns; further columns are kept.
        moment: column with the moment as of which features are wanted, a Datetime or Date; null gets no features.
        sources: what to join.
        filter_by_created_timestamp: leave out rows created after the moment, where a source says when they were.

    Returns:
        ``entity_rows`` in their order, with the sources' feature columns appended.

    Raises:
        InvalidInput: a column is missing, is of no usable type, or two columns would have one name.
    """
    _check_names(entity_rows, moment, sources)
    moments = _moments(entity_rows.get_column(moment), "entity rows")
    joined = [
        column
        for source in sources
        for column in _join(entity_rows, moments, source, filter_by_created_timestamp).get_columns()
    ]
    return entity_rows.with_columns(joined)


def _check_names(entity_rows: pl.DataFrame, moment: str, sources: Sequence[FeatureSource]) -> None:
    taken = dict.fromkeys(entity_rows.columns, "the entity rows")
    for column in (moment, *(column for source in sources for column in source.keys)):
        if column not in taken:
            raise InvalidInput("column", column, f"the entity rows lack it; they have {', '.join(entity_rows.columns)}")
    for source in sources:
        present = source.rows.collect_schema().names()
        for column in (source.event, *filter(None, [source.created]), *source.keys.values(), *source.features):
            if column not in present:
                raise InvalidInput("column", column, f"the source of {source.name} lacks it; it has {', '.join(present)}")
        for name in source.features.values():
            if name in taken:
                raise InvalidInput(
                    "feature", name, f"both {source.name} and {taken[name]} have it; ask for full feature names, or rename one"
                )
            taken[name] = source.name


def _moments(column: pl.Series, where: str) -> pl.Series:
    """The column in UTC microseconds, named for the join."""
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise InvalidInput(column.name, str(column.dtype), f"the timestamps of {where} must be a Datetime or Date column")
    zoned = column.dt.replace_time_zone("UTC") if column.dtype.time_zone is None else column.dt.convert_time_zone("UTC")
    return zoned.cast(pl.Datetime("us", "UTC")).alias(_MOMENT)


def _join(entity_rows: pl.DataFrame, moments: pl.Series, source: FeatureSource, cutoff: bool) -> pl.DataFrame:
    present, wanted = _read(source, moments)
    event = _moments(present.get_column(source.event), source.name)
    narrow = pl.DataFrame({_MOMENT: event}).with_row_index(_SOURCE_ROW)
    if source.created:
        narrow = narrow.with_columns(_moments(present.get_column(source.created), source.name).alias(_AVAILABLE))
    keys, asked = [], pl.DataFrame({_MOMENT: moments})
    for position, (ours, theirs) in enumerate(source.keys.items()):
        keys.append(f"{_KEY}{position}")
        left, right = _comparable(entity_rows.get_column(ours), present.get_column(theirs), source.name)
        asked, narrow = asked.with_columns(left.alias(keys[-1])), narrow.with_columns(right.alias(keys[-1]))
    narrow = narrow.drop_nulls([_MOMENT, *keys])
    if cutoff and source.created:
        narrow = narrow.drop_nulls(_AVAILABLE)
    found = _as_of(asked.with_row_index(_ROW), narrow, keys, cutoff=cutoff, has_created=bool(source.created))
    if source.ttl:
        served = event.gather(found)
        # In whole microseconds: the end of a very long ttl is no timestamp any more.
        age = moments.to_physical() - served.to_physical()
        microseconds = min(source.ttl // timedelta(microseconds=1), 2**63 - 1)
        found = pl.select(pl.when(age <= microseconds).then(found)).to_series()
    return wanted.select(pl.all().gather(found))


def _read(source: FeatureSource, moments: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = source.rows
    newest: Any = moments.max()
    oldest: Any = moments.min()
    schema = rows.collect_schema()
    if newest is not None and schema[source.event] == pl.Datetime("us", "UTC"):
        # Of no consequence for the result: what lies outside can be nobody's newest unexpired row.
        rows = rows.filter(pl.col(source.event) <= newest)
        if source.ttl and source.ttl <= oldest - datetime.min.replace(tzinfo=UTC):
            rows = rows.filter(pl.col(source.event) >= oldest - source.ttl)
    names = [source.event, *filter(None, [source.created]), *source.keys.values()]
    data = rows.select(*dict.fromkeys([*names, *source.features])).collect()
    return data.select(*dict.fromkeys(names)), data.select(
        pl.col(column).alias(name) for column, name in source.features.items()
    )


def _comparable(ours: pl.Series, theirs: pl.Series, view: str) -> tuple[pl.Series, pl.Series]:
    """Both key columns in one type.

    pandas turns whole numbers with gaps into floats; those are taken as the whole numbers that they are.
    """
    left, right = (_plain(column) for column in (ours, theirs))
    if left.dtype.is_float() and right.dtype.is_integer():
        left = _whole(left)
    if left.dtype.is_integer() and right.dtype.is_float():
        right = _whole(right)
    if left.dtype == right.dtype:
        return left, right
    if left.dtype.is_integer() and right.dtype.is_integer():
        return left.cast(pl.Int128), right.cast(pl.Int128)
    if pl.Null in (left.dtype, right.dtype):
        common = right.dtype if left.dtype == pl.Null else left.dtype
        return left.cast(common), right.cast(common)
    raise InvalidInput(
        ours.name,
        str(ours.dtype),
        f"it must have the type of the join key of {view}, which is {theirs.dtype}; convert one of them",
    )


def _plain(column: pl.Series) -> pl.Series:
    return column.cast(pl.String) if isinstance(column.dtype, (pl.Categorical, pl.Enum)) else column


def _whole(column: pl.Series) -> pl.Series:
    whole = column.fill_nan(None)
    return whole.cast(pl.Int64) if bool((whole.drop_nulls() % 1 == 0).all()) else column


def _as_of(asked: pl.DataFrame, rows: pl.DataFrame, keys: list[str], *, cutoff: bool, has_created: bool) -> pl.Series:
    """For each asked row the number of the source row that answers it, or null; in the order asked."""
    rows = rows.sort([_MOMENT, _AVAILABLE] if has_created else [_MOMENT], nulls_last=False, maintain_order=True)
    if cutoff and has_created and rows.select((pl.col(_AVAILABLE) > pl.col(_MOMENT)).any()).item():
        newest = pl.col(_AGE).cum_max()
        available = (
            rows.with_row_index(_AGE)
            .select(pl.max_horizontal(_MOMENT, _AVAILABLE).alias(_MOMENT), *keys, _AGE)
            .sort(_MOMENT, maintain_order=True)
            .with_columns(newest.over(keys) if keys else newest)
        )
        rows = available.with_columns(rows.get_column(_SOURCE_ROW).gather(available.get_column(_AGE)))
    answerable = pl.all_horizontal(pl.col(_MOMENT, *keys).is_not_null())
    found = (
        asked.filter(answerable)
        .sort(_MOMENT)
        .join_asof(rows.select(_MOMENT, *keys, _SOURCE_ROW), on=_MOMENT, by=keys or None, check_sortedness=False)
    )
    unanswerable = asked.filter(~answerable).select(_ROW, pl.lit(None, found.schema[_SOURCE_ROW]).alias(_SOURCE_ROW))
    return pl.concat([found.select(_ROW, _SOURCE_ROW), unanswerable]).sort(_ROW).get_column(_SOURCE_ROW)
