"""Turns the rows of a request into the model's input matrix, and says exactly what is wrong with one that cannot be.

Two paths: where every value is a number, which is the usual case, all rows are checked and converted at once; only what that
path does not take is looked at value by value. Both give what ``ModelSpec.encode`` gives: null and NaN are missing, a category
that the model has not seen is missing, and an infinite number is refused.
"""

import math
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from modelyard.components.artifacts.model import Feature
from modelyard.components.errors import InvalidInput

_NUMBER_REMEDY = "give a finite number that fits 32 bits, or null if it is unknown"
_CATEGORY_REMEDY = "give a string, or null if it is unknown"


class RowReader:
    """Reads rows for one model.

    Attributes:
        features: the model's inputs in order.
        names: their names.
        only_numbers: whether none of them is a category.
    """

    def __init__(self, features: tuple[Feature, ...]) -> None:
        self.features = features
        self.names = tuple(feature.name for feature in features)
        self.only_numbers = all(feature.categories is None for feature in features)
        # A single name would be picked bare, not as a tuple of one.
        self._pick: Callable[[Any], Any] = itemgetter(*self.names) if len(self.names) > 1 else lambda row: (row[self.names[0]],)
        self._codes = {
            feature.name: {level: float(code) for code, level in enumerate(feature.categories)}
            for feature in features
            if feature.categories is not None
        }

    def from_instances(self, instances: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        """Reads V1 instances: each a list of values in feature order or a dict by feature name.

        Returns:
            The matrix (float32, shape (rows, features)), and the same rows as lists or dicts, all of one kind.

        Raises:
            InvalidInput: a row or a value is not what the model takes; the message names it.
        """
        matrix = self._at_once(instances) if self.only_numbers else None
        if matrix is not None:
            return matrix, instances
        table = [self._values(row, position) for position, row in enumerate(instances)]
        columns = zip(*table)
        return self._stack(
            [self._column(feature, column, "instances", f".{feature.name}") for feature, column in zip(self.features, columns)]
        ), table

    def from_columns(self, columns: dict[str, Sequence[Any] | np.ndarray]) -> tuple[np.ndarray, Sequence[Any] | np.ndarray]:
        """Reads one column of values for each feature, all of the same length: number arrays, or lists that may hold None.

        Returns and errors are those of ``from_instances``; rows without categories come back as the matrix itself.
        """
        values = [columns[name] for name in self.names]
        if self.only_numbers and all(type(column) is list for column in values):
            numbers = _numbers(list(chain.from_iterable(values)))
            if numbers is not None:
                matrix = np.ascontiguousarray(numbers.reshape(len(values), -1).T)
                return matrix, matrix
        matrix = self._stack(
            [self._column(feature, column, f"input {feature.name}") for feature, column in zip(self.features, values)]
        )
        if self.only_numbers:
            return matrix, matrix
        return matrix, list(zip(*(column.tolist() if isinstance(column, np.ndarray) else column for column in values)))

    def from_matrix(self, values: Sequence[Any] | np.ndarray, name: str) -> np.ndarray:
        """Reads one tensor of all rows in feature order: a flat list that may hold None, or an array of numbers.

        Args:
            values: rows * features numbers.
            name: what the request calls them.

        Raises:
            InvalidInput: one is infinite or does not fit 32 bits.
        """
        width = len(self.names)
        matrix = _numbers(values)
        if matrix is None:
            position, value = _culprit(values)
            raise InvalidInput(f"input {name}[{position // width}].{self.names[position % width]}", value, _NUMBER_REMEDY)
        return matrix.reshape(-1, width)

    def _at_once(self, instances: Sequence[Any]) -> np.ndarray | None:
        """All rows in one go; None if any of them needs a closer look."""
        width = len(self.names)
        try:
            if set(map(len, instances)) != {width}:
                return None
            kinds = set(map(type, instances))
            if kinds == {dict}:
                flat = list(chain.from_iterable(map(self._pick, instances)))
            elif kinds == {list}:
                flat = list(chain.from_iterable(instances))
            else:
                return None
        except (TypeError, KeyError):
            return None
        matrix = _numbers(flat)
        return None if matrix is None else matrix.reshape(len(instances), width)

    def _values(self, row: Any, position: int) -> Sequence[Any]:
        """The values of one instance in feature order."""
        if isinstance(row, list):
            if len(row) != len(self.names):
                remedy = f"the model takes {len(self.names)} values in this order: {_listed(self.names)}"
                raise InvalidInput(f"instances[{position}]", f"{len(row)} values", remedy)
            return row
        if not isinstance(row, dict):
            raise InvalidInput(f"instances[{position}]", row, "give a list of values in feature order, or an object by feature")
        try:
            values: Sequence[Any] = self._pick(row)
        except KeyError as error:
            remedy = f"this feature is missing; give all of {_listed(self.names)}, null where a value is unknown"
            raise InvalidInput(f"instances[{position}]", error.args[0], remedy) from error
        if len(row) != len(self.names):
            unknown = next(name for name in row if name not in self.names)
            remedy = f"the model has no such feature; give just {_listed(self.names)}"
            raise InvalidInput(f"instances[{position}]", unknown, remedy)
        return values

    def _column(self, feature: Feature, values: Sequence[Any] | np.ndarray, field: str, member: str = "") -> np.ndarray:
        if feature.categories is not None:
            return self._category_codes(feature.name, values, field, member)
        column = _numbers(values)
        if column is not None:
            return column
        position, value = _culprit(values)
        raise InvalidInput(f"{field}[{position}]{member}", value, _NUMBER_REMEDY)

    def _category_codes(self, name: str, values: Sequence[Any] | np.ndarray, field: str, member: str = "") -> np.ndarray:
        codes = self._codes[name]
        if not set(map(type, values)) <= {str, type(None)}:
            values = [_level(value, f"{field}[{position}]{member}") for position, value in enumerate(values)]
        return np.array([codes.get(value, math.nan) for value in values], np.float32)

    def _stack(self, columns: list[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(np.stack(columns, axis=1))


def _numbers(values: Sequence[Any] | np.ndarray) -> np.ndarray | None:
    """Numbers or None as float32; None if one is something else, is infinite or does not fit 32 bits."""
    with np.errstate(all="ignore"):
        # A copy: a tensor in the body of a request need not be aligned, and must not keep the body alive.
        numbers = np.array(values, np.float32) if isinstance(values, np.ndarray) else _packed(values)
        # The sum is finite unless something is missing or infinite, and takes half the time of looking at each.
        if numbers is None or (not math.isfinite(np.add.reduce(numbers, None)) and np.isinf(numbers).any()):
            return None
    return numbers


def _packed(values: Sequence[Any]) -> np.ndarray | None:
    """Numbers or None as float32. ``struct`` looks at types and range on the way, several times as fast as NumPy converts."""
    layout = f"{len(values)}f"
    try:
        try:
            packed = struct.pack(layout, *values)
        except struct.error:
            packed = struct.pack(layout, *(math.nan if value is None else value for value in values))
    except (struct.error, OverflowError):
        return None
    return np.frombuffer(packed, np.float32)


def _culprit(values: Sequence[Any] | np.ndarray) -> tuple[int, Any]:
    """Position and value of the first that is no number, is infinite or does not fit 32 bits."""
    for position, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        if _numbers([value]) is None:
            return position, value
    raise AssertionError("every value is a number")


def _level(value: Any, place: str) -> str | None:
    """The level that a value names: whole numbers and booleans are written as they are in training data."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise InvalidInput(place, value, _CATEGORY_REMEDY)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:40])}, … ({len(names)} features)"
