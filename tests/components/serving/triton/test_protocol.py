import json
import math

import pytest

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.errors import InvalidInput
from modelyard.components.serving.triton.protocol import read_scores, triton_request


def _model(folder, model_file):
    write_spec(folder, ModelSpec((Feature("amount"), Feature("country", ("FR", "DE"))), "fraud", model_file, 0.5))
    return folder


@pytest.mark.parametrize(("model_file", "tensor"), [("model.ubj", "input__0"), ("model.onnx", "features")])
def test_a_request_has_one_tensor_of_all_rows_with_nan_for_what_is_missing(tmp_path, model_file, tensor):
    path, body = triton_request("fraud", _model(tmp_path, model_file), [[1.5, 1.0], [None, None]])
    assert path == "/v2/models/fraud/infer"
    (sent,) = json.loads(body)["inputs"]
    data = sent.pop("data")
    assert sent == {"name": tensor, "shape": [2, 2], "datatype": "FP32"}
    assert data[:2] == [1.5, 1.0]
    assert all(math.isnan(value) for value in data[2:])


def test_scores_are_read_whatever_their_shape():
    answer = {"outputs": [{"name": "output__0", "datatype": "FP32", "shape": [2, 1], "data": [0.25, 0.5]}]}
    assert read_scores(answer) == [0.25, 0.5]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"error": "no such model"},
        {"outputs": []},
        {"outputs": [{"name": "score"}]},
        {"outputs": [{"data": [0.1]}, {"data": [0.2]}]},
        {"outputs": [{"data": ["much"]}]},
        {"outputs": [{"data": [None]}]},
    ],
)
def test_an_answer_without_scores_is_refused(answer):
    with pytest.raises(InvalidInput, match="one output with the scores"):
        read_scores(answer)
