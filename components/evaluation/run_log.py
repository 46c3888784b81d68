"""Adds an evaluation to its MLflow run: figures, decision and report."""

from typing import Any

_LONGEST_TAG = 5000


def log_evaluation(run_id: str, content: dict[str, Any], report: str) -> None:
    """Adds metrics (``test_<name>``), tags and files to a run; calling it again replaces them.

    Args:
        run_id: the release's run; empty to do nothing.
        content: what ``evaluation.json`` holds.
        report: the HTML page.
    """
    if not run_id:
        return
    from modelyard.components.tracking.connection import client, reachable

    tracking = client()
    from mlflow.entities import Metric, RunTag

    figures = {f"test_{name}": found["value"] for name, found in content["metrics"].items()}
    for name, found in (content["champion"] or {}).get("difference", {}).items():
        figures[f"test_{name}_difference"] = found["value"]
    reasons = "; ".join(content["reasons"])
    with reachable():
        tracking.log_batch(
            run_id,
            metrics=[Metric(name, value, 0, 0) for name, value in figures.items() if value is not None],
            tags=[RunTag("modelyard.decision", content["decision"]), RunTag("modelyard.reasons", reasons[:_LONGEST_TAG])],
        )
        tracking.log_text(run_id, report, "evaluation/report.html")
        tracking.log_dict(run_id, content, "evaluation/evaluation.json")


def log_card(run_id: str, files: dict[str, str]) -> None:
    """Adds the card's files to a run, under ``card/``; nothing without a run."""
    if not run_id:
        return
    from modelyard.components.tracking.connection import client, reachable

    tracking = client()
    with reachable():
        for name, text in files.items():
            tracking.log_text(run_id, text, f"card/{name}")
