"""What both protocols share: an answer, and reading JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from modelyard.components.errors import InvalidInput

JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request for inference is answered.

    Attributes:
        body: bytes of the answer.
        scores: probabilities, float64, shape (rows,).
        decisions: int32, shape (rows,).
        rows: what was asked, checked: dicts by feature name, values in feature order, or an array (rows, features).
        request_id: the ``id`` that the body gave; empty if none.
        json_length: length of the JSON that binary tensors follow; None if there are none.
    """

    body: bytes
    scores: np.ndarray
    decisions: np.ndarray
    rows: Sequence[Any] | np.ndarray
    request_id: str = ""
    json_length: int | None = None


class TooManyRows(InvalidInput):
    """A request of more rows than are answered at once."""

    def __init__(self, field: str, rows: int, limit: int) -> None:
        super().__init__(field, f"{rows} rows", f"send up to {limit} rows in a request (MODELYARD_MAX_REQUEST_ROWS)")


def read_json(body: bytes | memoryview) -> dict[str, Any]:
    """Reads an object. Clients in Python write ``NaN`` for what is missing, which JSON lacks: it is taken nevertheless.

    Of a name that is given twice the last value counts, as in most readers of JSON.

    Raises:
        InvalidInput: it is not JSON, or not an object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        content = _read_lenient_json(bytes(body), error)
    if type(content) is not dict:
        raise InvalidInput("body", _kind(content), "send a JSON object")
    return content


def _read_lenient_json(body: bytes, found: orjson.JSONDecodeError) -> Any:
    if b"NaN" in body or b"Infinity" in body:
        try:
            return json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            pass
    raise InvalidInput("body", _beginning(body), f"it is not JSON ({found}); send a JSON object in UTF-8") from found


def _beginning(body: bytes) -> str:
    return body[:40].decode("utf-8", "replace")


def _kind(content: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(content), "a number")
