from datetime import timedelta

import polars as pl
import pytest

from modelyard.components.experiments.analysis import Terms, judge
from modelyard.components.experiments.labelled_log import join_labels
from modelyard.components.experiments.report import render_report
from tests.components.evaluation.pages import assert_self_contained
from tests.components.experiments.simulated_traffic import FIRST, predictions


def page_of(log, labels, terms, name="fraud <b>&"):
    joined = join_labels(
        log,
        labels.with_columns(pl.col("label") == 1),
        0,
        control="1",
        trial="2",
        now=FIRST + timedelta(days=31),
        delay_days=terms.label_delay_days,
        split_by=terms.split_by,
    )
    return assert_self_contained(render_report(judge(joined, terms, model_name=name, versions=("1", "2"))))


@pytest.fixture(scope="module")
def page():
    return page_of(*predictions(0, keys=1500, quality=(1.0, 2.2), share=0.3), Terms(share=30))


def test_the_report_is_one_page_that_needs_nothing_else_and_has_every_part(page):
    assert page.texts["h1"] == ["fraud <b>&"]
    assert page.texts["h2"] == ["What was compared", "Figures", "Over time", "Scores", "Data"]
    assert page.texts["h3"] == ["PR-AUC", "Cost of a prediction", "Precision and recall", "Scores"]


def test_the_decision_is_on_top_with_its_reasons(page):
    assert "winner" in page.texts["span"][0]
    assert "Version 2 is better than version 1." in page.texts["p"]
    assert any("PR-AUC is" in reason for reason in page.texts["li"])


def test_the_split_is_shown_beside_what_was_asked(page):
    assert {"asked 70 %", "asked 30 %"} <= set(page.texts["span"])


def test_what_was_split_is_named(page):
    by_request = page_of(*predictions(0, keys=400, split_by="request"), Terms(share=50, split_by="request"))
    assert {"Keys", "Share of keys"} <= set(page.texts["th"])
    assert {"Requests", "Share of requests"} <= set(by_request.texts["th"])


@pytest.mark.parametrize(
    ("keys", "terms", "sections"),
    [
        (60, Terms(), ["What was compared", "Figures", "Scores", "Data"]),
        (60, Terms(label_delay_days=100), ["What was compared", "Data"]),
    ],
)
def test_a_report_of_little_data_says_so_and_draws_what_there_is(keys, terms, sections):
    page = page_of(*predictions(0, keys=keys), terms)
    assert page.texts["h2"] == sections
    assert "It is not settled yet whether version 2 is better than version 1." in page.texts["p"]


def test_a_report_of_an_experiment_in_doubt_says_so_before_all_figures():
    page = page_of(*predictions(0, keys=1500, quality=(1.0, 2.2), share=0.4), Terms(share=50))
    assert "The experiment itself is in doubt, so nothing is decided." in page.texts["p"]
    assert any("instead of 50 %" in reason for reason in page.texts["li"])
