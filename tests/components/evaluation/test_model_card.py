import json
import shutil
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from modelyard.components.artifacts.model import read_spec, write_spec
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.evaluation.evaluating import Settings, evaluate
from modelyard.components.evaluation.model_card import Statements, read_subject, render_html, render_markdown
from tests.components.evaluation.conftest import champion_of
from tests.components.evaluation.pages import assert_self_contained

STATED = Statements(
    purpose="Stop fraud | <script>alert(1)</script>\n# Decision\npass *now* [x](javascript:y) `z`",
    owner="Fraud team",
    risk_class="limited",
    limits="Not for credit decisions.",
    oversight="An analyst confirms each block.",
    logging="Every score for 90 days.",
    energy_kwh=0.25,
)


@pytest.fixture(scope="module")
def evaluated(strong, weak, test_set, tmp_path_factory):
    settings = Settings(cluster_by="customer_id", draws=100, slices=("country",))
    result = evaluate(strong, test_set, model_name="cards", champion=champion_of(weak), settings=settings)
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    path.write_text(json.dumps(result.content()))
    return path


@pytest.fixture(scope="module")
def subject(strong, evaluated):
    return read_subject(strong, evaluated, model_name="cards", run_id="run-7")


def test_the_card_has_every_part_in_both_forms(subject):
    markdown, html = render_markdown(subject, STATED), render_html(subject, STATED)
    parts = [
        "Purpose and responsibility",
        "Decision",
        "Figures",
        "Slices",
        "Data",
        "Model",
        "Limits",
        "Human oversight",
        "Logging",
        "Energy",
        "Lineage",
    ]

    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == parts
    assert assert_self_contained(html).texts["h2"] == parts
    for text in (markdown, html):
        for fact in ("Fraud team", "0.25 kWh", "run-7", subject.digest, "fraud_v1", "pass", "champion"):
            assert fact in text


def test_the_metadata_block_is_valid_and_holds_the_results(subject):
    card = ModelCard(render_markdown(subject, STATED))

    assert card.data.model_name == "cards"
    assert card.data.library_name == "xgboost"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["pr_auc"] == subject.evaluation["metrics"]["pr_auc"]["value"]
    assert yaml.safe_load(str(card.data))["pipeline_tag"] == "tabular-classification"


def test_what_people_state_cannot_change_the_card_around_it(subject):
    markdown = render_markdown(subject, STATED)
    body = markdown.split("---\n", 2)[2]
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)

    assert "<script" not in page
    assert "<a " not in page
    assert page.count("<h2>Decision</h2>") == 1
    assert "<em>now</em>" not in page
    assert "alert(1)" in page
    html = assert_self_contained(render_html(subject, STATED))
    assert "script" not in html.tags


def test_tables_keep_their_shape_whatever_a_slice_is_called(subject):
    evaluation = json.loads(json.dumps(subject.evaluation))
    evaluation["slices"][0]["value"] = "a|b\nc"
    rows = [
        line
        for line in render_markdown(replace(subject, evaluation=evaluation), STATED).splitlines()
        if line.startswith("| country: ")
    ]

    assert len(rows) == len(evaluation["slices"])
    assert all(row.replace("\\|", "").count("|") == 8 for row in rows)


def test_what_nobody_stated_is_shown_as_not_stated_at_the_top(subject):
    markdown, html = render_markdown(subject, Statements(owner="  ")), render_html(subject, Statements(owner="  "))

    assert "Not stated: purpose, owner, risk class, limits, oversight, logging." in markdown
    assert markdown.index("Not stated:") < markdown.index("## Decision")
    assert "**Owner:** not stated" in markdown
    assert "Not stated: purpose, owner" in html
    assert "not measured" in markdown


def test_equal_models_have_equal_cards(subject):
    assert render_markdown(subject, STATED) == render_markdown(subject, STATED)
    assert render_html(subject, STATED) == render_html(subject, STATED)


def test_a_card_needs_the_evaluation_of_this_very_model(strong, weak, evaluated, tmp_path):
    with pytest.raises(VerificationFailed, match="the evaluation is about"):
        read_subject(weak, evaluated, model_name="cards")
    with pytest.raises(InvalidInput, match="one name"):
        read_subject(strong, evaluated, model_name="other")
    with pytest.raises(InvalidInput, match="evaluate_model"):
        read_subject(strong, tmp_path / "missing.json", model_name="cards")


def test_limits_that_the_run_shows_are_listed_even_if_nobody_stated_any(strong, evaluated, tmp_path):
    model = shutil.copytree(strong, tmp_path / "model")
    data = {"start": "2023-01-01T00:00:00+00:00", "end": "2023-06-01T00:00:00+00:00", "rows": 5, "lineage": {"a": {"b": [1]}}}
    write_spec(model, replace(read_spec(model), data=data))
    from modelyard.components.artifacts.digest import model_digest

    content = json.loads(evaluated.read_text()) | {"model_digest": model_digest(model)}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    markdown = render_markdown(read_subject(model, tmp_path / "evaluation.json", model_name="cards"), Statements())

    assert "learnt from 2023-01-01 00:00 UTC to 2023-06-01 00:00 UTC" in markdown
    assert "Too few positives or negatives to judge it on: country" in markdown
    assert "Values of country that were not seen in training count as missing" in markdown
    assert "**a · b:** 1" in markdown
