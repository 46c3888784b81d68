"""KFP interface of evaluation: judge a model, and describe it."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def evaluate_model(
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    evaluation: dsl.Output[dsl.Artifact],
    model_name: str,
    expected_digest: str = "",
    run_id: str = "",
    gates: dict = {},
    slices: list = [],
    cluster_by: str = "",
    recall_at_precision: float = 0.9,
    cards_per_day: int = 100,
    false_positive_cost: float = 1.0,
    false_negative_cost: float = 10.0,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> NamedTuple("Outputs", [("decision", str), ("reasons", str), ("digest", str)]):
    """Judges a model on held-out rows, beside the champion, and says pass, fail or inconclusive.

    The champion is the version that the registry's alias ``champion`` names; it is verified and answers the same rows. Figures
    have intervals from a bootstrap that resamples whole clusters, the same draws for both models, and the gates look at the
    interval of the paired difference. Without a champion the rule for a first model holds. Too little data never passes; nor
    does a comparison that cannot be made, such as a champion that needs features the test set lacks: both are inconclusive.

    Args:
        model: The model directory that training wrote.
        test: Labelled rows that neither model was trained on.
        model_name: Name the model is registered under; its champion is compared with.
        expected_digest: Digest that training reported. A model with another one is refused. Empty: not checked.
        run_id: MLflow run to add figures, decision and report to. Empty: none.
        gates: Gates as JSON: any of "absolute", "first_model", "difference", "slices" (lists of gates) and "min_positives",
            such as {"absolute": [{"metric": "pr_auc", "min": 0.3}], "difference": [{"metric": "pr_auc", "margin": 0.01}]}; see
            modelyard.components.evaluation.gates. Empty: PR-AUC not worse than the champion by more than 0.02, and for a first
            model ROC-AUC above 0.5, both by their intervals, with at least 30 positives and negatives.
        slices: Columns to cut the test set by, as a JSON list. Numbers are cut into quantiles.
        cluster_by: Column whose values are resampled whole, such as the customer (also for card precision). Empty: rows.
        recall_at_precision: Precision that the recall at precision is taken at.
        cards_per_day: Cards (values of cluster_by) that can be checked in a day, for card precision.
        false_positive_cost: Cost of a false alert.
        false_negative_cost: Cost of a missed positive, in the same unit.
        draws: Resamples of the bootstrap.
        confidence: Probability that an interval is to hold the truth.
        seed: Seed of the bootstrap.

    Returns:
        metrics: Figures of the model, of the difference to the champion, and the counts behind them.
        classification: Confusion matrix at the threshold of the model, and ROC curve.
        report: One self-contained HTML page with the decision, figures, curves and slices.
        evaluation: The evaluation as JSON, for the steps that follow.
        decision: pass, fail or inconclusive.
        reasons: One sentence for each gate, separated by semicolons.
        digest: Digest of the model that was judged.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from modelyard.components.evaluation.evaluating import Settings, evaluate
    from modelyard.components.evaluation.metrics import Terms
    from modelyard.components.evaluation.outputs import confusion_matrix, figures, roc_points, write_outputs
    from modelyard.components.evaluation.run_log import log_evaluation
    from modelyard.components.registry.champion import fetch_champion

    settings = Settings(
        gates=gates,
        slices=slices,
        cluster_by=cluster_by,
        terms=Terms(recall_at_precision, cards_per_day, false_positive_cost, false_negative_cost),
        draws=draws,
        seed=seed,
        confidence=confidence,
    )
    with TemporaryDirectory() as folder:
        result = evaluate(
            model.path,
            test.path,
            model_name=model_name,
            expected_digest=expected_digest,
            champion=fetch_champion(model_name, Path(folder)),
            settings=settings,
        )
    page = write_outputs(result, report=report.path, evaluation=evaluation.path)
    for name, value in figures(result).items():
        metrics.log_metric(name, value)
    classification.log_confusion_matrix(["negative", "positive"], confusion_matrix(result))
    if roc := roc_points(result):
        classification.log_roc_curve(*roc)
    for artifact in (metrics, report, evaluation):
        artifact.metadata["decision"] = result.decision
    evaluation.metadata["model_digest"] = result.digest
    log_evaluation(run_id, result.content(), page)
    return (result.decision, "; ".join(result.reasons), result.digest)


@component("ops")
def write_model_card(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    card: dsl.Output[dsl.Markdown],
    card_html: dsl.Output[dsl.HTML],
    bom: dsl.Output[dsl.Artifact],
    model_name: str,
    purpose: str = "",
    owner: str = "",
    risk_class: str = "",
    limits: str = "",
    oversight: str = "",
    logging: str = "",
    energy_kwh: float = 0.0,
    run_id: str = "",
) -> None:
    """Describes a model for the people who will rely on it, and lists what it is made of.

    The card puts together what the run knows (decision and gates, figures by slice with intervals, data, parameters, lineage)
    and what only people can state; what nobody stated is shown as not stated. The bill of materials is CycloneDX 1.6.

    Args:
        model: The model directory that training wrote.
        evaluation: What evaluate_model wrote about this very model.
        model_name: Name the model is registered under.
        purpose: What the model is for.
        owner: Who answers for it.
        risk_class: Its class under the rules that apply.
        limits: Where it must not be used.
        oversight: Who can overrule it, and how.
        logging: What of its use is recorded, and for how long.
        energy_kwh: Energy that training took, in kWh. 0: not measured.
        run_id: MLflow run to name, and to add card and bill of materials to. Empty: none.

    Returns:
        card: The card as Markdown, with a Hugging Face metadata block.
        card_html: The card as one self-contained HTML page.
        bom: The bill of materials, CycloneDX 1.6 JSON with a model card.
    """
    from modelyard.components.evaluation.bill_of_materials import bill_of_materials
    from modelyard.components.evaluation.model_card import Statements, read_subject, render_html, render_markdown
    from modelyard.components.evaluation.run_log import log_card
    from modelyard.components.storage.files import write_text

    subject = read_subject(model.path, evaluation.path, model_name=model_name, run_id=run_id)
    statements = Statements(purpose, owner, risk_class, limits, oversight, logging, energy_kwh)
    markdown, page, materials = (
        render_markdown(subject, statements),
        render_html(subject, statements),
        bill_of_materials(subject, statements),
    )
    write_text(card.path, markdown)
    write_text(card_html.path, page)
    write_text(bom.path, materials)
    for artifact in (card, card_html, bom):
        artifact.metadata["model_digest"] = subject.digest
    log_card(run_id, {"model_card.md": markdown, "model_card.html": page, "bom.cdx.json": materials})
