"""Judges a model on test rows, beside the champion, and says pass, fail or inconclusive.

Both models answer the same rows, are measured on the same terms and resampled with the same draws (``bootstrap``); the gates
(``gates``) look at the figures and at the intervals of their differences. Nothing here writes a file or knows of pipelines;
``report`` and ``run_log`` show the result.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.components.artifacts.dataset import DatasetInfo, read_dataset
from modelyard.components.artifacts.digest import ATTESTATIONS, file_digest, model_digest
from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.artifacts.scoring import Scorer, load_scorer
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.evaluation.bootstrap import MIN_CLUSTERS, Estimate, Rows, Scores, estimates
from modelyard.components.evaluation.gates import GateResult, Gates, SliceResult, Support, apply_gates, decide, parse_gates
from modelyard.components.evaluation.metrics import Terms, cheapest_threshold, curve
from modelyard.components.evaluation.slices import cut
from modelyard.components.registry.champion import Champion

FORMAT_VERSION = 1
_LATENCY_ROUNDS = 200


@dataclass(frozen=True)
class Settings:
    """How to judge.

    Attributes:
        gates: see ``gates``; empty for the defaults.
        slices: columns to cut the test set by.
        cluster_by: column whose values are resampled whole, such as the customer; empty to resample rows.
        terms: what the metrics are measured on.
        draws: resamples of the bootstrap.
        seed: equal seeds give equal intervals.
        confidence: probability that an interval is to hold the truth, in (0, 1).
    """

    gates: Mapping[str, Any] = field(default_factory=dict)
    slices: Sequence[str] = ()
    cluster_by: str = ""
    terms: Terms = field(default_factory=Terms)
    draws: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Judged:
    """One model's part: its answers, its figures, and for a champion where it comes from."""

    spec: ModelSpec
    scores: Scores
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known after judging.

    Attributes:
        model_name: the registered model.
        digest: the challenger's model digest.
        decision: ``pass``, ``fail`` or ``inconclusive``.
        reasons: one sentence for each gate, the decisive ones first.
        gates: what each gate said.
        challenger: the model judged.
        champion: the champion's part, or None where there is none or it cannot be compared.
        champion_id: version and digest of the champion, or None where there is none.
        difference: challenger minus champion, by metric.
        slices: figures of each slice.
        labels: bool, shape (rows,).
        data: digest, rows, positives, time span and lineage of the test set.
        skipped: metrics that do not apply, with the reason.
        notes: remarks on the comparison that a reader must know.
        settings: how it was judged.
    """

    model_name: str
    digest: str
    decision: str
    reasons: list[str]
    gates: list[GateResult]
    challenger: Judged
    champion: Judged | None
    champion_id: tuple[str, str] | None
    difference: Mapping[str, Estimate]
    slices: list[SliceResult]
    labels: np.ndarray
    data: dict[str, Any]
    skipped: dict[str, str]
    notes: list[str]
    settings: Settings

    def content(self) -> dict[str, Any]:
        """What ``evaluation.json`` holds (JSON-ready, no clock)."""
        champion = None
        if self.champion_id is not None:
            version, digest = self.champion_id
            metrics = {} if self.champion is None else _plain(self.champion.metrics)
            champion = {"version": version, "digest": digest, "metrics": metrics, "difference": _plain(self.difference)}
        settings = self.settings
        best, cost = cheapest_threshold(curve(self.labels, self.challenger.scores.values), settings.terms)
        return {
            "format_version": FORMAT_VERSION,
            "model_name": self.model_name,
            "model_digest": self.digest,
            "decision": self.decision,
            "reasons": self.reasons,
            "gates": [asdict(gate) for gate in self.gates],
            "metrics": _plain(self.challenger.metrics),
            "champion": champion,
            "slices": [
                {
                    "column": part.column,
                    "value": part.value,
                    "rows": part.support.rows,
                    "positives": part.support.positives,
                    "metrics": _plain(part.metrics),
                    "difference": _plain(part.difference),
                }
                for part in self.slices
            ],
            "threshold": self.challenger.scores.threshold,
            "cheapest": {"threshold": _finite(best), "expected_cost": _finite(cost)},
            "terms": asdict(settings.terms),
            "data": self.data,
            "skipped": self.skipped,
            "notes": self.notes,
            "bootstrap": {
                "draws": settings.draws,
                "cluster_by": settings.cluster_by,
                "confidence": settings.confidence,
                "seed": settings.seed,
            },
        }


def evaluate(
    model: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    model_name: str,
    expected_digest: str = "",
    champion: Champion | None = None,
    settings: Settings | None = None,
) -> Evaluation:
    """Judges a model.

    Args:
        model: directory of the challenger, not signed yet.
        test: dataset that neither model has seen.
        model_name: name it is to be registered under.
        expected_digest: digest that training reported; empty to skip the check.
        champion: the model in charge, already verified; None if there is none.
        settings: how to judge; None for the defaults.

    Returns:
        The evaluation. A champion that cannot answer these rows (it needs a feature they lack, or predicts another label) makes
        the comparison, and so the decision, inconclusive; the challenger's own figures are there all the same.

    Raises:
        InvalidInput: the challenger cannot answer the rows, or a setting or the dataset is unusable.
        VerificationFailed: the model is not the one that training reported, or answers otherwise than it must.
    """
    settings = settings or Settings()
    gates = parse_gates(settings.gates)
    _check(settings)
    digest = model_digest(model)
    if expected_digest and digest != expected_digest:
        raise VerificationFailed(f"{model} has the digest {digest}, but training reported {expected_digest}: it was altered")
    scorer = load_scorer(model)
    frame, info = read_dataset(test)
    labels = _labels(frame, info, scorer.spec)
    rows, skipped = _rows(frame, info, labels, settings.cluster_by)
    answers = [_answer(scorer, frame)]
    specs = [scorer.spec]
    incomparable = ""
    if champion is not None:
        incomparable = _add_champion(champion, scorer.spec, frame, answers, specs)
    measured, difference = estimates(
        rows, answers, settings.terms, draws=settings.draws, seed=settings.seed, confidence=settings.confidence
    )
    slices = _slices(frame, rows, answers, gates, settings)
    results = apply_gates(
        gates,
        Support(len(labels), int(labels.sum())),
        measured[0],
        champion=champion is not None,
        difference=difference,
        incomparable=incomparable,
        slices=slices,
        costs_of_scoring=_costs_of_scoring(gates, Path(model), scorer, frame),
    )
    decision, reasons = decide(results)
    judged = [Judged(spec, scores, metrics) for spec, scores, metrics in zip(specs, answers, measured)]
    data = _describe(test, frame, info, labels)
    return Evaluation(
        model_name=model_name,
        digest=digest,
        decision=decision,
        reasons=reasons,
        gates=results,
        challenger=judged[0],
        champion=judged[1] if len(judged) > 1 else None,
        champion_id=None if champion is None else (champion.version, champion.digest),
        difference=difference,
        slices=slices,
        labels=labels,
        data=data,
        skipped=skipped,
        notes=_notes(specs, data, rows, incomparable),
        settings=settings,
    )


def _check(settings: Settings) -> None:
    terms = settings.terms
    if not 0 < terms.precision <= 1:
        raise InvalidInput("recall_at_precision", terms.precision, "give a precision above 0 and at most 1")
    if terms.cards_per_day < 1:
        raise InvalidInput("cards_per_day", terms.cards_per_day, "give at least 1")
    for name in ("false_positive_cost", "false_negative_cost"):
        value = getattr(terms, name)
        if not (np.isfinite(value) and value >= 0):
            raise InvalidInput(name, value, "give a finite cost of at least 0")
    if settings.draws < 100:
        raise InvalidInput("draws", settings.draws, "give at least 100; fewer cannot show the ends of an interval")
    if not 0.5 <= settings.confidence < 1:
        raise InvalidInput("confidence", settings.confidence, "give a probability of at least 0.5 and below 1")
    if settings.seed < 0:
        raise InvalidInput("seed", settings.seed, "give a whole number of at least 0")


def _labels(frame: pl.DataFrame, info: DatasetInfo, spec: ModelSpec) -> np.ndarray:
    label = info.roles.label
    if label != spec.label:
        raise InvalidInput("label", label, f"the test set is labelled with it, but the model predicts {spec.label!r}")
    column = frame.get_column(label)
    if column.dtype != pl.Boolean and not column.dtype.is_numeric():
        raise InvalidInput(label, str(column.dtype), "labels must be 0 or 1")
    values = column.cast(pl.Float64)
    wrong = values.filter(~values.is_in([0.0, 1.0]).fill_null(False))
    if len(wrong):
        raise InvalidInput(label, wrong[0], "labels of the test set must be 0 or 1; leave out rows whose label is not known")
    return values.to_numpy() == 1


def _rows(frame: pl.DataFrame, info: DatasetInfo, labels: np.ndarray, cluster_by: str) -> tuple[Rows, dict[str, str]]:
    """The rows with their clusters and days, and which metrics do not apply."""
    if not cluster_by:
        reason = "it needs cluster_by, the column of the cards or customers to check"
        return Rows(labels, np.arange(len(labels))), {"card_precision": reason}
    if cluster_by not in frame.columns:
        raise InvalidInput(
            "cluster_by",
            cluster_by,
            f"the test set lacks it; it has {', '.join(frame.columns)}. "
            "Name a column of the entity rows in fetch_features' kept_columns to have it here",
        )
    codes = frame.get_column(cluster_by).rank("dense").cast(pl.Int64).to_numpy().astype(np.float64) - 1
    # Rows without a customer are nobody's: each is a cluster of its own.
    unknown = np.isnan(codes)
    codes[unknown] = np.arange(unknown.sum()) + (np.nanmax(codes) + 1 if not unknown.all() else 0)
    times = frame.get_column(info.roles.timestamp)
    if not times.dtype.is_temporal() or times.null_count():
        reason = f"it needs the day of every row, which {info.roles.timestamp} does not say"
        return Rows(labels, codes.astype(np.int64)), {"card_precision": reason}
    days = times.cast(pl.Date).to_physical().to_numpy()
    return Rows(labels, codes.astype(np.int64), days), {}


def _answer(scorer: Scorer, frame: pl.DataFrame) -> Scores:
    scores = scorer.score(frame) if frame.height else np.empty(0)
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise VerificationFailed("the model gives scores that are no probabilities (outside 0 to 1, or not a number)")
    return Scores(scores, scorer.spec.threshold)


def _add_champion(
    champion: Champion, challenger: ModelSpec, frame: pl.DataFrame, answers: list[Scores], specs: list[ModelSpec]
) -> str:
    """Adds the champion's answers; returns why it cannot be compared, or nothing."""
    scorer = load_scorer(champion.directory)
    if scorer.spec.label != challenger.label:
        return f"champion {champion.version} predicts {scorer.spec.label}, not {challenger.label}"
    missing = [name for name in scorer.spec.feature_names if name not in frame.columns]
    if missing:
        return (
            f"champion {champion.version} needs {', '.join(missing)}, which the test set lacks; "
            f"fetch features that serve both models, or release under another name"
        )
    answers.append(_answer(scorer, frame))
    specs.append(scorer.spec)
    return ""


def _slices(frame: pl.DataFrame, rows: Rows, answers: Sequence[Scores], gates: Gates, settings: Settings) -> list[SliceResult]:
    results = []
    for part in cut(frame, list(settings.slices)):
        subset = rows.subset(part.mask)
        support = Support(len(subset.labels), int(subset.labels.sum()))
        own: dict[str, Estimate] = {}
        difference: dict[str, Estimate] = {}
        if not support.too_few(gates.min_positives):
            inside = [Scores(scores.values[part.mask], scores.threshold) for scores in answers]
            measured, difference = estimates(
                subset, inside, settings.terms, draws=settings.draws, seed=settings.seed, confidence=settings.confidence
            )
            own = measured[0]
        results.append(SliceResult(part.column, part.value, support, own, difference))
    return results


def _costs_of_scoring(gates: Gates, model: Path, scorer: Scorer, frame: pl.DataFrame) -> dict[str, float]:
    """Size and latency, measured only where a gate asks: a time is never the same twice."""
    costs: dict[str, float] = {}
    if "model_bytes" in gates.metrics:
        files = [path for path in model.rglob("*") if path.is_file()]
        costs["model_bytes"] = float(sum(p.stat().st_size for p in files if p.relative_to(model).parts[0] not in ATTESTATIONS))
    if "latency_ms" in gates.metrics and frame.height:
        matrix = scorer.spec.encode(frame.head(_LATENCY_ROUNDS))
        seconds = []
        for position in range(_LATENCY_ROUNDS):
            row = matrix[position % len(matrix)][None, :]
            start = time.perf_counter()
            scorer.score_matrix(row)
            seconds.append(time.perf_counter() - start)
        costs["latency_ms"] = 1000 * float(np.median(seconds))
    return costs


def _describe(path: str | os.PathLike[str], frame: pl.DataFrame, info: DatasetInfo, labels: np.ndarray) -> dict[str, Any]:
    times = frame.get_column(info.roles.timestamp)
    start, end = times.min(), times.max()
    return {
        "digest": file_digest(path),
        "rows": frame.height,
        "positives": int(labels.sum()),
        "start": None if start is None else _time(start),
        "end": None if end is None else _time(end),
        "lineage": info.lineage,
    }


def _time(moment: Any) -> str:
    return str(moment.isoformat()) if hasattr(moment, "isoformat") else str(moment)


def _notes(specs: Sequence[ModelSpec], data: dict[str, Any], rows: Rows, incomparable: str) -> list[str]:
    notes = []
    for who, spec in zip(("The model", "The champion"), specs):
        ends = [facts.get("end") for facts in (spec.data, spec.data.get("validation", {}))]
        end = max((str(each) for each in ends if each), default="")
        if end and data["start"] and end[:19] >= data["start"][:19]:
            notes.append(
                f"{who} was trained on rows up to {end}, within the test set, which starts {data['start']}: "
                f"its figures are flattered."
            )
    if incomparable:
        notes.append(f"No comparison: {incomparable}.")
    if rows.cluster_count < MIN_CLUSTERS:
        notes.append(f"No intervals: {rows.cluster_count} clusters are fewer than the {MIN_CLUSTERS} that resampling needs.")
    return notes


def _plain(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in found.items()}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
