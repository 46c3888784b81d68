"""Cuts the test rows by the values of columns, so that a model is judged where it might fail unseen."""

import itertools
from dataclasses import dataclass

import numpy as np
import polars as pl

from modelyard.components.errors import InvalidInput

MOST_VALUES = 12
"""A column with more distinct values than this is cut into quantiles (numbers) or gets an ``(others)`` slice (texts)."""

QUANTILES = 4
MISSING, OTHERS = "(missing)", "(others)"


@dataclass(frozen=True)
class Slice:
    """The rows where ``column`` has ``value``: a mask, bool, shape (rows,)."""

    column: str
    value: str
    mask: np.ndarray


def cut(frame: pl.DataFrame, columns: list[str]) -> list[Slice]:
    """The slices of each column; those of one column do not overlap and hold all rows.

    Args:
        frame: the test rows.
        columns: names of columns: texts, categories, booleans or numbers.

    Raises:
        InvalidInput: a column is missing, given twice, or of a type that cannot be sliced.
    """
    slices = []
    for column in columns:
        if column not in frame.columns or columns.count(column) > 1:
            raise InvalidInput(
                "slices",
                column,
                f"name each column once; the test set has {', '.join(frame.columns)}. "
                "Name a column of the entity rows in fetch_features' kept_columns to have it here",
            )
        values = _names(frame.get_column(column))
        for value in values.unique(maintain_order=False).sort().to_list():
            slices.append(Slice(column, value, (values == value).to_numpy()))
    return slices


def _names(column: pl.Series) -> pl.Series:
    """The name of each row's slice."""
    kind = column.dtype
    if kind.is_float():
        column = column.fill_nan(None)
    if not (kind.is_numeric() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null)):
        raise InvalidInput("slices", column.name, f"{kind} cannot be sliced; choose texts, categories or numbers")
    if column.drop_nulls().n_unique() <= MOST_VALUES:
        return column.cast(pl.String).fill_null(MISSING)
    if kind.is_numeric():
        return _quantiles(column.cast(pl.Float64))
    texts = column.cast(pl.String)
    counts = texts.drop_nulls().value_counts(sort=False).sort(["count", texts.name], descending=[True, False])
    kept = counts.get_column(texts.name).head(MOST_VALUES - 1)
    named = pl.select(pl.when(texts.is_in(kept.implode())).then(texts).otherwise(pl.lit(OTHERS))).to_series()
    return named.zip_with(texts.is_not_null(), pl.repeat(MISSING, len(texts), eager=True))


def _quantiles(numbers: pl.Series) -> pl.Series:
    known = numbers.drop_nulls().to_numpy()
    # Edges are observed values, each the first of its bin, so equal numbers share one.
    edges = np.unique(np.quantile(known, np.linspace(0, 1, QUANTILES + 1), method="higher"))
    inner = edges[1:-1] if len(edges) > 2 else edges[1:]
    bounds = [*inner.tolist()]
    labels = [f"< {bounds[0]:.4g}"]
    labels += [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(bounds)]
    labels.append(f">= {bounds[-1]:.4g}")
    cells = np.searchsorted(bounds, numbers.fill_null(0.0).to_numpy(), side="right")
    ordered = pl.Series([f"{position + 1}. {label}" for position, label in enumerate(labels)])
    return ordered.gather(pl.Series(cells)).zip_with(numbers.is_not_null(), pl.repeat(MISSING, len(numbers), eager=True))
