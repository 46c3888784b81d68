from dataclasses import replace

import polars as pl
import pytest

from modelyard.components.evaluation.evaluating import Settings, evaluate
from modelyard.components.evaluation.report import render_report
from tests.components.evaluation.conftest import champion_of
from tests.components.evaluation.pages import assert_self_contained
from tests.components.evaluation.tiny_models import transactions, write_test_set

FULL = Settings(
    cluster_by="customer_id",
    draws=100,
    slices=("country", "amount"),
    gates={
        "difference": [
            {"metric": "pr_auc", "margin": 0.02},
            {"metric": "expected_cost", "margin": 0.01, "rule": "superiority"},
        ],
        "slices": [{"metric": "pr_auc", "margin": 0.05, "columns": ["country"]}],
    },
)


@pytest.fixture(scope="module")
def page_text(strong, weak, test_set):
    result = evaluate(strong, test_set, model_name="cards <i>&", champion=champion_of(weak), settings=FULL)
    return render_report(result)


def test_the_report_is_one_page_that_needs_nothing_else_and_has_every_part(page_text):
    page = assert_self_contained(page_text)

    assert page.texts["h1"] == ["cards <i>&"]
    headings = page.texts["h2"]
    assert headings == ["What was judged", "Gates", "Figures", "Curves", "Slices", "Where the data came from"]
    figures = page.texts["h3"]
    for figure in (
        "Precision and recall",
        "ROC",
        "Calibration",
        "Cost by threshold",
        "Scores of the model",
        "Scores of the champion",
        "PR-AUC, paired",
        "Expected cost, paired",
        "PR-AUC by country",
    ):
        assert figure in figures
    assert page.tags.count("svg") == len(figures)
    assert "margin -0.02" in page.texts["text"]


def test_values_from_the_data_are_shown_as_text_and_never_as_markup(page_text):
    page = assert_self_contained(page_text)

    assert "<b>XX</b>" not in page_text
    assert "b" not in page.tags
    assert any("<b>XX</b>" in text for text in page.texts["td"])


def test_equal_evaluations_give_equal_pages(strong, weak, test_set, page_text):
    result = evaluate(strong, test_set, model_name="cards <i>&", champion=champion_of(weak), settings=FULL)

    assert render_report(result) == page_text


@pytest.mark.parametrize(
    ("settings", "decision"), [(Settings(), "pass"), (Settings(gates={"first_model": []}), "inconclusive")]
)
def test_a_first_model_has_a_report_without_a_champion(strong, test_set, settings, decision):
    text = render_report(evaluate(strong, test_set, model_name="cards", settings=replace(settings, draws=100)))
    page = assert_self_contained(text)

    assert decision in page.texts["span"]
    assert any("first model" in text for text in page.texts["dd"])
    assert "Scores of the champion" not in page.texts["h3"]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_test_set_without_enough_rows_has_a_report_too(strong, tmp_path, rows):
    test = write_test_set(transactions(100, 3).head(rows), tmp_path / "test.parquet")
    text = render_report(evaluate(strong, test, model_name="cards", settings=Settings(slices=("country",))))
    page = assert_self_contained(text)

    assert "inconclusive" in page.texts["span"]
    assert "Curves" not in page.texts["h2"]


def test_constant_scores_and_few_rows_can_be_drawn(strong, tmp_path):
    frame = transactions(200, 3)
    constant = pl.concat([frame.filter(pl.col("fraud") == 1).head(1)] * 40).with_columns(
        fraud=(pl.int_range(pl.len()) % 2).cast(pl.Int8)
    )
    test = write_test_set(constant, tmp_path / "test.parquet")

    assert_self_contained(render_report(evaluate(strong, test, model_name="cards", settings=Settings(draws=100))))
