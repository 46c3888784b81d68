import json
import urllib.request

import numpy as np
import pytest

from modelyard.components.rollout.golden import golden_fault
from modelyard.components.serving.target import TRITON, Arm, ServedModel
from modelyard.components.serving.triton.protocol import read_scores, triton_request
from modelyard.components.serving.triton.repository import write_repository
from tests.components.serving.triton.models import network, trees
from tests.services import triton

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    triton.require()
    pytest.importorskip("onnx", reason="the torch extra is not installed")
    folder = tmp_path_factory.mktemp("models")
    return {"forest": trees(folder / "forest"), "net-work_1.2": network(folder / "network")}


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    for name, model in models.items():
        write_repository(model, repository, model_name=name)
    with triton.serving(repository, tmp_path_factory.mktemp("server")) as urls:
        yield urls


def _ask(url, body=None):
    request = urllib.request.Request(url, body and body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.mark.parametrize("name", ["forest", "net-work_1.2"])
def test_triton_gives_the_golden_rows_their_scores(models, server, name):
    golden = json.loads((models[name] / "golden_rows.json").read_text())
    path, body = triton_request(name, models[name], golden["rows"])
    assert "NaN" in body
    np.testing.assert_allclose(read_scores(json.loads(_ask(server[0] + path, body))), golden["scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["forest", "net-work_1.2"])
def test_a_rollout_replays_the_golden_rows_and_notices_another_model(models, server, name, tmp_path):
    arm = Arm(ServedModel("3", "blake3:…", "s3://models/3"), share=0, ready=True, url=server[0], layout=TRITON)
    assert golden_fault(arm, name, models[name]) == ""
    other = (trees if name == "forest" else network)(tmp_path / "other", seed=7)
    assert golden_fault(arm, name, other).startswith("golden row ")


@pytest.mark.parametrize("name", ["forest", "net-work_1.2"])
def test_triton_tells_a_client_what_it_must_know(models, server, name):
    config = json.loads(_ask(f"{server[0]}/v2/models/{name}/config"))
    told = json.loads(config["parameters"]["modelyard"]["string_value"])
    spec = json.loads((models[name] / "modelyard.json").read_text())
    assert told["features"] == spec["features"]
    assert told["threshold"] == spec["threshold"]


def test_triton_counts_what_it_answered_by_model(models, server):
    path, body = triton_request("forest", models["forest"], [[1.0, 2.0, 0.5]])
    _ask(server[0] + path, body)
    lines = _ask(server[1]).decode().splitlines()
    (answered,) = [line for line in lines if line.startswith('nv_inference_request_success{model="forest",version="1"}')]
    assert float(answered.split()[-1]) >= 1
    failures = [line for line in lines if line.startswith('nv_inference_request_failure{model="forest"')]
    assert {line.split('reason="')[1].split('"')[0] for line in failures} == {"OTHER", "BACKEND", "REJECTED", "CANCELED"}
