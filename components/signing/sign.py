"""Turning what training wrote into a signed model directory, if the evaluation passed it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from modelyard.components.artifacts.digest import ATTESTATIONS
from modelyard.components.artifacts.model import read_spec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.signing.provenance import Provenance
from modelyard.components.signing.signature import configured_signer, sign_directory
from modelyard.components.storage.files import atomic_directory

EVALUATION_FILE = "card/evaluation.json"


def sign_model(
    model: str | os.PathLike[str],
    *,
    evaluation: str | os.PathLike[str],
    card: str | os.PathLike[str],
    card_html: str | os.PathLike[str],
    bom: str | os.PathLike[str],
    signed_model: str | os.PathLike[str],
    model_name: str,
    run_id: str = "",
    method: str = "key",
) -> Provenance:
    """Writes a signed copy of a model that passed its evaluation, whole or not at all.

    Args:
        model: model directory that training wrote.
        evaluation: ``evaluation.json`` of this very model.
        card: the model card, Markdown.
        card_html: the model card, HTML.
        bom: the bill of materials, CycloneDX JSON.
        signed_model: folder to write.
        model_name: the registered model.
        run_id: MLflow run that trained it.
        method: how to sign: one of ``METHODS`` in ``modelyard.components.signing.signature``.

    Raises:
        InvalidInput: the evaluation is of another model or did not pass it, or an input cannot be used.
        NotAvailable: what the method needs is not there.
        FileExistsError: ``signed_model`` exists already.
    """
    check_model_name(model_name)
    signer = configured_signer(method)
    spec = read_spec(model)
    card_files = {"model_card.md": card, "model_card.html": card_html, "bom.cdx.json": bom, "evaluation.json": evaluation}
    with atomic_directory(signed_model) as partial:
        (partial / "card").mkdir()
        for name, path in card_files.items():
            shutil.copyfile(path, partial / "card" / name)
        judged = read_evaluation(partial / EVALUATION_FILE)
        if judged["decision"] != "pass":
            raise InvalidInput("decision", judged["decision"], "only a model that passed its evaluation is signed")
        if judged["model_name"] != model_name:
            raise InvalidInput("evaluation", judged["model_name"], f"it is of another model than {model_name!r}")
        _copy_payload(Path(model), partial)
        provenance = sign_directory(
            partial, signer, model_name=model_name, run_id=run_id, data_digest=str(spec.data.get("digest", ""))
        )
        if judged["model_digest"] != provenance.model_digest:
            remedy = f"it is of another model than this one ({provenance.model_digest}); evaluate this one"
            raise InvalidInput("evaluation", judged["model_digest"], remedy)
    return provenance


def read_evaluation(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of an ``evaluation.json``.

    Raises:
        InvalidInput: it is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        complete = {"model_name", "model_digest", "decision", "metrics", "champion"} <= content.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidInput("evaluation", str(path), f"give the JSON file that evaluate_model wrote ({error})") from error
    if not complete:
        raise InvalidInput("evaluation", str(path), "give the JSON file that evaluate_model wrote; this one lacks entries")
    return content


def _copy_payload(model: Path, destination: Path) -> None:
    for entry in sorted(model.iterdir()):
        if entry.name in ATTESTATIONS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, destination / entry.name, symlinks=True)
        else:
            shutil.copy(entry, destination / entry.name, follow_symlinks=False)
