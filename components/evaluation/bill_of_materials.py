"""The model's bill of materials: CycloneDX 1.6 JSON with a model card, its datasets and the libraries that made it.

cyclonedx-python-lib knows no ``modelCard`` yet, so the document is written here and checked by that library's strict
validator before anyone gets it. Equal models give equal documents: the serial number is made from the content, and there is
no timestamp.
"""

import json
import uuid
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation.metrics import METRICS
from modelyard.components.evaluation.model_card import Statements, Subject
from modelyard.components.lean_imports import left_out
from modelyard.components.signing.provenance import code_revision, package_version

_NAMESPACE = uuid.UUID("7f6f0f7e-3a3b-5a55-9c0b-3c1c5c9f2d10")
_FAMILIES = {".ubj": "gradient-boosted trees", ".onnx": "neural network"}


def bill_of_materials(subject: Subject, statements: Statements) -> str:
    """The document as JSON, valid against the CycloneDX 1.6 schema.

    Raises:
        InvalidInput: the model or its statements cannot be put into a valid document; the message says where.
    """
    model = f"model:{subject.digest}"
    datasets = _datasets(subject)
    libraries = _libraries(subject)
    references = [part["bom-ref"] for part in (*datasets, *libraries)]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "modelyard", "version": package_version()}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model,
                "name": subject.model_name,
                "version": subject.digest,
                "hashes": [_hash(subject.digest)],
                **({"authors": [{"name": statements.owner}]} if statements.owner else {}),
                "modelCard": _model_card(subject, statements, [part["bom-ref"] for part in datasets]),
                "properties": _properties(
                    {
                        "decision": subject.evaluation["decision"],
                        "run_id": subject.run_id,
                        "code_revision": code_revision(),
                        "risk_class": statements.risk_class,
                        "oversight": statements.oversight,
                        "logging": statements.logging,
                        "energy_kwh": f"{statements.energy_kwh:g}" if statements.energy_kwh else "",
                    }
                ),
            },
        },
        "components": [*datasets, *libraries],
        "dependencies": [
            {"ref": model, "dependsOn": references},
            *({"ref": reference} for reference in references),
        ],
    }
    text = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, text)}"
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    _validate(text)
    return text


def _validate(text: str) -> None:
    # The checker of international addresses, of which the document has none.
    with left_out("rfc3987_syntax"):
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise InvalidInput("bill of materials", str(error)[:400], "the document would not be valid CycloneDX 1.6; report this")


def _model_card(subject: Subject, statements: Statements, datasets: list[str]) -> dict[str, Any]:
    spec = subject.spec
    considerations: dict[str, Any] = {}
    if statements.purpose:
        considerations["useCases"] = [statements.purpose]
    limits = [text for text in (statements.limits, *subject.evaluation["notes"]) if text]
    if limits:
        considerations["technicalLimitations"] = limits
    suffix = spec.model_file[spec.model_file.rfind(".") :]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "binary classification",
            "architectureFamily": _FAMILIES.get(suffix, "unknown"),
            "modelArchitecture": str(spec.training.get("trainer", spec.model_file)),
            "datasets": [{"ref": reference} for reference in datasets],
            "inputs": [{"format": "category" if feature.categories else "number"} for feature in spec.features],
            "outputs": [{"format": f"probability that {spec.label} is 1"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _performance(subject.evaluation)},
        "considerations": considerations,
        "properties": _properties(_flat(spec.training.get("parameters", {}), "parameter.")),
    }


def _performance(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = [("", evaluation["metrics"])]
    parts += [(f"{part['column']}={part['value']}", part["metrics"]) for part in evaluation["slices"]]
    entries = []
    for name, metrics in parts:
        for metric in METRICS:
            found = metrics.get(metric)
            if found is None or found["value"] is None:
                continue
            entry: dict[str, Any] = {"type": metric, "value": repr(found["value"])}
            if name:
                entry["slice"] = name
            if found["low"] is not None:
                entry["confidenceInterval"] = {"lowerBound": repr(found["low"]), "upperBound": repr(found["high"])}
            entries.append(entry)
    return entries


def _datasets(subject: Subject) -> list[dict[str, Any]]:
    spec = subject.spec.data
    parts = (("training", spec), ("validation", spec.get("validation", {})), ("test", subject.evaluation["data"]))
    found = []
    for name, facts in parts:
        if facts.get("digest"):
            described = {key: facts[key] for key in ("rows", "positives", "start", "end") if facts.get(key) is not None}
            found.append(
                {
                    "type": "data",
                    "bom-ref": f"data:{name}:{facts['digest']}",
                    "name": f"{name} data",
                    "version": facts["digest"],
                    "hashes": [_hash(facts["digest"])],
                    "data": [{"type": "dataset", "name": f"{name} data"}],
                    "properties": _properties({**described, **_flat(facts.get("lineage", {}), "lineage.")}),
                }
            )
    return found


def _libraries(subject: Subject) -> list[dict[str, Any]]:
    """The libraries of the training, as its specification gives them, and what of this package's requirements is installed."""
    owners = metadata.packages_distributions()
    versions = {name: metadata.version(name) for name in _installed_requirements()}
    for module, version in subject.spec.training.get("versions", {}).items():
        # One module may come from several distributions (xgboost, xgboost-cpu); the purl names the one that is here.
        name = owners.get(module, [module])[0]
        versions[name] = str(version)
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        for name, version in sorted({_normal(name): version for name, version in versions.items()}.items())
    ]


def _installed_requirements() -> list[str]:
    from packaging.requirements import Requirement

    names = []
    for text in metadata.requires("modelyard") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.append(requirement.name)
    return names


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "BLAKE3", "content": digest.removeprefix("blake3:")}


def _properties(entries: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"modelyard:{name}", "value": str(value)} for name, value in entries.items() if value not in ("", None)]


def _flat(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
