"""The model card: what a person must know before relying on a model, from what the run knows and what people stated.

One content, two forms: Markdown with a Hugging Face metadata block, and the HTML page. What nobody stated is shown as *not
stated*, at the top: a card with gaps must not look complete.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import ModelSpec, read_spec
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.evaluation.bootstrap import Estimate
from modelyard.components.evaluation.gates import FAIL, INCONCLUSIVE, PASS, GateResult
from modelyard.components.evaluation.metrics import METRICS, Terms
from modelyard.components.evaluation.presentation import (
    SLICE_METRICS,
    TONES,
    estimate_cell,
    flat,
    gates_table,
    metric_title,
    moment,
)
from modelyard.components.plots.page import Banner, Cell, Facts, Notes, Section, Table, render_page
from modelyard.components.signing.provenance import code_revision, package_version

NOT_STATED = "not stated"
_HEADLINES = {
    PASS: "The model passed its evaluation.",
    FAIL: "The model failed its evaluation and must not be used.",
    INCONCLUSIVE: "The evaluation did not settle whether the model may be used, so it must not be.",
}


@dataclass(frozen=True)
class Statements:
    """What only people can say; empty where nobody did.

    Attributes:
        purpose: what the model is for.
        owner: who answers for it.
        risk_class: its class under the rules that apply, such as the EU AI Act.
        limits: where it must not be used.
        oversight: who can overrule it, and how.
        logging: what of its use is recorded, and for how long.
        energy_kwh: energy that training took; 0 if not measured.
    """

    purpose: str = ""
    owner: str = ""
    risk_class: str = ""
    limits: str = ""
    oversight: str = ""
    logging: str = ""
    energy_kwh: float = 0.0

    @property
    def missing(self) -> list[str]:
        """What is not stated, in words."""
        texts = ("purpose", "owner", "risk_class", "limits", "oversight", "logging")
        return [name.replace("_", " ") for name in texts if not getattr(self, name).strip()]


@dataclass(frozen=True)
class Subject:
    """The model a card is about.

    Attributes:
        model_name: the registered model.
        digest: its model digest.
        spec: what it needs and promises.
        evaluation: what ``evaluation.json`` holds.
        run_id: MLflow run, or empty.
    """

    model_name: str
    digest: str
    spec: ModelSpec
    evaluation: Mapping[str, Any]
    run_id: str = ""


def read_subject(
    model: str | os.PathLike[str], evaluation: str | os.PathLike[str], *, model_name: str, run_id: str = ""
) -> Subject:
    """Reads a model and its evaluation.

    Raises:
        InvalidInput: one of them is missing or damaged.
        VerificationFailed: the evaluation is about another model.
    """
    try:
        content = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput("evaluation", str(evaluation), f"give what evaluate_model wrote ({error})") from error
    digest = model_digest(model)
    if content["model_digest"] != digest:
        raise VerificationFailed(f"the evaluation is about {content['model_digest']}, but the model has the digest {digest}")
    if content["model_name"] != model_name:
        raise InvalidInput("model_name", model_name, f"the evaluation is about {content['model_name']!r}; use one name")
    return Subject(model_name, digest, read_spec(model), content, run_id)


def sections(subject: Subject, statements: Statements) -> list[Section]:
    """The card's content."""
    evaluation = subject.evaluation
    energy = f"{statements.energy_kwh:g} kWh for training" if statements.energy_kwh else "not measured"
    parts = [
        Section(
            "Purpose and responsibility",
            [
                *([Notes([f"Not stated: {', '.join(statements.missing)}."], "warn")] if statements.missing else []),
                Facts(
                    [
                        ("Purpose", _stated(statements.purpose)),
                        ("Owner", _stated(statements.owner)),
                        ("Risk class", _stated(statements.risk_class)),
                    ]
                ),
            ],
        ),
        Section("Decision", [gates_table([GateResult(**gate) for gate in evaluation["gates"]])] if evaluation["gates"] else []),
        Section("Figures", [_figures(evaluation)], intro=_basis(evaluation)),
    ]
    if evaluation["slices"]:
        parts.append(Section("Slices", [_slices(evaluation)]))
    limits = [f"Stated by the owner: {_stated(statements.limits)}", *_known_limits(subject)]
    run = f"Run {subject.run_id} in MLflow holds the parameters, the figures and the reports." if subject.run_id else ""
    parts += [
        Section("Data", [_data(subject)]),
        Section("Model", _model(subject.spec)),
        Section("Limits", [Notes(limits)]),
        Section("Human oversight", [Notes([_stated(statements.oversight)])]),
        Section("Logging", [Notes([_stated(statements.logging), *([run] if run else [])])]),
        Section("Energy", [Notes([energy])]),
        Section("Lineage", [_lineage(subject)]),
    ]
    return parts


def _stated(text: str) -> str:
    return text.strip() or NOT_STATED


def render_html(subject: Subject, statements: Statements) -> str:
    """The card as one self-contained page."""
    decision = subject.evaluation["decision"]
    banner = Banner(decision, TONES[decision], _HEADLINES[decision])
    return render_page(
        subject.model_name,
        sections(subject, statements),
        kicker="Model card",
        subtitle=subject.digest,
        banner=banner,
    )


def render_markdown(subject: Subject, statements: Statements) -> str:
    """The card as Markdown, with the metadata block of the Hugging Face hub."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type="tabular-classification",
            dataset_type="tabular",
            dataset_name=f"test set {subject.evaluation['data']['digest']}",
            metric_type=name,
            metric_value=found["value"],
        )
        for name, found in subject.evaluation["metrics"].items()
        if found["value"] is not None
    ]
    data = ModelCardData(
        model_name=subject.model_name,
        library_name=_library(subject.spec),
        pipeline_tag="tabular-classification",
        tags=["tabular-classification", "modelyard"],
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=_inline(subject.model_name),
        digest=subject.digest,
        decision=subject.evaluation["decision"],
        headline=_HEADLINES[subject.evaluation["decision"]],
        sections=[
            {
                "title": section.title,
                "texts": [*([_inline(section.intro)] if section.intro else []), *map(_markdown_block, section.blocks)],
            }
            for section in sections(subject, statements)
        ],
    )
    return str(card).rstrip() + "\n"


_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

`{{ digest }}`

**{{ decision }}** — {{ headline }}
{% for section in sections %}
## {{ section.title }}
{% for text in section.texts %}
{{ text }}
{% endfor %}
{%- endfor %}
"""


def _markdown_block(block: object) -> str:
    if isinstance(block, Table):
        lines = [
            "| " + " | ".join(map(_inline, block.columns)) + " |",
            "|" + "|".join("---:" if column in block.numeric else "---" for column in block.columns) + "|",
        ]
        for row in block.rows:
            lines.append("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |")
        return "\n".join(lines)
    if isinstance(block, Facts):
        return "\n".join(f"- **{_inline(label)}:** {_inline(value)}" for label, value in block.items)
    if isinstance(block, Notes):
        texts = [_inline(text) for text in block.texts]
        return "> **" + " ".join(texts) + "**" if block.tone else "\n\n".join(texts)
    raise TypeError(block)


def _markdown_cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return _inline(cell)
    return _inline(cell.text) + (f" {_inline(cell.detail)}" if cell.detail else "")


def _inline(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    single = " ".join(text.split())
    escaped = single.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*\[\]|~#!])", r"\\\1", escaped)
    # An underscore within a word is no emphasis; at its edge it may be.
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return re.sub(r"^([-+]|\d+[.)])(?=\s|$)", r"\\\1", escaped)


def _basis(evaluation: Mapping[str, Any]) -> str:
    data, bootstrap = evaluation["data"], evaluation["bootstrap"]
    return (
        f"On {data['rows']:,} test rows with {data['positives']:,} positives, "
        f"{moment(data['start'])} to {moment(data['end'])}. "
        f"{100 * bootstrap['confidence']:g} % intervals from {bootstrap['draws']:,} resamples "
        f"by {bootstrap['cluster_by'] or 'row'}. "
        f"Decision threshold {evaluation['threshold']:.4g}."
    )


def _figures(evaluation: Mapping[str, Any]) -> Table:
    champion = evaluation["champion"]
    compared = bool(champion and champion["metrics"])
    columns = ["Metric", "Model", *([f"Champion (version {champion['version']})", "Difference"] if compared else [])]
    rows: list[list[Cell | str]] = []
    for name, found in evaluation["metrics"].items():
        row: list[Cell | str] = [Cell(metric_title(name, Terms(**evaluation["terms"]))), _estimate(found)]
        if compared:
            row += [_estimate(champion["metrics"].get(name)), _estimate(champion["difference"].get(name), signed=True)]
        rows.append(row)
    return Table(columns, rows, frozenset(columns[1:]))


def _slices(evaluation: Mapping[str, Any]) -> Table:
    columns = ["Slice", "Rows", "Positives", *(METRICS[name].title for name in SLICE_METRICS)]
    rows: list[list[Cell | str]] = []
    for part in evaluation["slices"]:
        found = [_estimate(part["metrics"].get(name)) for name in SLICE_METRICS]
        if not part["metrics"]:
            found[0] = Cell("too few", tone="muted")
        rows.append([f"{part['column']}: {part['value']}", f"{part['rows']:,}", f"{part['positives']:,}", *found])
    return Table(columns, rows, frozenset(columns[1:]))


def _estimate(found: Mapping[str, Any] | None, *, signed: bool = False) -> Cell:
    return estimate_cell(Estimate(**found) if found else None, signed=signed)


def _data(subject: Subject) -> Table:
    spec = subject.spec.data
    parts = (("training", spec), ("validation", spec.get("validation", {})), ("test", subject.evaluation["data"]))
    rows: list[list[Cell | str]] = [
        [
            name,
            _count(facts.get("rows")),
            _count(facts.get("positives")),
            Cell(f"{moment(facts.get('start'))} to {moment(facts.get('end'))}", facts.get("digest") or "no digest"),
        ]
        for name, facts in parts
    ]
    return Table(("Part", "Rows", "Positives", "Time span and digest"), rows, frozenset({"Rows", "Positives"}))


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def _model(spec: ModelSpec) -> list[Facts | Notes]:
    features = [
        feature.name if feature.categories is None else f"{feature.name} ({len(feature.categories)} categories)"
        for feature in spec.features
    ]
    training = dict(spec.training)
    versions = training.pop("versions", {})
    facts = [
        ("Format", f"{spec.model_file} ({_library(spec)})"),
        ("Predicts", f"probability that {spec.label} is 1"),
        ("Decision threshold", f"{spec.threshold:.6g}"),
        *flat(training),
        ("Library versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "–"),
    ]
    return [Facts(facts), Notes([f"Features: {', '.join(features)}."])]


def _known_limits(subject: Subject) -> list[str]:
    """Limits that the run itself shows."""
    data, evaluation = subject.spec.data, subject.evaluation
    limits = []
    if data.get("start") and data.get("end"):
        limits.append(
            f"It has learnt from {moment(data['start'])} to {moment(data['end'])}; what changed since is unknown to it."
        )
    few = [f"{part['column']} {part['value']}" for part in evaluation["slices"] if not part["metrics"]]
    if few:
        limits.append(f"Too few positives or negatives to judge it on: {', '.join(few)}.")
    unknown = [feature.name for feature in subject.spec.features if feature.categories is not None]
    if unknown:
        limits.append(f"Values of {', '.join(unknown)} that were not seen in training count as missing.")
    return [*limits, *evaluation["notes"]]


def _lineage(subject: Subject) -> Facts:
    evaluation = subject.evaluation
    champion = evaluation["champion"]
    return Facts(
        [
            ("Model digest", subject.digest),
            ("MLflow run", subject.run_id or "none"),
            ("Code revision", code_revision() or "unknown"),
            ("Made with", f"modelyard {package_version()}"),
            ("Judged against", f"version {champion['version']}, {champion['digest']}" if champion else "no champion"),
            *flat(subject.spec.data.get("lineage") or evaluation["data"]["lineage"]),
        ]
    )


def _library(spec: ModelSpec) -> str:
    return {".ubj": "xgboost", ".onnx": "onnx"}.get(Path(spec.model_file).suffix, "unknown")
