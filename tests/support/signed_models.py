"""Small real models, evaluations of them, and signed model directories."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import write_golden_rows
from modelyard.components.signing.provenance import Provenance
from modelyard.components.signing.sign import sign_model

FEATURES = ("amount", "night")


def train_small_model(folder: Path, seed: int = 0) -> Path:
    """Trains a model of a few trees into ``folder``; another seed gives another model."""
    import xgboost

    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(200, len(FEATURES))).astype(np.float32)
    label = (matrix[:, 0] + generator.normal(size=200) > 0).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, xgboost.DMatrix(matrix, label), num_boost_round=3
    )
    booster.save_model(folder / "model.ubj")
    spec = ModelSpec(
        tuple(Feature(name) for name in FEATURES),
        label="fraud",
        model_file="model.ubj",
        threshold=0.5,
        training={"seed": seed},
        data={"digest": "blake3:" + "d" * 64},
    )
    write_spec(folder, spec)
    write_golden_rows(folder, spec, matrix[:4], booster.predict(xgboost.DMatrix(matrix[:4])))
    return folder


def write_evaluation(path: Path, model: Path, **entries: Any) -> Path:
    """Writes an ``evaluation.json`` that passes ``model``, with ``entries`` put in."""
    content = {
        "format_version": 1,
        "model_name": "fraud",
        "model_digest": model_digest(model),
        "decision": "pass",
        "reasons": ["average precision is at least 0.5"],
        "gates": [],
        "metrics": {"average_precision": {"value": 0.71, "low": 0.66, "high": 0.75}},
        "champion": None,
        **entries,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def attestations(folder: Path, model: Path, **entries: Any) -> dict[str, Path]:
    """The inputs of ``sign_model`` beside the model itself, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"card": folder / "card.md", "card_html": folder / "card.html", "bom": folder / "bom.json"}
    files["card"].write_text("# fraud\n", encoding="utf-8")
    files["card_html"].write_text("<h1>fraud</h1>\n", encoding="utf-8")
    files["bom"].write_text("{}\n", encoding="utf-8")
    return {**files, "evaluation": write_evaluation(folder / "evaluation.json", model, **entries)}


def make_signed_model(
    folder: Path, *, seed: int = 0, model_name: str = "fraud", run_id: str = "", **entries: Any
) -> Provenance:
    """Trains, judges and signs a small model; the signed directory is ``folder/signed``."""
    model = train_small_model(folder / "model", seed)
    return sign_model(
        model,
        **attestations(folder / "inputs", model, model_name=model_name, **entries),
        signed_model=folder / "signed",
        model_name=model_name,
        run_id=run_id,
    )
