"""Splits a dataset by time into training, validation and test data, as a model in use meets them: the past first.

Labels arrive late (a fraud is known when the card holder complains), so on the day a model is trained the newest labels are
not there yet. The gap before the validation data and before the test data leaves out what would not have been labelled by then.
"""

import os
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, read_dataset, write_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput

PARTS = ("train", "validation", "test")
_PART = "__part"


@dataclass(frozen=True)
class Split:
    """How to split.

    A part's days win over its fraction. Each part is a span (after, until] of time, so rows of one moment are never torn apart.

    Attributes:
        test_days: length of the test data, counted back from the newest row; 0 to go by the fraction.
        validation_days: length of the validation data; 0 to go by the fraction.
        gap_days: days left out between training and validation data, and between validation and test data.
        test_fraction: share of all rows that become test data.
        validation_fraction: share of all rows that become validation data.
        group_by: column whose values each go into one part only; empty for no such rule. A group that time alone would spread
            over several parts is assigned to one of these, by a hash of its value, and its rows in the others are left out.
    """

    test_days: float = 0.0
    validation_days: float = 0.0
    gap_days: float = 0.0
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    group_by: str = ""

    def __post_init__(self) -> None:
        for field in ("test_days", "validation_days", "gap_days"):
            if not 0 <= getattr(self, field) <= 100_000:
                raise InvalidInput(field, getattr(self, field), "give a number of days from 0 to 100000")
        for days, field in ((self.test_days, "test_fraction"), (self.validation_days, "validation_fraction")):
            if not days and not 0 < getattr(self, field) < 1:
                raise InvalidInput(field, getattr(self, field), "give a share between 0 and 1, or a number of days instead")


def split_dataset(
    dataset: str | os.PathLike[str],
    train: str | os.PathLike[str],
    validation: str | os.PathLike[str],
    test: str | os.PathLike[str],
    split: Split,
) -> tuple[int, int, int]:
    """Splits ``dataset`` and writes its three parts.

    Returns:
        The rows of the training, validation and test data.

    Raises:
        InvalidInput: a part would be empty or lack one of the two classes, or the grouping column is missing.
    """
    frame, info = read_dataset(dataset)
    parts = split_frame(frame, info, split)
    digest = file_digest(dataset)
    for name, path in zip(PARTS, (train, validation, test), strict=True):
        part = parts[name]
        moments, labels = part.get_column(info.roles.timestamp), part.get_column(info.roles.label)
        lineage = {
            "part": name,
            "of": digest,
            "gap_days": split.gap_days,
            "group_by": split.group_by,
            "rows": part.height,
            "positives": int(labels.sum()),
            "start": moments.min().isoformat(),  # type: ignore[union-attr]
            "end": moments.max().isoformat(),  # type: ignore[union-attr]
        }
        write_dataset(part, path, info.with_lineage(split=lineage))
    return parts["train"].height, parts["validation"].height, parts["test"].height


def split_frame(frame: pl.DataFrame, info: DatasetInfo, split: Split) -> dict[str, pl.DataFrame]:
    """The parts of a frame by name, rows in their order; see ``split_dataset``."""
    moments = frame.get_column(info.roles.timestamp)
    if moments.null_count() or frame.is_empty():
        raise InvalidInput("dataset", f"{frame.height} rows", "it needs rows, each with a timestamp")
    test_after = _boundary(moments, split.test_days, round(frame.height * split.test_fraction))
    gap = timedelta(days=split.gap_days)
    earlier = moments.filter(moments <= test_after - gap)
    parts = {"test": moments > test_after}
    if earlier.is_empty():
        parts["validation"] = parts["train"] = pl.Series([False]).new_from_index(0, frame.height)
    else:
        validation_after = _boundary(earlier, split.validation_days, round(frame.height * split.validation_fraction))
        parts["validation"] = (moments > validation_after) & (moments <= test_after - gap)
        parts["train"] = moments <= validation_after - gap
    assigned = frame.with_columns(
        pl.coalesce(pl.when(pl.lit(parts[name])).then(pl.lit(code, pl.Int8)) for code, name in enumerate(PARTS)).alias(_PART)
    )
    if split.group_by:
        assigned = _keep_groups_together(assigned, split.group_by)
    result = {name: assigned.filter(pl.col(_PART) == code).drop(_PART) for code, name in enumerate(PARTS)}
    _check(result, info)
    return result


def _boundary(moments: pl.Series, days: float, rows: int) -> datetime:
    """The moment after which the last ``days``, or about the last ``rows``, of the moments lie."""
    newest: datetime = moments.max()  # type: ignore[assignment]
    if days:
        return newest - timedelta(days=days)
    before = moments.sort()[max(moments.len() - rows - 1, 0)]
    # A moment that the boundary would tear apart stays with the past, unless it is the newest and nothing would follow.
    return before if before < newest else newest - timedelta(microseconds=1)


def _keep_groups_together(assigned: pl.DataFrame, group_by: str) -> pl.DataFrame:
    if group_by not in assigned.columns:
        raise InvalidInput(
            "group_by",
            group_by,
            f"the dataset lacks this column; it has {', '.join(assigned.columns[:-1])}. "
            "Name a column of the entity rows in fetch_features' kept_columns to have it here",
        )
    spread = (
        assigned.drop_nulls([_PART, group_by])
        .group_by(group_by)
        .agg(pl.col(_PART).unique().sort())
        .filter(pl.col(_PART).list.len() > 1)
    )
    homes = [
        parts[zlib.crc32(repr(group).encode()) % len(parts)]
        for group, parts in zip(spread.get_column(group_by).to_list(), spread.get_column(_PART).to_list(), strict=True)
    ]
    home = spread.select(group_by, pl.Series("__home", homes, pl.Int8))
    return (
        assigned.join(home, on=group_by, how="left", maintain_order="left")
        .with_columns(pl.when(pl.col("__home").is_null() | (pl.col("__home") == pl.col(_PART))).then(_PART).alias(_PART))
        .drop("__home")
    )


def _check(parts: dict[str, pl.DataFrame], info: DatasetInfo) -> None:
    described = []
    faults = []
    for name in PARTS:
        part = parts[name]
        positives = int(part.get_column(info.roles.label).sum())
        moments = part.get_column(info.roles.timestamp)
        span = f" from {moments.min()!s} to {moments.max()!s}" if part.height else ""
        described.append(f"{name}: {part.height} rows{span}, {positives} of label 1")
        if not part.height:
            faults.append(f"the {name} data is empty")
        elif positives in (0, part.height):
            faults.append(f"the {name} data has no row of label {0 if positives else 1}")
    if faults:
        raise InvalidInput(
            "split", " and ".join(faults), f"change the days, fractions or gap, or fetch more. It gives {'; '.join(described)}"
        )
