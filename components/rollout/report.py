"""A rollout as a page for people: the decision and its reasons, both versions over time, and the evidence with its boundary."""

import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from modelyard.components.plots.charts import Line, line_chart
from modelyard.components.plots.page import Banner, Cell, Facts, Figures, Notes, Section, Table, render_page
from modelyard.components.rollout.evidence import FAILED, LATENCY, REJECTED, SCORES, TITLES, Evidence, without_data
from modelyard.components.rollout.increments import Increment
from modelyard.components.rollout.latency import TURN_SECONDS, quantile
from modelyard.components.rollout.plan import Limits
from modelyard.components.rollout.record import CANARY, STABLE, Progress
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES

TIMELINE_FORMAT = 1
_TONES = {"pass": "good", "fail": "bad", "inconclusive": "warn"}
_HEADLINES = {
    "pass": "Promoted: it is the champion and has all the traffic.",
    "fail": "Rolled back: the version before has all the traffic again, and this one was sent back.",
    "inconclusive": "Rolled back: nothing was settled, so the version before has all the traffic. It may be tried again.",
}
_COLOURS = {CANARY: "first", STABLE: "second"}
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MINUTES_FROM = 300.0
_NOTHING = Cell("–", tone="muted")


def timeline_of(model_name: str, progress: Progress) -> dict[str, Any]:
    """The rollout as JSON-ready values: what was asked, what was seen at each look, what was decided."""
    tests = {}
    if evidence := _evidence(progress):
        silent = without_data(progress.total(CANARY), progress.total(STABLE))
        tests = {
            name: {
                "decision": test.decision,
                "data": name not in silent,
                "e_value": _finite(math.exp(min(test.log_e_value, 700.0))),
                "boundary": _finite(test.threshold),
                "estimate": _finite(test.estimate),
                "interval": [_finite(bound) for bound in test.interval],
            }
            for name, test in evidence.tests.items()
        }
    return {
        "format_version": TIMELINE_FORMAT,
        "model_name": model_name,
        "version": progress.version,
        "digest": progress.digest,
        "uri": progress.uri,
        "replaces": progress.replaces or None,
        "decision": progress.decision,
        "outcome": progress.outcome,
        "reasons": progress.reasons,
        "plan": progress.plan,
        "tests": tests,
        "totals": {arm: asdict(progress.total(arm)) for arm in (STABLE, CANARY)},
        "events": progress.events,
        "looks": progress.timeline,
    }


def render_report(model_name: str, progress: Progress) -> str:
    """The rollout as one self-contained HTML page."""
    banner = Banner(progress.decision, _TONES[progress.decision], _HEADLINES[progress.decision], progress.reasons)
    sections = [Section("What was rolled out", [_facts(progress)])]
    evidence = _evidence(progress)
    if evidence is not None:
        sections.append(
            Section(
                "Evidence",
                [_evidence_table(evidence, progress), *_evidence_figures(evidence, progress)],
                intro="Each test holds an e-value: 1 says nothing, its boundary decides. However often one looks, a version "
                f"within the limits reaches any boundary with a chance of at most {100 * evidence.limits.alpha:g} %, if "
                "requests are dealt out at random. Where callers send x-modelyard-key, one caller always refused weighs on one "
                "arm, and that chance is larger. The latency test also takes it that nothing but the version slows an arm for "
                f"longer than {TURN_SECONDS:g} s at a time. Where proxies count latencies in wide buckets (Knative, Istio), "
                "a request is taken for as fast as its bucket allows for the version on trial, and for as slow for the "
                "other one: the ratio reads low, and a version that is somewhat too slow may pass. A test without data says "
                "nothing, and is not counted as passed.",
            )
        )
    if progress.timeline:
        sections.append(Section("Both versions over time", [Figures(_over_time(progress))]))
        sections.append(Section("Steps", [_steps_table(progress)]))
        sections.append(Section("In all", [_totals_table(progress), *_score_figures(progress)]))
    if progress.events:
        rows = [[_moment(event["at"]), event["text"]] for event in progress.events]
        sections.append(Section("What happened", [Table(("Time", "Event"), rows)]))
    against = f"in place of version {progress.replaces['version']}" if progress.replaces else "nothing to compare with"
    return render_page(model_name, sections, kicker="Rollout", subtitle=f"Version {progress.version}, {against}", banner=banner)


def _evidence(progress: Progress) -> Evidence | None:
    """The tests as they stood at the end."""
    return Evidence(Limits(**progress.plan["limits"]), 0.0, progress.evidence) if progress.evidence else None


def _facts(progress: Progress) -> Facts:
    plan = progress.plan
    items = [
        ("Version", progress.version),
        ("Model digest", _short(progress.digest)),
        ("Kept at", progress.uri),
        ("In place of", _replaced(progress)),
        ("Began", _moment(progress.started) if progress.started else "–"),
        ("Steps", ", ".join(f"{percent} %" for percent in plan["percents"])),
        ("Each watched for", f"{plan['bake_seconds']:g} s at least, {plan['deadline_seconds']:g} s at most"),
        ("Requests of each", f"{plan['min_samples']:,} at least"),
        ("A look every", f"{plan['look_seconds']:g} s"),
        ("Shadow traffic first", f"{plan['shadow_seconds']:g} s" if plan["shadow_seconds"] else "none"),
    ]
    return Facts(items + [(name.replace("_", " ").capitalize(), f"{value:g}") for name, value in plan["limits"].items()])


def _replaced(progress: Progress) -> str:
    if not progress.replaces:
        return "none: the first version"
    return f"version {progress.replaces['version']}, {_short(progress.replaces['digest'])}"


def _evidence_table(evidence: Evidence, progress: Progress) -> Table:
    limits, canary, stable = evidence.limits, progress.total(CANARY), progress.total(STABLE)
    allowed = {
        FAILED: f"{limits.max_failure_ratio:g} times the odds",
        REJECTED: f"{limits.max_rejected_ratio:g} times the odds",
        LATENCY: f"{limits.max_latency_ratio:g} times",
        SCORES: f"{evidence.allowed_shift:.3g} apart",
    }
    seen: dict[str, Callable[[Increment], str]] = {
        FAILED: lambda arm: _share(arm.failed, arm.requests),
        REJECTED: lambda arm: _share(arm.rejected, arm.requests),
        LATENCY: lambda arm: f"p95 {_seconds(quantile(arm.latency, 0.95))}",
        SCORES: lambda arm: f"{sum(arm.scores):,} rows",
    }
    rows: list[list[Cell | str]] = []
    silent = without_data(canary, stable)
    for name, test in evidence.tests.items():
        failed = test.decision == "fail"
        if name in silent:
            verdict = Cell("no data", tone="muted", badge=True)
        else:
            verdict = Cell("against it" if failed else "nothing against it", tone="bad" if failed else "good", badge=True)
        low, high = test.interval
        rows.append(
            [
                verdict,
                TITLES[name],
                seen[name](canary),
                seen[name](stable),
                Cell(_figure(test.estimate), f"[{_figure(low)}, {_figure(high)}]"),
                allowed[name],
                Cell(f"{math.exp(min(test.log_e_value, 700.0)):.3g}", f"boundary {test.threshold:g}", "bad" if failed else ""),
            ]
        )
    columns = ("Verdict", "Test", "On trial", "In charge", "Difference", "Allowed", "e-value")
    return Table(columns, rows, frozenset(columns[2:]))


def _evidence_figures(evidence: Evidence, progress: Progress) -> list[Figures]:
    points = [point for point in progress.timeline if point["log_e"]]
    if not points:
        return []
    unit, times = _times(progress, points)
    # Before the first look every e-value is 1.
    times = np.append(0.0, times)
    figures = []
    for name, test in evidence.tests.items():
        values = np.append(0.0, [point["log_e"][name] for point in points]) / math.log(10)
        bound = math.log10(test.threshold)
        boundary = Line(f"Boundary, {test.threshold:g}", times[[0, -1]], np.array([bound, bound]), "bad", dashed=True)
        curve = Line("e-value", times, values, "first", mark=(times[-1], values[-1]))
        drawing = line_chart(
            [curve, boundary],
            x_label=unit,
            y_label="e-value, as a power of ten",
            name=f"evidence {name}",
            x_range=None,
            y_range=(min(float(values.min()), -0.5), max(bound, float(values.max())) + 0.25),
        )
        figures.append((TITLES[name], drawing, "At or above the boundary, the version is rolled back."))
    return [Figures(figures)]


def _over_time(progress: Progress) -> list[tuple[str, Markup, str]]:
    points = progress.timeline
    unit, times = _times(progress, points)
    spans = np.maximum(np.diff([progress.started, *(point["at"] for point in points)]), 1e-9)

    def so_far(what: str) -> list[Line]:
        lines = []
        for arm in (CANARY, STABLE):
            requests = np.cumsum([_requests(point[arm]) for point in points])
            if requests[-1]:
                shares = 100 * np.cumsum([point[arm][what] for point in points]) / np.maximum(requests, 1)
                lines.append(Line(_called(progress, arm), times, shares, _COLOURS[arm]))
        return lines

    def both(value: Callable[[dict[str, Any], float], float]) -> list[Line]:
        lines = []
        for arm in (CANARY, STABLE):
            values = np.array([value(point[arm], span) for point, span in zip(points, spans)])
            if np.isfinite(values).any():
                lines.append(Line(_called(progress, arm), times, values, _COLOURS[arm]))
        return lines

    def drawn(lines: list[Line], y_label: str, name: str) -> Markup:
        top = max((float(np.nanmax(line.y)) for line in lines), default=0.0)
        return line_chart(lines, x_label=unit, y_label=y_label, name=name, x_range=None, y_range=(0.0, 1.1 * top or 1.0))

    shares = [0 if point["mirror"] else point["percent"] for point in points]
    share = [Line(_called(progress, CANARY), times, np.array(shares, float), _COLOURS[CANARY], step=True)]
    if progress.replaces:
        share.append(Line(_called(progress, STABLE), times, 100.0 - np.array(shares, float), _COLOURS[STABLE], step=True))

    def latency(part: float) -> Callable[[dict[str, Any], float], float]:
        return lambda arm, span: 1000 * quantile(_buckets(arm["latency"]), part)

    return [
        ("Share of the traffic", drawn(share, "Percent", "share"), "Mirrored traffic counts as none."),
        ("Requests", drawn(both(lambda arm, span: _requests(arm) / span), "Requests a second", "requests"), ""),
        (
            "Failed requests",
            drawn(so_far("failed"), "Percent", "failed"),
            "5xx and unanswered, of all requests so far.",
        ),
        (
            "Rejected requests",
            drawn(so_far("rejected"), "Percent", "rejected"),
            "4xx, of all requests so far.",
        ),
        *(
            (f"Latency, {name}", drawn(both(latency(part)), "Milliseconds", f"latency {name}"), "")
            for name, part in _QUANTILES.items()
        ),
    ]


def _steps_table(progress: Progress) -> Table:
    rows: list[list[Cell | str]] = []
    last = progress.timeline[-1]["step"]
    for number in sorted({point["step"] for point in progress.timeline}):
        points = [point for point in progress.timeline if point["step"] == number]
        passed = number < last or progress.decision == "pass"
        kind = "a copy of " if points[0]["mirror"] else ""
        cells: list[Cell | str] = [
            Cell("passed" if passed else progress.decision, tone="good" if passed else _TONES[progress.decision], badge=True),
            f"{kind}{points[0]['percent']} %",
            f"{len(points):,}",
        ]
        for arm in (CANARY, STABLE):
            requests = sum(_requests(point[arm]) for point in points)
            failed = sum(point[arm]["failed"] for point in points)
            p95 = quantile(np.sum([_buckets(point[arm]["latency"]) for point in points], axis=0), 0.95)
            cells.append(Cell(f"{requests:,}", f"{failed:,} failed, p95 {_seconds(p95)}") if requests else _NOTHING)
        rows.append(cells)
    columns = ("Verdict", "Share", "Looks", "On trial", "In charge")
    return Table(columns, rows, frozenset(columns[2:]))


def _totals_table(progress: Progress) -> Table:
    rows: list[list[Cell | str]] = []
    for arm in (CANARY, STABLE):
        found = progress.total(arm)
        if not found.requests and arm == STABLE and not progress.replaces:
            continue
        rows.append(
            [
                Cell(_called(progress, arm), "on trial" if arm == CANARY else "in charge"),
                f"{found.requests:,}",
                Cell(f"{found.failed:,}", _share(found.failed, found.requests)),
                Cell(f"{found.rejected:,}", _share(found.rejected, found.requests)),
                *(_seconds(quantile(found.latency, part)) for part in _QUANTILES.values()),
                Cell(f"{found.flagged:,}", f"of {sum(found.scores):,} rows"),
            ]
        )
    columns = ("Version", "Requests", "Failed", "Rejected", *_QUANTILES, "Decided 1")
    return Table(columns, rows, frozenset(columns[1:]))


def _score_figures(progress: Progress) -> list[Figures | Notes]:
    lines = []
    # Buckets are half a unit of log-odds wide; the outermost hold what lies beyond.
    edges = np.log(np.array(SCORE_EDGES) / (1 - np.array(SCORE_EDGES)))
    left = np.append(edges[0] - 0.5, edges)
    for arm in (CANARY, STABLE):
        scores = np.array(progress.total(arm).scores, float)
        if scores.any():
            lines.append(Line(_called(progress, arm), left, 100 * scores / scores.sum(), _COLOURS[arm], step=True))
    if not lines:
        return [Notes(["No scores were seen."])]
    drawing = line_chart(
        lines, x_label="Score, in log-odds", y_label="Percent of rows", name="scores", x_range=None, y_range=None
    )
    return [Figures([("Scores", drawing, "0 is a probability of one half, -4 is 1.8 %, -8 is 0.03 %.")])]


def _times(progress: Progress, points: list[dict[str, Any]]) -> tuple[str, np.ndarray]:
    """The axis' label, and the time of each point on it."""
    seconds = np.array([point["at"] for point in points], float) - progress.started
    return ("Minutes", seconds / 60) if seconds[-1] > _MINUTES_FROM else ("Seconds", seconds)


def _called(progress: Progress, arm: str) -> str:
    return f"Version {progress.version}" if arm == CANARY else f"Version {progress.replaces.get('version', '')}"


def _requests(arm: dict[str, Any]) -> int:
    return int(arm["answered"] + arm["rejected"] + arm["failed"])


def _buckets(held: dict[str, int]) -> np.ndarray:
    counts = np.zeros(len(LATENCY_EDGES) + 1, int)
    for bucket, count in held.items():
        counts[int(bucket)] = count
    return counts


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "–"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"over {LATENCY_EDGES[-1]:g} s"
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(digest: str) -> str:
    return digest[:19] + "…" if len(digest) > 20 else digest
