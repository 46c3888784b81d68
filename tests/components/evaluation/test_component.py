import json
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import dsl

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.evaluation.component import evaluate_model, write_model_card
from tests.components.evaluation.tiny_models import transactions, write_model, write_test_set
from tests.support.kfp_runner import run_component


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, tuple[type, Path]]:
    model = write_model(tmp_path / "model", transactions(3000, 1))
    test = write_test_set(transactions(3000, 2), tmp_path / "test.parquet")
    return {"model": (dsl.Model, model), "test": (dsl.Dataset, test)}


def test_a_pipeline_step_judges_a_first_model_and_leaves_report_figures_and_json(tmp_path, monkeypatch, inputs):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    digest = model_digest(inputs["model"][1])

    outputs = run_component(
        evaluate_model,
        tmp_path / "run",
        inputs,
        model_name="cards",
        expected_digest=digest,
        gates={"absolute": [{"metric": "pr_auc", "min": 0.1}], "min_positives": 20},
        slices=["country"],
        cluster_by="customer_id",
        draws=200,
    )

    content = json.loads(Path(outputs["evaluation"].path).read_text())
    assert outputs["decision"] == content["decision"] == "pass"
    assert outputs["digest"] == content["model_digest"] == digest
    assert content["champion"] is None
    assert outputs["metrics"].metadata["pr_auc"] == content["metrics"]["pr_auc"]["value"]
    assert outputs["classification"].metadata["confusionMatrix"]["rows"]
    assert "Model evaluation" in Path(outputs["report"].path).read_text()


def test_a_pipeline_step_refuses_a_model_that_is_not_the_one_training_reported(tmp_path, monkeypatch, inputs, capfd):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))

    with pytest.raises(RuntimeError):
        run_component(evaluate_model, tmp_path / "run", inputs, model_name="cards", expected_digest="blake3:" + "0" * 64)

    assert "it was altered" in capfd.readouterr().out


def test_a_pipeline_step_writes_card_page_and_bill_of_materials(tmp_path, monkeypatch, inputs):
    from modelyard.components.evaluation.evaluating import Settings, evaluate

    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    result = evaluate(inputs["model"][1], inputs["test"][1], model_name="cards", settings=Settings(draws=100))
    (tmp_path / "evaluation.json").write_text(json.dumps(result.content()))

    outputs = run_component(
        write_model_card,
        tmp_path / "run",
        {"model": inputs["model"], "evaluation": (dsl.Artifact, tmp_path / "evaluation.json")},
        model_name="cards",
        purpose="Stop fraud.",
    )

    assert "Stop fraud." in Path(outputs["card"].path).read_text()
    assert "Not stated" in Path(outputs["card_html"].path).read_text()
    assert json.loads(Path(outputs["bom"].path).read_text())["specVersion"] == "1.6"
    assert outputs["bom"].metadata["model_digest"] == result.digest


def test_nothing_heavy_is_loaded_before_it_is_needed():
    code = (
        "import sys, modelyard.components.evaluation.outputs, modelyard.components.evaluation.model_card,"
        " modelyard.components.evaluation.bill_of_materials, modelyard.components.evaluation.run_log;"
        "print(*{'sklearn', 'scipy', 'matplotlib', 'mlflow', 'xgboost', 'pandas', 'kfp', 'cyclonedx'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
