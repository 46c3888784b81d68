"""KServe's V1 protocol.

{"instances": [[120.5, 1], {"amount": 3, "night": null}]}
{"predictions": [{"probability": 0.93, "decision": 1}, {"probability": 0.01, "decision": 0}]}
"""

from typing import TYPE_CHECKING

import orjson

from modelyard.components.errors import InvalidInput
from modelyard.components.predictor.protocol import Answer, TooManyRows, read_json

if TYPE_CHECKING:
    from modelyard.components.predictor.served_model import LoadedModel


def predict(model: "LoadedModel", body: bytes, json_length: int | None = None) -> Answer:
    """Answers ``POST /v1/models/NAME:predict``.

    Raises:
        InvalidInput: the request is not what the model takes; the message says where.
    """
    if json_length is not None:
        raise InvalidInput("Inference-Header-Content-Length", json_length, "only V2 has binary tensors; leave the header out")
    content = read_json(body)
    instances = content.get("instances")
    if type(instances) is not list:
        shown = "nothing" if instances is None else instances
        raise InvalidInput("instances", shown, "give a list of rows, each a list of values or values by feature name")
    if not instances:
        raise InvalidInput("instances", instances, "give at least one row")
    if len(instances) > model.max_rows:
        raise TooManyRows("instances", len(instances), model.max_rows)
    matrix, rows = model.reader.from_instances(instances)
    scores, decisions = model.decide(matrix)
    predictions = [{"probability": score, "decision": decision} for score, decision in zip(scores.tolist(), decisions.tolist())]
    return Answer(orjson.dumps({"predictions": predictions}), scores, decisions, rows)
