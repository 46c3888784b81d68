"""What is left of a model that its gates refused: the reasons, where people look for them."""

import json
from pathlib import Path
from typing import Any

from modelyard.components.storage.files import write_text


def record_refusal(evaluation_path: Path, refusal_path: Path, model_name: str, run_id: str) -> str:
    """Writes the refusal as Markdown and tags the MLflow run with its reasons.

    Args:
        evaluation_path: the evaluation's JSON.
        refusal_path: where the Markdown goes.
        model_name: the model's registered name.
        run_id: the MLflow run that trained it; empty to leave MLflow alone.

    Returns:
        What the gates decided.
    """
    evaluation: dict[str, Any] = json.loads(evaluation_path.read_text(encoding="utf-8"))
    reasons = evaluation["reasons"]
    lines = [
        f"# {model_name}: not released",
        "",
        f"The gates decided **{evaluation['decision']}** on `{evaluation['model_digest']}`.",
        "",
        *(f"- {reason}" for reason in reasons),
        "",
        "The champion stays. The evaluation's report shows the numbers.",
    ]
    write_text(refusal_path, "\n".join(lines) + "\n")
    if run_id:
        from modelyard.components import tracking

        client = tracking.client()
        client.set_tag(run_id, "modelyard.outcome", "refused")
        # MLflow keeps at most 5,000 characters of a tag.
        client.set_tag(run_id, "modelyard.rejected_reason", "; ".join(reasons)[:5000])
    return str(evaluation["decision"])
