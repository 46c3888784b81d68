"""How a request for scores is written, and its answer read, in each protocol that a server is measured with.

Everything here happens before and after what is timed.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MODEL_NAME = "benchmark"
_V1_PATH = f"/v1/models/{MODEL_NAME}:predict"
_V2_PATH = f"/v2/models/{MODEL_NAME}/infer"
_JSON = "content-type: application/json\r\n"
_JSON_LENGTH = re.compile(rb"inference-header-content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """One way to ask.

    Attributes:
        path: where to.
        write: from feature names and rows (lists of numbers) to headers, each with its line end, and body.
        read: from an answer's head and body to its scores.
    """

    path: str
    write: Callable[[Sequence[str], list[list[float]]], tuple[str, bytes]]
    read: Callable[[bytes, bytes], list[float]]

    def request(self, names: Sequence[str], rows: list[list[float]]) -> bytes:
        """The whole HTTP request."""
        headers, body = self.write(names, rows)
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}content-length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body


def _as_json(content: dict[str, Any]) -> bytes:
    # As compact as any client would: spaces are parsed, too.
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def _write_lists(names: Sequence[str], rows: list[list[float]]) -> tuple[str, bytes]:
    return _JSON, _as_json({"instances": rows})


def _write_dicts(names: Sequence[str], rows: list[list[float]]) -> tuple[str, bytes]:
    return _JSON, _as_json({"instances": [dict(zip(names, row, strict=True)) for row in rows]})


def _write_frame(names: Sequence[str], rows: list[list[float]]) -> tuple[str, bytes]:
    return _JSON, _as_json({"dataframe_split": {"columns": list(names), "data": rows}})


def _write_tensor(names: Sequence[str], rows: list[list[float]]) -> tuple[str, bytes]:
    values = [value for row in rows for value in row]
    tensor = {"name": "features", "shape": [len(rows), len(names)], "datatype": "FP32", "data": values}
    return _JSON, _as_json({"inputs": [tensor]})


def _write_binary_tensor(names: Sequence[str], rows: list[list[float]]) -> tuple[str, bytes]:
    import numpy as np

    values = np.array(rows, "<f4").tobytes()
    shape, size = [len(rows), len(names)], {"binary_data_size": len(values)}
    tensor = {"name": "features", "shape": shape, "datatype": "FP32", "parameters": size}
    head = _as_json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = f"content-type: application/octet-stream\r\ninference-header-content-length: {len(head)}\r\n"
    return headers, head + values


def _read_predictions(head: bytes, body: bytes) -> list[float]:
    """Predictions are bare scores, or scores with their decisions."""
    return [entry["probability"] if isinstance(entry, dict) else entry for entry in json.loads(body)["predictions"]]


def _read_tensor(head: bytes, body: bytes) -> list[float]:
    (probability,) = [output for output in json.loads(body)["outputs"] if output["name"] == "probability"]
    return list(probability["data"])


def _read_binary_tensor(head: bytes, body: bytes) -> list[float]:
    import numpy as np

    length = _JSON_LENGTH.search(head)
    if length is None:
        return _read_tensor(head, body)
    start = int(length[1])
    for output in json.loads(body[:start])["outputs"]:
        if output["name"] == "probability":
            return np.frombuffer(body, "<f8", output["shape"][0], start).tolist()
        start += output["parameters"]["binary_data_size"]
    return []


FORMS = {
    "V1 lists": Form(_V1_PATH, _write_lists, _read_predictions),
    "V1 dicts": Form(_V1_PATH, _write_dicts, _read_predictions),
    "V2 JSON": Form(_V2_PATH, _write_tensor, _read_tensor),
    "V2 binary": Form(_V2_PATH, _write_binary_tensor, _read_binary_tensor),
    "MLflow frame": Form("/invocations", _write_frame, _read_predictions),
}
