"""Asks an arm for the scores of the model's golden rows, by its own address, before it gets any traffic.

The predictor replays them too, before it says that it is ready. This is the other end: the answers as a client gets them.
"""

import http.client
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelyard.components.artifacts.model import GOLDEN_ROWS_FILE, Feature, read_spec
from modelyard.components.artifacts.scoring import GOLDEN_TOLERANCE
from modelyard.components.errors import NotAvailable

_TIMEOUT_SECONDS = 30
# A predictor that was killed at this very moment is back by then.
_ATTEMPTS, _PAUSE_SECONDS = 6, 2.0


def golden_fault(url: str, model_name: str, directory: Path, sleep: Callable[[float], None] = time.sleep) -> str:
    """What is wrong with an arm's answers to the golden rows; empty if they are as they must be.

    Args:
        url: base URL that leads to the arm alone.
        model_name: the served model.
        directory: the model's verified directory.
        sleep: waits for a number of seconds before an attempt is repeated.
    """
    golden = json.loads((directory / GOLDEN_ROWS_FILE).read_text(encoding="utf-8"))
    body = json.dumps(
        {
            "inputs": [
                _tensor(feature, [row[position] for row in golden["rows"]])
                for position, feature in enumerate(read_spec(directory).features)
            ],
            "outputs": [{"name": "probability"}],
        }
    )
    fault = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_PAUSE_SECONDS)
        try:
            return _compare(_ask(url, f"/v2/models/{model_name}/infer", body), golden["scores"])
        except NotAvailable as error:
            fault = f"the golden rows got no answer: {error}"
    return fault


def _tensor(feature: Feature, values: list[float | None]) -> dict[str, Any]:
    """One feature of all rows, as a client would send it: categories by name, what is missing as null."""
    data: list[Any] = list(values)
    if feature.categories is not None:
        data = [None if value is None else feature.categories[int(value)] for value in values]
    kind = "FP64" if feature.categories is None else "BYTES"
    return {"name": feature.name, "shape": [len(values)], "datatype": kind, "data": data}


def _ask(url: str, path: str, body: str) -> Any:
    place = urlsplit(url)
    if place.scheme != "http" or not place.hostname:
        raise NotAvailable(f"the target gives {url!r} as the arm's address, which is no http:// URL")
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=_TIMEOUT_SECONDS)
    try:
        # It is no client's request: the predictor neither logs nor counts what carries this header.
        headers = {"Content-Type": "application/json", "x-modelyard-check": "golden"}
        connection.request("POST", place.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            raise NotAvailable(f"{url} answered {response.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotAvailable(f"{url}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _compare(answer: Any, expected: list[float]) -> str:
    try:
        found = next(output["data"] for output in answer["outputs"] if output["name"] == "probability")
        scores = [float(score) for score in found]
    except (StopIteration, KeyError, TypeError, ValueError):
        return "the golden rows got an answer without probabilities"
    if len(scores) != len(expected):
        return f"{len(expected)} golden rows got {len(scores)} scores"
    for row, (score, must) in enumerate(zip(scores, expected)):
        if not math.isclose(score, must, rel_tol=0, abs_tol=GOLDEN_TOLERANCE):
            return f"golden row {row} scores {score:.6g} instead of {must:.6g}"
    return ""
