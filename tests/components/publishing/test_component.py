from kfp import dsl

from modelyard.components.publishing.component import publish_model
from modelyard.components.signing.verification import verify_model
from tests.support.kfp_runner import run_component


def test_as_a_pipeline_step_a_model_is_published(signed, tmp_path):
    inputs = {"signed_model": (dsl.Model, signed)}
    store = str(tmp_path / "store")
    published = run_component(publish_model, tmp_path / "step", inputs, model_name="fraud", destination=store)
    assert published["uri"].startswith(f"{store}/fraud/")
    assert verify_model(published["uri"], model_name="fraud", digest=published["digest"])
