import asyncio
import json
import shutil

import fastapi
import httpx
import kserve
import numpy as np
import pytest
from kserve.errors import InvalidInput as KServeInvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import write_golden_rows
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.predictor.configuration import Configuration
from modelyard.components.predictor.served_model import ServedModel
from modelyard.components.signing.sign import sign_model
from tests.support.signed_models import attestations

ROWS = [[1.0, 2.0], [-0.5, None]]


def _scores(served, rows=ROWS):
    matrix = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float32)
    return served.loaded.scorer.score_matrix(matrix).tolist()


def test_it_is_a_kserve_model_that_is_ready_once_it_is_loaded(models):
    served = ServedModel("fraud", models["first"], Configuration())
    assert isinstance(served, kserve.Model)
    assert (served.name, served.ready) == ("fraud", False)
    assert served.load()
    assert served.ready


def test_it_knows_its_digest_even_if_none_is_expected(models, digest):
    served = ServedModel("fraud", models["first"], Configuration())
    served.load()
    assert served.loaded.digest == digest(models["first"])
    assert served.loaded.version == "unversioned"


def test_a_name_that_is_none_is_refused(models):
    with pytest.raises(InvalidInput, match="model_name"):
        ServedModel("a/b", models["first"], Configuration())


def test_another_model_another_version_and_one_that_is_not_there_are_refused(models, digest, tmp_path):
    for served, told in (
        (ServedModel("spam", models["first"], Configuration()), "it is the model 'fraud', not 'spam'"),
        (ServedModel("fraud", models["first"], Configuration(digest=digest(models["second"]))), "it is another version"),
    ):
        with pytest.raises(VerificationFailed, match=told):
            served.load()
        assert not served.ready
    with pytest.raises(InvalidInput, match="model directory"):
        ServedModel("fraud", tmp_path / "nothing", Configuration()).load()


def test_a_file_that_the_signature_does_not_cover_is_refused(models, tmp_path):
    model = shutil.copytree(models["first"], tmp_path / "model")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    with pytest.raises(VerificationFailed, match="added"):
        ServedModel("fraud", model, Configuration()).load()


def test_a_model_without_a_signature_is_refused(models, tmp_path):
    model = shutil.copytree(models["first"], tmp_path / "model")
    (model / "model.sig").unlink()
    with pytest.raises(VerificationFailed, match="is not signed"):
        ServedModel("fraud", model, Configuration()).load()


def test_a_model_that_scores_otherwise_than_it_must_is_refused(models, tmp_path):
    model = shutil.copytree(models["first"].parent / "model", tmp_path / "model")
    golden = json.loads((model / "golden_rows.json").read_text())
    golden["scores"][2] += 0.01
    (model / "golden_rows.json").write_text(json.dumps(golden))
    sign_model(model, **attestations(tmp_path / "inputs", model), signed_model=tmp_path / "signed", model_name="fraud")
    with pytest.raises(VerificationFailed, match="golden row 2"):
        ServedModel("fraud", tmp_path / "signed", Configuration()).load()


def test_without_a_key_nothing_can_be_verified(models, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", str(tmp_path / "no.pub"))
    with pytest.raises((NotAvailable, InvalidInput, VerificationFailed), match=r"no\.pub"):
        ServedModel("fraud", models["first"], Configuration()).load()


def test_what_was_loaded_goes_on_if_a_reload_is_refused(models, tmp_path):
    model = shutil.copytree(models["first"], tmp_path / "model")
    served = ServedModel("fraud", model, Configuration())
    served.load()
    before = served.loaded
    (model / "model.ubj").write_bytes(b"{}")
    with pytest.raises(VerificationFailed):
        served.load()
    assert served.ready
    assert served.loaded is before


def test_what_kserve_s_own_server_reads_may_be_nested_to_any_depth(load):
    instances = []
    for _ in range(900):
        instances = [instances]
    with pytest.raises(KServeInvalidInput):
        asyncio.run(load("first").predict({"instances": instances}))


def test_another_model_is_not_taken_under_the_name_of_the_version_that_was_loaded(models, tmp_path):
    model = shutil.copytree(models["first"], tmp_path / "model")
    named, unnamed = (ServedModel("fraud", model, configuration) for configuration in (Configuration("7"), Configuration()))
    for served in (named, unnamed):
        served.load()
        served.load()
    shutil.rmtree(model)
    shutil.copytree(models["second"], model)
    with pytest.raises(VerificationFailed, match="another version"):
        named.load()
    assert unnamed.load()
    assert unnamed.loaded.digest != named.loaded.digest


@pytest.mark.parametrize(("threshold", "decision"), [(None, 1), (0.0, 1), (1.0, 0)])
def test_the_model_s_threshold_counts_unless_another_is_given(models, threshold, decision):
    served = ServedModel("fraud", models["first"], Configuration(threshold=threshold))
    served.load()
    scores, decisions = served.loaded.decide(np.array([[5, 0]], np.float32))
    assert scores[0] > 0.5
    assert decisions.tolist() == [decision]


@pytest.fixture
def ask_kserve(load):
    """Asks KServe's own server, in this process, because it would listen on all addresses."""
    repository = kserve.ModelRepository()
    repository.update(load("first"))
    application = fastapi.FastAPI()
    rest = RESTServer(application, DataPlane(repository), ModelRepositoryExtension(repository), http_port=0)
    rest._register_endpoints(application)
    rest._add_exception_handlers(application)

    def ask(method, path, **arguments):
        async def send():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://kserve") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

    return ask


def test_kserve_s_own_server_serves_it_by_v1(ask_kserve, load):
    reply = ask_kserve("POST", "/v1/models/fraud:predict", json={"instances": ROWS})
    assert [entry["probability"] for entry in reply.json()["predictions"]] == _scores(load("first"))
    reply = ask_kserve("POST", "/v1/models/fraud:predict", json={"instances": [["a", 1]]})
    assert reply.status_code == 400
    assert "instances[0].amount = 'a'" in reply.json()["error"]


def test_kserve_s_own_server_serves_it_by_v2(ask_kserve, load):
    tensor = {"name": "rows", "shape": [2, 2], "datatype": "FP32", "data": ROWS[0] + ROWS[1]}
    reply = ask_kserve("POST", "/v2/models/fraud/infer", json={"inputs": [tensor]}).json()
    assert reply["outputs"][0]["data"] == _scores(load("first"))
    metadata = ask_kserve("GET", "/v2/models/fraud").json()
    assert [entry["name"] for entry in metadata["inputs"]] == ["amount", "night"]
    reply = ask_kserve("POST", "/v2/models/fraud/infer", json={"inputs": [{**tensor, "shape": [4, 1]}]})
    assert reply.status_code == 400


@pytest.fixture
def onnx_model(tmp_path):
    """A signed ONNX model: the logistic function of ten times the difference of two numbers."""
    onnx = pytest.importorskip("onnx")
    number, helper = onnx.TensorProto.FLOAT, onnx.helper
    weights, axes = np.array([10.0, -10.0], np.float32), np.array([1], np.int64)
    nodes = [
        ("Mul", ["features", "weights"], ["parts"]),
        ("ReduceSum", ["parts", "axes"], ["sum"]),
        ("Sigmoid", ["sum"], ["score"]),
    ]
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "logistic",
        [helper.make_tensor_value_info("features", number, [None, 2])],
        [helper.make_tensor_value_info("score", number, [None, 1])],
        [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(axes, "axes")],
    )
    model = tmp_path / "model"
    model.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model / "model.onnx")
    spec = ModelSpec((Feature("a"), Feature("b")), "label", "model.onnx", 0.5, data={"digest": "blake3:" + "d" * 64})
    write_spec(model, spec)
    rows = np.array([[0.1, 0.2], [0.3, 0.1]], np.float32)
    write_golden_rows(model, spec, rows, 1 / (1 + np.exp(-(rows @ weights))))
    sign_model(model, **attestations(tmp_path / "inputs", model), signed_model=tmp_path / "signed", model_name="fraud")
    return tmp_path / "signed"


def test_an_onnx_model_is_served_too(onnx_model):
    served = ServedModel("fraud", onnx_model, Configuration())
    served.load()
    assert served.loaded.platform == "onnx"
    scores, _ = served.loaded.decide(np.array([[0.5, 0.3]], np.float32))
    assert scores == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


def test_numbers_that_a_model_cannot_compute_with_are_refused(onnx_model):
    served = ServedModel("fraud", onnx_model, Configuration())
    served.load()
    # Infinite minus infinite.
    with pytest.raises(InvalidInput, match=r"row 1 = .* the model has no score"):
        served.loaded.decide(np.array([[1, 2], [3e38, 3e38]], np.float32))
