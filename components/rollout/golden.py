"""Asks an arm for the scores of the model's golden rows, by its own address, before it gets any traffic.

Our predictor replays them too, before it says that it is ready; Triton does not. This is the other end: the answers as a client
gets them.
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
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.target import TRITON, Arm

_TIMEOUT_SECONDS = 30
# A predictor that was killed at this very moment is back by then.
_ATTEMPTS, _PAUSE_SECONDS = 6, 2.0


class _BadAnswer(Exception):
    """Something answered, but not with scores."""


def golden_fault(
    arm: Arm, model_name: str, directory: Path, sleep: Callable[[float], None] = time.sleep, *, patient: bool = True
) -> str:
    """What is wrong with an arm's answers to the golden rows; empty if they are as they must be.

    Args:
        arm: what is asked, by its own address: http:// or https://, with a path if one leads to it.
        model_name: the served model.
        directory: the model's verified directory.
        sleep: waits for a number of seconds before an attempt is repeated.
        patient: whether it is asked again while nothing answers at its address.

    Raises:
        NotAvailable: nothing answers at the arm's address, which says nothing of the arm.
    """
    golden = json.loads((directory / GOLDEN_ROWS_FILE).read_text(encoding="utf-8"))
    if arm.layout == TRITON:
        from modelyard.components.serving.triton.protocol import read_scores, triton_request

        path, body = triton_request(model_name, directory, golden["rows"])
    else:
        path, body, read_scores = f"/v2/models/{model_name}/infer", _request(golden["rows"], directory), _probabilities
    answer: Any = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_PAUSE_SECONDS)
        try:
            answer = _ask(arm.url, path, body)
            break
        except (NotAvailable, _BadAnswer) as error:
            if isinstance(error, NotAvailable) and not patient:
                raise
            fault = error
    else:
        if isinstance(fault, NotAvailable):
            raise fault
        return f"the golden rows got no scores: {fault}"
    try:
        return _compare(read_scores(answer), golden["scores"])
    except InvalidInput:
        return "the golden rows got an answer without probabilities"


def _request(rows: list[list[float | None]], directory: Path) -> str:
    """The rows as our predictor is asked for scores."""
    features = enumerate(read_spec(directory).features)
    tensors = [_tensor(feature, [row[position] for row in rows]) for position, feature in features]
    return json.dumps({"inputs": tensors, "outputs": [{"name": "probability"}]})


def _tensor(feature: Feature, values: list[float | None]) -> dict[str, Any]:
    """One feature of all rows, as a client would send it: categories by name, what is missing as null."""
    data: list[Any] = list(values)
    if feature.categories is not None:
        data = [None if value is None else feature.categories[int(value)] for value in values]
    kind = "FP64" if feature.categories is None else "BYTES"
    return {"name": feature.name, "shape": [len(values)], "datatype": kind, "data": data}


def _ask(url: str, path: str, body: str) -> Any:
    place = urlsplit(url)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise NotAvailable(f"the target gives {url!r} as the arm's address, which is no http:// or https:// URL")
    connect = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = connect(place.hostname, place.port, timeout=_TIMEOUT_SECONDS)
    try:
        # It is no client's request: the predictor neither logs nor counts what carries this header.
        headers = {"Content-Type": "application/json", "x-modelyard-check": "golden"}
        connection.request("POST", place.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotAvailable(f"{url} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _BadAnswer(f"{url} answered {response.status}: {text[:300].decode(errors='replace')}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _BadAnswer(f"{url} answered what is no JSON ({error})") from error


def _probabilities(answer: Any) -> list[float]:
    try:
        found = next(output["data"] for output in answer["outputs"] if output["name"] == "probability")
        return [float(score) for score in found]
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise InvalidInput("answer", answer, "it must have one output named probability") from error


def _compare(scores: list[float], expected: list[float]) -> str:
    if len(scores) != len(expected):
        return f"{len(expected)} golden rows got {len(scores)} scores"
    for row, (score, must) in enumerate(zip(scores, expected)):
        if not math.isclose(score, must, rel_tol=0, abs_tol=GOLDEN_TOLERANCE):
            return f"golden row {row} scores {score:.6g} instead of {must:.6g}"
    return ""
