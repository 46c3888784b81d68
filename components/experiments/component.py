"""KFP interface of experiments: compare two versions that shared the traffic, once the labels are there."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("ops")
def analyze_experiment(
    report: dsl.Output[dsl.HTML],
    result: dsl.Output[dsl.Artifact],
    model_name: str,
    predictions_uri: str,
    labels_uri: str,
    version_a: str,
    version_b: str,
    start: str = "",
    end: str = "",
    label: str = "label",
    label_delay_days: float = 0.0,
    share_b: float = 0.0,
    false_positive_cost: float = 1.0,
    false_negative_cost: float = 10.0,
    min_pr_auc_gain: float = 0.01,
    max_cost_increase: float = 0.1,
    max_samples: int = 0,
    alpha: float = 0.05,
    split_by: str = "key",
) -> NamedTuple("Outputs", [("decision", str), ("reasons", str)]):
    """Compares two versions that shared the traffic, and says winner, loser, futile or go on.

    The prediction log says who answered what, the labels came later. The differences in PR-AUC and in cost have intervals that
    hold at every look, so this may run every day and its decision be acted on at once: between equal versions it declares a
    winner or a loser with probability alpha at most, over all runs together (in the limit of many keys). The rows of a key
    count as dependent. Traffic that was not split as asked, or labels that are missing, forbid a decision.

    A label belongs to a prediction by request_id, and by row where requests have several rows. Every prediction needs one:
    where only positives are reported, write the 0s once the delay has passed. The labels must not depend on the
    version's decision: where an alert blocks what it is about, its label has to be found in another way.

    Args:
        model_name: Name of the served model.
        predictions_uri: The prediction log, as in MODELYARD_PREDICTION_LOG: path, s3:// or gs://.
        labels_uri: Parquet or CSV file with request_id, the label (0, 1, or empty while not known) and, where requests have
            several rows, row.
        version_a: Version in charge, the control.
        version_b: Version under trial, which the decision is about.
        start: When the split began or its share last changed, as 2026-05-01 or 2026-05-01T12:00:00+00:00 (UTC if it does not
            say). Empty: the first prediction of version_b.
        end: When the split ended. Empty: now.
        label: Column of the labels.
        label_delay_days: Days that a label may take. Younger predictions are left out, labelled or not, because what is known
            early differs.
        share_b: Percent of the keys, or requests, that version_b was to get, to check the split by. 0: not checked.
        false_positive_cost: Cost of a false alert.
        false_negative_cost: Cost of a missed positive, in the same unit.
        min_pr_auc_gain: Difference in PR-AUC that is too small to matter. 0: none is.
        max_cost_increase: Share of the control's cost that a winner may add to it, such as 0.1.
        max_samples: Predictions with time for their labels after which an experiment without a decision is futile. 0: never.
        alpha: Probability, over all runs, that equal versions are told apart.
        split_by: What decided which version answers: key, where the same key meets the same version, as on a laptop; request,
            where chance decides each time, as a KServe canary does.

    Returns:
        report: One self-contained HTML page with the decision, the intervals over time, the curves and the state of the data.
        result: The analysis as JSON.
        decision: winner, loser, futile or go_on, about version_b.
        reasons: Why, the decisive ones first, separated by semicolons.
    """
    from modelyard.components.experiments.analysis import Terms, analyze
    from modelyard.components.experiments.outputs import write_outputs
    from modelyard.components.features.fetching import parse_moment

    found = analyze(
        model_name=model_name,
        predictions_uri=predictions_uri,
        labels_uri=labels_uri,
        version_a=version_a,
        version_b=version_b,
        start=parse_moment("start", start),
        end=parse_moment("end", end),
        label=label,
        terms=Terms(
            false_positive_cost=false_positive_cost,
            false_negative_cost=false_negative_cost,
            min_pr_auc_gain=min_pr_auc_gain,
            max_cost_increase=max_cost_increase,
            share=share_b,
            label_delay_days=label_delay_days,
            max_samples=max_samples,
            alpha=alpha,
            split_by=split_by,
        ),
    )
    write_outputs(found, report=report.path, result=result.path)
    for artifact in (report, result):
        artifact.metadata["decision"] = found.decision
    return (found.decision, "; ".join(found.reasons))
