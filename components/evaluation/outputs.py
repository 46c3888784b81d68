"""What an evaluation leaves behind: its files, and the figures that the KFP UI draws."""

import json
import math
import os

import numpy as np

from modelyard.components.evaluation.evaluating import Evaluation
from modelyard.components.evaluation.metrics import curve, decisions
from modelyard.components.evaluation.report import render_report
from modelyard.components.plots.charts import thin
from modelyard.components.storage.files import write_text

ROC_POINTS = 200


def write_outputs(result: Evaluation, *, report: str | os.PathLike[str], evaluation: str | os.PathLike[str]) -> str:
    """Writes the HTML report and ``evaluation.json``, each whole or not at all; returns the report."""
    page = render_report(result)
    write_text(report, page)
    write_text(evaluation, json.dumps(result.content(), indent=1, allow_nan=False) + "\n")
    return page


def figures(result: Evaluation) -> dict[str, float]:
    """Finite figures by name: the metrics, ``<metric>_difference`` to the champion, rows, positives and the threshold."""
    values: dict[str, float | None] = {name: found.value for name, found in result.challenger.metrics.items()}
    values |= {f"{name}_difference": found.value for name, found in result.difference.items()}
    values |= {
        "rows": result.data["rows"],
        "positives": result.data["positives"],
        "threshold": result.challenger.scores.threshold,
    }
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def confusion_matrix(result: Evaluation) -> list[list[int]]:
    """Counts at the threshold of the model: rows are the labels, columns the decisions, negatives first."""
    scores = result.challenger.scores
    tp, fp, fn, tn = decisions(result.labels, scores.values, scores.threshold)
    return [[int(tn), int(fp)], [int(fn), int(tp)]]


def roc_points(result: Evaluation) -> tuple[list[float], list[float], list[float]] | None:
    """False positive rates, true positive rates and thresholds, at most ``ROC_POINTS``; None with one class only."""
    points = curve(result.labels, result.challenger.scores.values)
    if not (points.positives and points.negatives):
        return None
    false_rate = np.append(0.0, points.false_positives / points.negatives)
    true_rate = np.append(0.0, points.recall)
    # The UI takes finite numbers only; no score is above 1, so nothing is an alert there.
    thresholds = np.append(np.nextafter(1.0, 2.0), points.thresholds)
    kept = thin(false_rate, true_rate, ROC_POINTS)
    return false_rate[kept].tolist(), true_rate[kept].tolist(), thresholds[kept].tolist()
