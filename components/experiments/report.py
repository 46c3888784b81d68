"""An experiment as a page for people: the decision with its reasons, the intervals over time, the curves, and the data."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
from markupsafe import Markup

from modelyard.components.evaluation.metrics import curve
from modelyard.components.experiments.allocation import MISMATCH_ALPHA
from modelyard.components.experiments.analysis import FUTILE, GO_ON, LOSER, WINNER, Analysis, Look
from modelyard.components.experiments.confidence_sequence import Interval
from modelyard.components.experiments.estimators import ArmRows
from modelyard.components.experiments.labelled_log import BY_KEY
from modelyard.components.plots.charts import Line, Span, forest_chart, line_chart, share_histogram
from modelyard.components.plots.page import Banner, Cell, Facts, Figures, Notes, Section, Table, render_page

TONES = {WINNER: "good", LOSER: "bad", FUTILE: "warn", GO_ON: "muted"}
_VERDICTS = {WINNER: "winner", LOSER: "loser", FUTILE: "futile", GO_ON: "go on"}
_HEADLINES = {
    WINNER: "Version {b} is better than version {a}.",
    LOSER: "Version {b} is worse than version {a}.",
    FUTILE: "Version {b} does not differ enough from version {a} to go on looking.",
    GO_ON: "It is not settled yet whether version {b} is better than version {a}.",
}
_IN_DOUBT = "The experiment itself is in doubt, so nothing is decided."


def render_report(analysis: Analysis) -> str:
    """The analysis as one self-contained HTML page."""
    a, b = analysis.versions
    headline = _IN_DOUBT if analysis.in_doubt else _HEADLINES[analysis.decision].format(a=a, b=b)
    tone = "warn" if analysis.in_doubt else TONES[analysis.decision]
    banner = Banner(_VERDICTS[analysis.decision], tone, headline, analysis.reasons)
    notes = [Notes(analysis.warnings, "warn")] if analysis.warnings else []
    sections = [Section("What was compared", [_facts(analysis), *notes])]
    if analysis.looks:
        confidence = f"{100 * (1 - analysis.terms.alpha):g} %"
        sections += [
            Section(
                "Figures",
                [_figures_table(analysis, analysis.looks[-1])],
                intro=f"Differences are version {b} minus version {a}. Their intervals hold at every look, both together with "
                f"probability {confidence}, so they may be read daily and acted on at once.",
            ),
            *_over_time(analysis),
            Section("Scores", [_curves(analysis)]),
        ]
    sections.append(Section("Data", [_data_table(analysis), _quality_table(analysis)]))
    quality = analysis.log.quality
    subtitle = f"Version {b} against version {a}, {quality.matured:,} predictions with time for their labels"
    return render_page(analysis.model_name, sections, kicker="Experiment", subtitle=subtitle, banner=banner)


def _facts(analysis: Analysis) -> Facts:
    terms, (a, b) = analysis.terms, analysis.versions
    return Facts(
        [
            ("In charge", f"version {a}"),
            ("Under trial", f"version {b}"),
            ("From", f"{analysis.start:%Y-%m-%d %H:%M} UTC"),
            ("To", f"{analysis.end:%Y-%m-%d %H:%M} UTC"),
            ("Split by", terms.split_by),
            ("Days a label may take", f"{terms.label_delay_days:g}"),
            ("Cost of an error", f"{terms.false_positive_cost:g} false alert, {terms.false_negative_cost:g} missed positive"),
            ("PR-AUC that matters", f"{terms.min_pr_auc_gain:g}" if terms.min_pr_auc_gain else "any"),
            ("Cost that may be added", f"{100 * terms.max_cost_increase:g} %"),
            ("Error allowed", f"{100 * terms.alpha:g} % over all looks"),
            ("Ends at", f"{terms.max_samples:,} predictions" if terms.max_samples else "a decision"),
        ]
    )


def _figures_table(analysis: Analysis, last: Look) -> Table:
    a, b = analysis.versions
    columns = ["Figure", f"Version {a}", f"Version {b}", "Difference"]
    rows: list[list[Cell | str]] = [
        [
            Cell("PR-AUC", "average precision: the mean precision over the positives"),
            *(f"{value:.4f}" for value in last.pr_auc),
            _difference(last.pr_auc_difference, higher_is_better=True),
        ],
        [
            Cell("Cost", "mean cost of a prediction at the decisions that were answered"),
            *(f"{value:.4f}" for value in last.cost),
            _difference(last.cost_difference, higher_is_better=False),
        ],
    ]
    shift = analysis.score_shift
    if shift is not None:
        found = Cell(f"{shift.distance:.4f}", f"[{shift.low:.4f}, {shift.high:.4f}]")
        about = f"largest difference in the share of scores at or below a value, here {shift.at:.4g}; decides nothing"
        rows.append([Cell("Distance of the scores", about), "", "", found])
    return Table(columns, rows, frozenset(columns[1:]))


def _difference(found: Interval | None, higher_is_better: bool) -> Cell:
    if found is None:
        return Cell("too little data", tone="muted")
    tone = ""
    if found.low > 0 or found.high < 0:
        tone = "good" if (found.low > 0) == higher_is_better else "bad"
    return Cell(f"{found.value:+.4f}", f"[{found.low:+.4f}, {found.high:+.4f}]", tone)


def _over_time(analysis: Analysis) -> list[Section]:
    margin = analysis.terms.min_pr_auc_gain
    allowed = analysis.terms.max_cost_increase * analysis.looks[-1].cost[0]
    figures = [
        _sequence(
            analysis,
            "PR-AUC",
            lambda look: look.pr_auc_difference,
            [margin, -margin] if margin else [0.0],
            f"Wholly above 0: better. Wholly between the grey lines: no difference that matters ({margin:g})."
            if margin
            else "Wholly above 0: better.",
        ),
        _sequence(
            analysis,
            "Cost of a prediction",
            lambda look: look.cost_difference,
            [allowed],
            "Wholly below the grey line, what may be added: the cost allows it.",
        ),
    ]
    drawn = [figure for figure in figures if figure is not None]
    intro = "What was known by the predictions up to each moment."
    return [Section("Over time", [Figures(drawn)], intro=intro)] if drawn else []


def _sequence(
    analysis: Analysis, title: str, of: Callable[[Look], Interval | None], bounds: list[float], caption: str
) -> tuple[str, Markup, str] | None:
    """An interval over time, or alone where there is one look; None without any."""
    found = [(look.at, difference) for look in analysis.looks if (difference := of(look)) is not None]
    if len(found) < 2:
        if not found:
            return None
        only = found[0][1]
        span = Span("Difference", only.value, only.low, only.high)
        return (title, forest_chart([span], x_label=f"Difference in {title}", name=f"over time {title}", zero=True), caption)
    days = np.array([(at - analysis.start) / timedelta(days=1) for at, _ in found])
    value, low, high = (np.array([getattr(difference, name) for _, difference in found]) for name in ("value", "low", "high"))
    ends = days[[0, -1]]
    # The first intervals can be many times as wide as the last: they may leave the picture.
    reach = max(np.abs(value).max(), np.median(high - low), abs(high[-1]), abs(low[-1]), *map(abs, bounds)) * 1.15
    lines = [
        Line("Difference", days, value),
        Line("Interval", days, low, "second"),
        Line("", days, high, "second"),
        Line("", ends, np.zeros(2), "muted"),
        *(Line("", ends, np.full(2, bound), "muted", dashed=True) for bound in bounds if bound),
    ]
    drawing = line_chart(
        lines,
        x_label="Days since the start",
        y_label="Version {1} minus version {0}".format(*analysis.versions),
        name=f"over time {title}",
        x_range=(float(ends[0]), float(ends[1])),
        y_range=(-reach, reach),
    )
    return (title, drawing, caption)


def _curves(analysis: Analysis) -> Figures:
    names = [f"Version {version}" for version in analysis.versions]
    arms = list(zip(names, ("first", "second"), analysis.arms))
    figures = []
    if all(arm.positives for arm in analysis.arms):
        lines = [_precision_recall(name, colour, arm) for name, colour, arm in arms]
        drawing = line_chart(lines, x_label="Recall", y_label="Precision", name="precision recall")
        figures.append(("Precision and recall", drawing, "Each version on the traffic it answered. Dots mark its decisions."))
    drawing = share_histogram([(name, colour, arm.scores) for name, colour, arm in arms], x_label="Score", name="scores")
    figures.append(("Scores", drawing, "Share of the answers of each version by score, on a logarithmic scale."))
    return Figures(figures)


def _precision_recall(name: str, colour: str, arm: ArmRows) -> Line:
    points = curve(arm.labels, arm.scores)
    alerts, hits = int(arm.decisions.sum()), int((arm.decisions & arm.labels).sum())
    return Line(
        name,
        np.append(0.0, points.recall),
        np.append(points.precision[0], points.precision),
        colour,
        mark=(hits / arm.positives, hits / alerts) if alerts else None,
    )


def _data_table(analysis: Analysis) -> Table:
    unit = analysis.terms.split_by
    columns = ["Version", f"{unit.capitalize()}s", f"Share of {unit}s", "Predictions", "Without a label", "Positives", "Rate"]
    asked = analysis.allocation.asked
    rows: list[list[Cell | str]] = []
    for place, version in enumerate(analysis.versions):
        share = analysis.allocation.share if place else 100 - analysis.allocation.share
        wanted = "" if asked is None else f"asked {asked if place else 100 - asked:g} %"
        arm = analysis.arms[place]
        rows.append(
            [
                f"Version {version}",
                f"{analysis.allocation.units[place]:,}",
                Cell(f"{share:.2f} %", wanted, "bad" if analysis.allocation.mismatch else ""),
                f"{analysis.log.matured[place]:,}",
                f"{analysis.log.unlabelled[place]:,}",
                f"{arm.positives:,}",
                f"{100 * arm.positives / arm.rows:.3g} %" if arm.rows else "–",
            ]
        )
    return Table(columns, rows, frozenset(columns[1:]))


def _quality_table(analysis: Analysis) -> Table:
    found, allocation, unit = analysis.log.quality, analysis.allocation, analysis.terms.split_by
    by_key = unit == BY_KEY
    split = "not checked"
    if allocation.asked is not None:
        said = "not as asked" if allocation.mismatch else "no sign against it"
        split = f"{said}; evidence {np.exp(allocation.log_e_value):.3g}, a mismatch from {1 / MISMATCH_ALPHA:,.0f} on"
    entries: list[tuple[str, str, str, bool]] = [
        ("Split as asked", f"share of the {unit}s, tested at every {unit}", split, allocation.mismatch),
        ("Predictions", "rows of both versions in the log", f"{found.predictions:,}", False),
        ("Mirrored", "copies of requests that the other version answered; left out", f"{found.mirrored:,}", False),
        ("Logged twice", "same request id and row; the first counts", f"{found.duplicates:,}", found.duplicates > 0),
        ("Unusable", "no score or decision; left out", f"{found.unusable:,}", found.unusable > 0),
        ("Without a key", "each such request counts for itself", f"{found.without_key:,}", found.without_key > 0),
        (
            "Keys at both versions",
            "left out" if by_key else "their rows count as dependent, across the versions too",
            f"{found.crossed_keys:,} of {found.keys:,}",
            by_key and found.crossed_keys > 0,
        ),
        ("Too young", "their labels may still be on their way; left out", f"{found.immature:,}", False),
        ("Without a label", "older than the delay; left out", f"{found.unlabelled:,}", found.unlabelled > 0),
        ("Labels", "known ones in the file", f"{found.labels:,}", False),
        ("Labels of other requests", "of other times or versions", f"{found.unmatched_labels:,}", False),
        (
            "Contradicting labels",
            "0 and 1; left out",
            f"{found.conflicting_labels:,}",
            found.conflicting_labels > 0,
        ),
    ]
    rows: list[list[Cell | str]] = [
        [Cell(name, about), Cell(value, tone="warn" if warn else "")] for name, about, value, warn in entries
    ]
    return Table(["Check", "Found"], rows, frozenset(["Found"]))
