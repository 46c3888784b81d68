"""The release pipeline as people run it: the compiled file, from a feature repo to the registry."""

import json
from pathlib import Path

import polars as pl
import pytest

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.artifacts.digest import model_digest


def versions(home, model_name="fraud"):
    """The registered versions, oldest first, and the aliases by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    found = sorted(client.search_model_versions(f"name = '{model_name}'"), key=lambda version: int(version.version))
    return found, {alias: str(version) for alias, version in client.get_registered_model(model_name).aliases.items()}


def test_a_first_model_is_released_and_becomes_the_champion(release, simulated, tmp_path):
    result = release()

    assert result.state == "succeeded", result.tail
    assert result.decision == "pass", result.reasons
    assert (result.outputs["decision"], result.outputs["outcome"]) == ("pass", "promoted")
    asked = pl.read_parquet(simulated[1]).height
    assert result.step("fetch_features").outputs["rows"] == asked
    fetched, info = read_dataset(result.step("fetch_features").artifacts["training_data"])
    assert fetched.height == asked
    assert not set(info.roles.features) & {"customer_id", "terminal_id", "is_fraud", "event_timestamp"}

    found, aliases = versions(tmp_path / "home")
    assert [str(version.version) for version in found] == ["1"]
    assert aliases["champion"] == "1"
    assert "challenger" not in aliases
    registered = result.step("register_model").outputs
    assert model_digest(registered["uri"]) == registered["digest"] == result.outputs["digest"]
    for report in (result.step("evaluate_model").artifacts["report"], result.step("write_model_card").artifacts["card_html"]):
        assert "<html" in Path(report).read_text(encoding="utf-8").lower()


def test_a_rerun_gives_the_same_version_and_a_second_model_is_judged_against_the_first(release, tmp_path):
    first = release()
    again = release()
    assert first.step("register_model").outputs["version"] == again.step("register_model").outputs["version"] == "1"
    assert first.outputs["digest"] == again.outputs["digest"]

    second = release(training_parameters={"rounds": 40}, gates={"difference": [{"metric": "pr_auc", "margin": 0.5}]})
    assert second.decision == "pass", second.reasons
    evaluation = json.loads(Path(second.step("evaluate_model").artifacts["evaluation"]).read_text())
    assert evaluation["champion"]["version"] == "1"
    assert evaluation["champion"]["digest"] == first.outputs["digest"]
    assert evaluation["champion"]["difference"]["pr_auc"]["low"] <= evaluation["champion"]["difference"]["pr_auc"]["high"]
    found, aliases = versions(tmp_path / "home")
    assert [str(version.version) for version in found] == ["1", "2"]
    assert aliases["champion"] == "2"
    assert "modelyard.previous" in found[0].tags or aliases.get("previous") == "1"


def test_a_model_that_misses_its_gate_is_not_registered_and_says_why(release, tmp_path):
    result = release(gates={"absolute": [{"metric": "pr_auc", "min": 0.999}]})

    assert result.state == "succeeded"
    assert result.decision == "fail"
    assert (result.outputs["outcome"], result.outputs["version"]) == ("refused", "")
    assert "0.999" in Path(result.step("record_refusal").artifacts["refusal"]).read_text()
    assert not (tmp_path / "home" / "models").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", "a/b"),
        ("trainer", "lightgbm"),
        ("device", "tpu"),
        ("data_start", "yesterday"),
        ("gap_days", -1.0),
        ("target", "moon"),
        ("gates", {"absolut": []}),
    ],
)
def test_a_malformed_request_fails_in_the_first_step_and_names_the_parameter(release, field, value):
    result = release(**{field: value})

    assert result.state == "failed"
    assert [step.name for step in result.steps] == ["check_release"]
    assert field.removesuffix("s") in result.tail


@pytest.mark.slow
def test_a_promotion_can_be_left_to_a_person(release, tmp_path):
    result = release(target="none")
    assert (result.decision, result.outputs["outcome"]) == ("pass", "registered")
    _, aliases = versions(tmp_path / "home")
    assert aliases == {"challenger": "1"}


def test_a_gpu_that_is_not_there_is_an_error(release):
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    result = release(device="cuda")
    assert result.state == "failed"
    assert "cuda" in result.tail


@pytest.mark.torch
@pytest.mark.slow
def test_a_network_is_released_by_the_same_pipeline(release):
    pytest.importorskip("torch", reason="the torch extra is not installed")
    result = release(trainer="torch", training_parameters={"epochs": 3})
    assert result.state == "succeeded", result.tail
    assert any(step.name == "train_torch" for step in result.steps)
