import shutil
from pathlib import Path

import pytest
from kfp import dsl

from modelyard.components.signing.component import sign_model
from modelyard.components.signing.verification import verify_model
from tests.support.kfp_runner import run_component
from tests.support.signed_models import attestations


@pytest.fixture
def inputs(home, _models, tmp_path):
    model = Path(shutil.copytree(_models[0].directory.parent / "model", tmp_path / "model"))

    def make(**entries):
        papers = attestations(tmp_path / "papers", model, **entries)
        return {
            "model": (dsl.Model, model),
            "evaluation": (dsl.Artifact, papers["evaluation"]),
            "card": (dsl.Markdown, papers["card"]),
            "card_html": (dsl.HTML, papers["card_html"]),
            "bom": (dsl.Artifact, papers["bom"]),
        }

    return make


def test_as_a_pipeline_step_it_signs_a_model(inputs, tmp_path):
    outputs = run_component(sign_model, tmp_path / "run", inputs(), model_name="fraud", run_id="abc")
    provenance = verify_model(outputs["signed_model"].path, model_name="fraud", digest=outputs["digest"])
    assert (provenance.signer, provenance.run_id) == (outputs["signer"], "abc")
    assert outputs["signed_model"].metadata["digest"] == provenance.model_digest


def test_as_a_pipeline_step_it_refuses_a_model_that_failed(inputs, tmp_path, capfd):
    with pytest.raises(RuntimeError):
        run_component(sign_model, tmp_path / "run", inputs(decision="fail"), model_name="fraud")
    assert "only a model that passed its evaluation is signed" in capfd.readouterr().out
    assert not list((tmp_path / "run").rglob("model.sig"))
