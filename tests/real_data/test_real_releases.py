"""Releases on real data: loan applications joined to credit histories, and telemarketing calls in the order of time."""

import json
from pathlib import Path

import polars as pl
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.features.fetching import Request, fetch_training_data
from modelyard.scripts import compiled
from modelyard.scripts.local_run import run_pipeline
from tests.real_data import datasets

LOAN_COLUMNS = [
    "person_age",
    "person_income",
    "person_home_ownership",
    "person_emp_length",
    "loan_intent",
    "loan_amnt",
    "loan_int_rate",
]


def _release(folder, repo, rows, **parameters):
    request = {"feature_repo_uri": str(repo), "entity_rows_uri": str(rows), "target": "registry", **parameters}
    result = run_pipeline(compiled.find("release"), request, folder / "home")
    assert result.state == "succeeded", result.tail
    assert result.decision == "pass", result.reasons
    assert result.step("fetch_features").outputs["rows"] == pl.read_parquet(rows).height
    evaluation = json.loads(Path(result.step("evaluate_model").artifacts["evaluation"]).read_text())
    report = Path(result.step("evaluate_model").artifacts["report"]).read_text()
    card = Path(result.step("write_model_card").artifacts["card"]).read_text()
    return evaluation, report, card


def test_a_model_of_loan_defaults_is_released_on_credit_histories_and_zip_codes(tmp_path):
    repo, rows = datasets.credit_scoring(tmp_path)
    evaluation, report, card = _release(
        tmp_path,
        repo,
        rows,
        model_name="loan-default",
        feature_service="credit_scoring",
        label="loan_status",
        entity_features=LOAN_COLUMNS,
        slices=["loan_intent"],
        purpose="Rank loan applications by their risk of default.",
    )
    roc_auc = evaluation["metrics"]["roc_auc"]
    assert 0.90 < roc_auc["low"] <= roc_auc["value"] <= roc_auc["high"] < 0.97
    assert {entry["column"] for entry in evaluation["slices"]} == {"loan_intent"}
    assert "MEDICAL" in report
    assert "Rank loan applications" in card


@pytest.mark.slow
def test_calls_in_the_order_of_time_give_a_weak_but_better_than_random_model(tmp_path):
    repo, rows = datasets.bank_marketing(tmp_path)
    evaluation, _, card = _release(
        tmp_path, repo, rows, model_name="deposit", feature_service="bank_marketing", label="subscribed"
    )
    # A random split of these calls gives about 0.8: the economy of the test's months was never seen in training.
    roc_auc = evaluation["metrics"]["roc_auc"]
    assert 0.5 < roc_auc["low"] <= roc_auc["high"] < 0.75
    assert "duration" not in card


def test_a_ttl_shorter_than_the_age_of_the_snapshot_is_an_error_and_not_a_column_of_nulls(tmp_path):
    def shorten(definitions):
        text = definitions.read_text()
        with_ttl = text.replace('"zipcode_features",\n', '"zipcode_features",\n    ttl=timedelta(days=365),\n')
        assert with_ttl != text
        definitions.write_text(with_ttl.replace("from feast import", "from datetime import timedelta\n\nfrom feast import", 1))

    repo, rows = datasets.credit_scoring(tmp_path, change_definitions=shorten)
    request = Request(str(repo), str(rows), "credit_scoring", "loan_status")
    with pytest.raises(InvalidInput, match="zipcode_features"):
        fetch_training_data(request, tmp_path / "out.parquet")
