import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema.validators import Draft7Validator
from packageurl import PackageURL

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation import bill_of_materials as module
from modelyard.components.evaluation.bill_of_materials import bill_of_materials
from modelyard.components.evaluation.model_card import Statements
from tests.components.evaluation.test_model_card import STATED, evaluated, subject  # noqa: F401


@pytest.fixture
def traced(subject):  # noqa: F811
    data = {
        "digest": "blake3:" + "1" * 64,
        "rows": 7,
        "lineage": {"feature_service": "fraud_v1"},
        "validation": {"digest": "blake3:" + "2" * 64},
    }
    return replace(subject, spec=replace(subject.spec, data=data))


@pytest.mark.parametrize("statements", [STATED, Statements()])
def test_the_document_is_valid_cyclonedx_1_6(traced, statements):
    text = bill_of_materials(traced, statements)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_model_its_figures_data_and_libraries_are_in_it(traced):
    document = json.loads(bill_of_materials(traced, STATED))
    model = document["metadata"]["component"]

    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "BLAKE3", "content": traced.digest.removeprefix("blake3:")}]
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    overall = next(entry for entry in figures if entry["type"] == "pr_auc" and "slice" not in entry)
    expected = traced.evaluation["metrics"]["pr_auc"]
    assert float(overall["value"]) == expected["value"]
    assert float(overall["confidenceInterval"]["lowerBound"]) == expected["low"]
    assert any(entry.get("slice") == "country=FR" for entry in figures)
    assert model["modelCard"]["considerations"]["useCases"] == [STATED.purpose]

    components = {component["bom-ref"]: component for component in document["components"]}
    referred = [entry["ref"] for entry in model["modelCard"]["modelParameters"]["datasets"]]
    assert [components[reference]["name"] for reference in referred] == ["training data", "validation data", "test data"]
    purls = [PackageURL.from_string(part["purl"]) for part in components.values() if part["type"] == "library"]
    assert all(purl.type == "pypi" and purl.version for purl in purls)
    versions = {purl.name: purl.version for purl in purls}
    assert versions["xgboost-cpu" if "xgboost-cpu" in versions else "xgboost"] == traced.spec.training["versions"]["xgboost"]
    assert {"numpy", "polars"} <= set(versions)
    assert {entry["ref"] for entry in document["dependencies"]} == {model["bom-ref"], *components}


def test_equal_models_have_equal_documents_and_others_another_serial_number(traced):
    first = bill_of_materials(traced, STATED)

    assert bill_of_materials(traced, STATED) == first
    other = bill_of_materials(replace(traced, run_id="run-8"), STATED)
    assert json.loads(other)["serialNumber"] != json.loads(first)["serialNumber"]


def test_an_invalid_document_is_refused(traced, monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda digest: {"alg": "BLAKE3", "content": "short"})

    with pytest.raises(InvalidInput, match="CycloneDX"):
        bill_of_materials(traced, STATED)


def test_no_field_of_the_document_is_an_address_whose_checker_a_step_leaves_out(traced, monkeypatch):
    checked = []
    checkers = Draft7Validator.FORMAT_CHECKER.checkers
    for name in ("iri", "iri-reference"):
        assert name in checkers
        monkeypatch.setitem(checkers, name, (lambda value: bool(checked.append(value) or True), ()))
    text = bill_of_materials(traced, STATED)
    assert checked == []

    document = json.loads(text)
    document["externalReferences"] = [{"type": "website", "url": "https://example.org"}]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert checked == ["https://example.org"]


@pytest.mark.parametrize("flaw", [{"serialNumber": "7"}, {"nonsense": 1}, {"metadata": {"timestamp": "yesterday"}}])
def test_a_step_refuses_an_invalid_document_too(traced, flaw):
    document = json.loads(bill_of_materials(traced, STATED)) | flaw
    code = (
        "import sys\n"
        "from modelyard.components.errors import InvalidInput\n"
        "from modelyard.components.evaluation.bill_of_materials import _validate\n"
        "try: _validate(sys.stdin.read())\n"
        "except InvalidInput as error: print(error.field, 'rfc3987_syntax' in sys.modules)\n"
    )
    environment = {**os.environ, "_KFP_RUNTIME": "true"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, input=json.dumps(document))
    assert done.stdout.split() == ["bill", "of", "materials", "False"]
