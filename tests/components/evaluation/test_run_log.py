import pytest

from modelyard.components.evaluation.run_log import log_card, log_evaluation

CONTENT = {
    "decision": "fail",
    "reasons": ["pr_auc at least 0.3: it is 0.2", "x" * 9000],
    "metrics": {"pr_auc": {"value": 0.2, "low": 0.1, "high": 0.3}, "ece": {"value": None, "low": None, "high": None}},
    "champion": {"difference": {"pr_auc": {"value": -0.1, "low": None, "high": None}}},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from modelyard.components.tracking import client

    tracking = client()
    experiment = tracking.create_experiment("cards", artifact_location=str(tmp_path / "artifacts"))
    return tracking, tracking.create_run(experiment).info.run_id, tmp_path / "artifacts"


def test_figures_decision_and_report_reach_the_run_and_a_rerun_replaces_them(run):
    tracking, run_id, artifacts = run
    for report in ("<p>old</p>", "<p>new</p>"):
        log_evaluation(run_id, CONTENT, report)
    log_card(run_id, {"model_card.md": "# cards"})

    found = tracking.get_run(run_id)
    assert found.data.metrics == {"test_pr_auc": 0.2, "test_pr_auc_difference": -0.1}
    assert found.data.tags["modelyard.decision"] == "fail"
    assert len(found.data.tags["modelyard.reasons"]) == 5000
    folder = artifacts / run_id / "artifacts"
    assert (folder / "evaluation" / "report.html").read_text() == "<p>new</p>"
    assert (folder / "card" / "model_card.md").read_text() == "# cards"


def test_without_a_run_nothing_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    log_evaluation("", CONTENT, "<p></p>")
    log_card("", {})

    assert not (tmp_path / "home").exists()
