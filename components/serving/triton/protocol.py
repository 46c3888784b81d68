"""How Triton is asked for scores: the V2 protocol with one tensor of encoded rows.

>>> path, body = triton_request("fraud", directory, golden["rows"])
>>> read_scores(json.loads(answer))
[0.031, 0.92]
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelyard.components.artifacts.model import read_spec
from modelyard.components.errors import InvalidInput
from modelyard.components.serving.triton.backends import backend_of


def triton_request(model_name: str, model_directory: Path, rows: Sequence[Sequence[float | None]]) -> tuple[str, str]:
    """The request that scores encoded rows.

    Args:
        model_name: the served model.
        model_directory: its directory.
        rows: at least one, each with the features in the model's order, as ``golden_rows.json`` has them: categories as
            codes, None for what is missing.

    Returns:
        The path to POST to, and the body: JSON as Triton reads it, which knows NaN but no null in a tensor.
    """
    body = {
        "inputs": [
            {
                "name": backend_of(read_spec(model_directory)).input,
                "shape": [len(rows), len(rows[0])],
                "datatype": "FP32",
                "data": [math.nan if value is None else value for row in rows for value in row],
            }
        ]
    }
    return f"/v2/models/{model_name}/infer", json.dumps(body)


def read_scores(answer: Any) -> list[float]:
    """The scores in Triton's answer.

    Raises:
        InvalidInput: it has none.
    """
    try:
        (output,) = answer["outputs"]
        return [float(score) for score in output["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            "answer", answer, "it must have one output with the scores, as a repository written here gives"
        ) from error
