import pytest
from kfp import dsl

from modelyard.components.registry.component import promote_model, register_model
from modelyard.components.registry.versions import aliases
from modelyard.components.tracking.connection import client
from tests.support.kfp_runner import run_component


def test_as_pipeline_steps_a_model_is_registered_and_promoted(release, tmp_path):
    made = release()
    inputs = {"signed_model": (dsl.Model, made.signed), "evaluation": (dsl.Artifact, made.evaluation)}
    registered = run_component(register_model, tmp_path / "register", inputs, model_name="fraud")
    assert registered["version"] == "1"
    parameters = {"version": registered["version"], "digest": registered["digest"]}
    assert run_component(promote_model, tmp_path / "promote", model_name="fraud", **parameters) == {"previous": ""}
    assert aliases(client(), "fraud") == {"champion": "1"}


def test_as_a_pipeline_step_an_altered_model_is_refused(release, tmp_path, capfd):
    made = release()
    (made.signed / "model.ubj").write_bytes(b"other")
    inputs = {"signed_model": (dsl.Model, made.signed), "evaluation": (dsl.Artifact, made.evaluation)}
    with pytest.raises(RuntimeError):
        run_component(register_model, tmp_path / "register", inputs, model_name="fraud")
    assert "altered since it was signed: model.ubj" in capfd.readouterr().out
