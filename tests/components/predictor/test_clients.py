"""Conformance, checked with clients of others: KServe's own and Triton's."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

ROWS = np.array([[0.5, -1.0], [np.nan, 2.0], [3.0, 0.25]], np.float32)
BAD = np.array([[0.5, np.inf]], np.float32)


def _ask(served, protocol, work):
    async def ask():
        async with InferenceRESTClient(RESTConfig(protocol=protocol, retries=0)) as client:
            return await work(client, f"http://127.0.0.1:{served.port}")

    return asyncio.run(ask())


def _expected(load, rows=ROWS, name="first"):
    scores = load(name).loaded.scorer.score_matrix(rows)
    return scores, (scores >= 0.5).astype(np.int32)


def _outputs(response):
    return {output.name: output.as_numpy() for output in response.outputs}


def test_kserve_s_client_asks_by_v1(served, load):
    instances = [[0.5, -1.0], {"amount": None, "night": 2.0}, [3, 0.25]]
    answer = _ask(served, "v1", lambda client, url: client.infer(url, {"instances": instances}, model_name="fraud"))
    scores, decisions = _expected(load)
    assert [entry["probability"] for entry in answer["predictions"]] == scores.tolist()
    assert [entry["decision"] for entry in answer["predictions"]] == decisions.tolist()
    assert _ask(served, "v1", lambda client, url: client.is_model_ready(url, "fraud"))


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
@pytest.mark.parametrize("by_feature", [False, True])
def test_kserve_s_client_asks_by_v2(served, load, binary_input, binary_output, by_feature):
    if by_feature:
        inputs = [InferInput(name, [3, 1], "FP32") for name in ("night", "amount")]
        inputs[0].set_data_from_numpy(ROWS[:, 1:], binary_data=binary_input)
        inputs[1].set_data_from_numpy(ROWS[:, :1], binary_data=binary_input)
    else:
        inputs = [InferInput("rows", [3, 2], "FP32")]
        inputs[0].set_data_from_numpy(ROWS, binary_data=binary_input)
    request = InferRequest(
        "fraud", inputs, request_id="mine", request_outputs=[RequestedOutput("probability", {"binary_data": binary_output})]
    )
    response = _ask(served, "v2", lambda client, url: client.infer(url, request, model_name="fraud"))
    assert (response.id, response.model_name) == ("mine", "fraud")
    assert list(_outputs(response)) == ["probability"]
    np.testing.assert_array_equal(_outputs(response)["probability"], _expected(load)[0])


def test_kserve_s_client_sees_that_the_server_is_ready(served):
    assert _ask(served, "v2", lambda client, url: client.is_server_live(url))
    assert _ask(served, "v2", lambda client, url: client.is_server_ready(url))
    assert _ask(served, "v2", lambda client, url: client.is_model_ready(url, "fraud"))


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        yield client


def test_triton_s_client_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fraud")
    assert client.is_model_ready("fraud", "7")
    assert not client.is_model_ready("fraud", "8")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("fraud", "7")
    assert metadata["versions"] == ["7"]
    assert [entry["name"] for entry in metadata["inputs"]] == ["amount", "night"]
    assert [entry["name"] for entry in metadata["outputs"]] == ["probability", "decision"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_triton_s_client_infers(client, load, binary, datatype):
    tensor = triton.InferInput("rows", list(ROWS.shape), datatype)
    tensor.set_data_from_numpy(ROWS.astype({"FP32": np.float32, "FP64": np.float64}[datatype]), binary_data=binary)
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("decision", "probability")]
    result = client.infer("fraud", [tensor], "7", asked, "mine")
    scores, decisions = _expected(load)
    assert result.get_response()["id"] == "mine"
    np.testing.assert_array_equal(result.as_numpy("probability"), scores)
    np.testing.assert_array_equal(result.as_numpy("decision"), decisions)
    assert result.as_numpy("decision").dtype == np.int32


def test_triton_s_client_gets_all_outputs_in_binary_if_it_asks_for_none(client, load):
    tensor = triton.InferInput("rows", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)
    result = client.infer("fraud", [tensor])
    assert result.get_output("probability")["parameters"] == {"binary_data_size": 24}
    np.testing.assert_array_equal(result.as_numpy("probability"), _expected(load)[0])


def test_triton_s_client_is_told_what_is_wrong(client):
    tensor = triton.InferInput("rows", list(BAD.shape), "FP32")
    tensor.set_data_from_numpy(BAD)
    with pytest.raises(InferenceServerException, match=r"\[400\] input rows\[0\]\.night = inf"):
        client.infer("fraud", [tensor])
    tensor.set_data_from_numpy(ROWS[:1])
    with pytest.raises(InferenceServerException, match=r"\[404\] there is no model 'spam' here"):
        client.infer("spam", [tensor])
    with pytest.raises(InferenceServerException, match=r"\[415\].*compressed"):
        client.infer("fraud", [tensor], request_compression_algorithm="gzip")


def test_triton_s_client_loads_the_model_again(client):
    client.load_model("fraud")
    with pytest.raises(InferenceServerException, match="spam"):
        client.load_model("spam")


def test_triton_s_client_gives_categories_as_strings(models, start, load):
    predictor = start(models["mixed"]).wait_for("ready")
    columns = {
        "country": np.array(["US", "XX", "DE"], np.object_),
        "amount": np.array([1.5, np.nan, 2.0], np.float64),
        "hour": np.array([3, 4, 5], np.int64),
    }
    matrix = np.array([[1.5, 2, 3], [np.nan, np.nan, 4], [2.0, 0, 5]], np.float32)
    for binary in (False, True):
        inputs = []
        for name, datatype in (("country", "BYTES"), ("amount", "FP64"), ("hour", "INT64")):
            inputs.append(triton.InferInput(name, [3], datatype))
            inputs[-1].set_data_from_numpy(columns[name], binary_data=binary)
        with triton.InferenceServerClient(f"127.0.0.1:{predictor.port}") as client:
            result = client.infer("fraud", inputs)
        np.testing.assert_array_equal(result.as_numpy("probability"), _expected(load, matrix, "mixed")[0])
