"""An evaluation as a page for people: the decision with its reasons, the figures with their intervals, and the curves."""

import math

import numpy as np
from markupsafe import Markup

from modelyard.components.evaluation import gates
from modelyard.components.evaluation.bootstrap import Estimate
from modelyard.components.evaluation.evaluating import Evaluation, Judged
from modelyard.components.evaluation.metrics import (
    ECE_BINS,
    METRICS,
    calibration_bins,
    cheapest_threshold,
    costs,
    curve,
)
from modelyard.components.evaluation.presentation import (
    SLICE_METRICS,
    TONES,
    estimate_cell,
    flat,
    gates_table,
    metric_title,
    moment,
)
from modelyard.components.plots.charts import (
    Line,
    Span,
    forest_chart,
    line_chart,
    reliability_chart,
    share_histogram,
)
from modelyard.components.plots.page import Banner, Cell, Facts, Figures, Notes, Section, Table, render_page

_MOST_REASONS = 6
_HEADLINES = {
    gates.PASS: "The model may go on: every gate that decides has passed.",
    gates.FAIL: "The model must not go on: at least one gate has failed.",
    gates.INCONCLUSIVE: "The test set does not settle whether the model may go on, so it does not.",
}


def render_report(evaluation: Evaluation) -> str:
    """The evaluation as one self-contained HTML page."""
    data = evaluation.data
    banner = Banner(
        evaluation.decision, TONES[evaluation.decision], _HEADLINES[evaluation.decision], _decisive_reasons(evaluation)
    )
    sections = [Section("What was judged", [_facts(evaluation), *_notes(evaluation)])]
    if evaluation.gates:
        sections.append(Section("Gates", [gates_table(evaluation.gates)]))
    sections.append(
        Section(
            "Figures",
            [_metrics_table(evaluation), *_difference_charts(evaluation)],
            intro=f"{100 * evaluation.settings.confidence:g} % intervals in brackets."
            + (" Differences are the model minus the champion, both resampled together." if evaluation.champion else ""),
        )
    )
    if data["positives"] and data["positives"] < data["rows"]:
        sections.append(Section("Curves", [_curves(evaluation)]))
    if evaluation.slices:
        sections.append(_slices_section(evaluation))
    sections.append(Section("Where the data came from", [_lineage(evaluation)]))
    subtitle = f"{data['rows']:,} test rows, {data['positives']:,} positives"
    return render_page(evaluation.model_name, sections, kicker="Model evaluation", subtitle=subtitle, banner=banner)


def _decisive_reasons(evaluation: Evaluation) -> list[str]:
    """The reasons for the decision; the table of gates has the rest."""
    decisive = sum(gate.decides and gate.decision == evaluation.decision for gate in evaluation.gates)
    shown = min(max(decisive, 1), _MOST_REASONS)
    left = decisive - shown
    return [*evaluation.reasons[:shown], *([f"and {left} more, below"] if left > 0 else [])]


def _models(evaluation: Evaluation) -> list[tuple[str, str, Judged]]:
    """Label, colour and part of each model."""
    models = [("Model", "first", evaluation.challenger)]
    if evaluation.champion is not None and evaluation.champion_id is not None:
        models.append((f"Champion (version {evaluation.champion_id[0]})", "second", evaluation.champion))
    return models


def _facts(evaluation: Evaluation) -> Facts:
    data, settings = evaluation.data, evaluation.settings
    champion = "none yet: judged as a first model"
    if evaluation.champion_id is not None:
        champion = f"version {evaluation.champion_id[0]}, {_short(evaluation.champion_id[1])}"
    return Facts(
        [
            ("Model digest", _short(evaluation.digest)),
            ("Champion", champion),
            ("Test rows", f"{data['rows']:,}"),
            ("Positives", f"{data['positives']:,} ({_share(data['positives'], data['rows'])})"),
            ("From", moment(data["start"])),
            ("To", moment(data["end"])),
            ("Resampled by", settings.cluster_by or "row"),
            ("Draws", f"{settings.draws:,}, seed {settings.seed}"),
            ("Threshold of the model", f"{evaluation.challenger.scores.threshold:.4g}"),
            (
                "Cost of an error",
                f"{settings.terms.false_positive_cost:g} false alert, {settings.terms.false_negative_cost:g} missed positive",
            ),
        ]
    )


def _notes(evaluation: Evaluation) -> list[Notes]:
    notes = [Notes(evaluation.notes, "warn")] if evaluation.notes else []
    skipped = [f"{METRICS[name].title} is left out: {reason}." for name, reason in evaluation.skipped.items()]
    return notes + ([Notes(skipped)] if skipped else [])


def _metrics_table(evaluation: Evaluation) -> Table:
    compared = evaluation.champion is not None
    columns = ["Metric", "Model", *(["Champion", "Difference"] if compared else [])]
    rows = []
    for name, found in evaluation.challenger.metrics.items():
        metric = METRICS[name]
        row = [Cell(metric_title(name, evaluation.settings.terms), metric.meaning), estimate_cell(found)]
        if evaluation.champion is not None:
            difference = evaluation.difference[name]
            row += [
                estimate_cell(evaluation.champion.metrics[name]),
                estimate_cell(difference, signed=True, tone=_tone(name, difference)),
            ]
        rows.append(row)
    return Table(columns, rows, frozenset(columns[1:]))


def _tone(name: str, difference: Estimate) -> str:
    """Green or red only where the interval excludes 0."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return ""
    return "good" if (difference.low > 0) == METRICS[name].higher_is_better else "bad"


def _difference_charts(evaluation: Evaluation) -> list[Figures]:
    """The paired interval behind each gate on a difference, with its margin."""
    figures = []
    results = [result for result in evaluation.gates if result.kind == "difference"]
    for position, (gate, result) in enumerate(zip(gates.parse_gates(evaluation.settings.gates).difference, results)):
        if result.value is None or result.low is None or result.high is None:
            continue
        better = METRICS[gate.metric].higher_is_better
        sign = 1 if better == (gate.rule == "superiority") else -1
        span = Span("Model minus champion", result.value, result.low, result.high, TONES[result.decision])
        drawing = forest_chart(
            [span],
            x_label=f"Difference in {METRICS[gate.metric].title}",
            name=f"difference {position} {gate.metric}",
            margin=sign * gate.margin,
            zero=True,
        )
        side = "right" if better else "left"
        figures.append((f"{METRICS[gate.metric].title}, paired", drawing, f"Better lies to the {side}."))
    return [Figures(figures)] if figures else []


def _curves(evaluation: Evaluation) -> Figures:
    models = _models(evaluation)
    labels, terms = evaluation.labels, evaluation.settings.terms
    prevalence = labels.mean()
    pr, roc, cost, reliability = [], [], [], []
    for label, colour, part in models:
        points = curve(labels, part.scores.values)
        at = int(np.searchsorted(-points.thresholds, -part.scores.threshold, side="right")) - 1
        false_rate = points.false_positives / points.negatives
        decided = at >= 0
        pr.append(
            Line(
                label,
                np.append(0.0, points.recall),
                np.append(points.precision[0], points.precision),
                colour,
                mark=(points.recall[at], points.precision[at]) if decided else None,
            )
        )
        roc.append(
            Line(
                label,
                np.append(0.0, false_rate),
                np.append(0.0, points.recall),
                colour,
                mark=(false_rate[at], points.recall[at]) if decided else None,
            )
        )
        at_cost = costs(points, terms)
        cost.append(
            Line(
                label,
                points.thresholds,
                at_cost,
                colour,
                mark=(part.scores.threshold, at_cost[at]) if decided else None,
            )
        )
        reliability.append((label, colour, *_reliability(labels, part.scores.values)))
    cheapest, _ = cheapest_threshold(curve(labels, evaluation.challenger.scores.values), terms)
    own = evaluation.challenger.scores.values
    never = terms.false_negative_cost * prevalence
    top = max(never, *(line.mark[1] if line.mark else 0.0 for line in cost)) * 1.6 or 1.0
    silent = Line("No alerts at all", np.array([0.0, 1.0]), np.array([never, never]), "muted", dashed=True)
    advice = "alerting on nothing would" if math.isinf(cheapest) else f"a threshold of {cheapest:.4g} would"
    figures: list[tuple[str, Markup, str]] = [
        (
            "Precision and recall",
            line_chart(pr, x_label="Recall", y_label="Precision", name="precision recall"),
            f"Dots mark the models' own thresholds. A random order would stay at {prevalence:.4g}.",
        ),
        (
            "ROC",
            line_chart(roc, x_label="False positive rate", y_label="True positive rate", name="roc", diagonal=True),
            "The dotted line is a random order.",
        ),
        (
            "Calibration",
            reliability_chart(reliability, name="calibration"),
            "Share of positives among rows of like score, with 95 % Wilson intervals; the dotted line is perfect.",
        ),
        (
            "Cost by threshold",
            line_chart([*cost, silent], x_label="Threshold", y_label="Cost per row", name="cost", y_range=(0.0, top)),
            f"Dots mark the models' own thresholds. On these rows {advice} cost least.",
        ),
        (
            "Scores of the model",
            share_histogram(
                [("Negatives", "muted", own[~labels]), ("Positives", "bad", own[labels])],
                x_label="Score",
                name="scores of the model",
            ),
            "Share of each class by score, on a logarithmic scale.",
        ),
    ]
    if evaluation.champion is not None:
        other = evaluation.champion.scores.values
        drawing = share_histogram(
            [("Negatives", "muted", other[~labels]), ("Positives", "bad", other[labels])],
            x_label="Score",
            name="scores of the champion",
        )
        figures.append(("Scores of the champion", drawing, "The same for the champion."))
    return Figures(figures)


def _reliability(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, frequency and its Wilson interval in each bin that has rows."""
    cells = calibration_bins(scores)
    rows = np.bincount(cells, minlength=ECE_BINS)
    held = rows > 0
    count = rows[held].astype(np.float64)
    mean = np.bincount(cells, scores, ECE_BINS)[held] / count
    share = np.bincount(cells, labels, ECE_BINS)[held] / count
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return mean, share, np.column_stack([centre - half, centre + half])


def _slices_section(evaluation: Evaluation) -> Section:
    compared = evaluation.champion is not None
    numeric = ["Rows", "Positives", *(METRICS[name].title for name in SLICE_METRICS)]
    columns = ["Slice", *numeric, *(["PR-AUC difference"] if compared else [])]
    rows = []
    for part in evaluation.slices:
        cells: list[Cell | str] = [
            Cell(part.value, part.column),
            f"{part.support.rows:,}",
            f"{part.support.positives:,}",
        ]
        if part.metrics:
            cells += [estimate_cell(part.metrics[name]) for name in SLICE_METRICS]
            if compared:
                found = part.difference["pr_auc"]
                cells.append(estimate_cell(found, signed=True, tone=_tone("pr_auc", found)))
        else:
            cells += [Cell("too few", tone="muted")] + [Cell("–", tone="muted")] * (len(columns) - 4)
        rows.append(cells)
    figures = _slice_charts(evaluation)
    return Section(
        "Slices",
        [Table(columns, rows, frozenset(columns[1:])), *([Figures(figures)] if figures else [])],
        intro="Figures of parts of the test set. Parts with too few positives or negatives are left without.",
    )


def _slice_charts(evaluation: Evaluation) -> list[tuple[str, Markup, str]]:
    figures = []
    for column in dict.fromkeys(part.column for part in evaluation.slices):
        spans = [
            Span(part.value, found.value, found.low, found.high)
            for part in evaluation.slices
            if part.column == column and (found := part.metrics.get("pr_auc")) is not None
            if found.value is not None and found.low is not None and found.high is not None
        ]
        if spans:
            drawing = forest_chart(spans, x_label="PR-AUC", name=f"slices by {column}")
            figures.append((f"PR-AUC by {column}", drawing, ""))
    return figures


def _lineage(evaluation: Evaluation) -> Facts:
    items = [("Test set digest", evaluation.data["digest"]), ("Model digest", evaluation.digest)]
    for name, value in flat(evaluation.data["lineage"]):
        items.append((name, value))
    return Facts(items)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "–"


def _short(digest: str) -> str:
    return digest[:19] + "…" if len(digest) > 20 else digest
