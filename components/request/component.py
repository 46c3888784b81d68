"""The KFP interface of the request's check."""

from typing import NamedTuple

from modelyard.components.interface import component


@component("ops")
def check_release(
    model_name: str,
    feature_repo_uri: str,
    entity_rows_uri: str,
    feature_service: str,
    label: str,
    timestamp_column: str = "event_timestamp",
    data_start: str = "",
    data_end: str = "",
    test_days: float = 0.0,
    validation_days: float = 0.0,
    gap_days: float = 0.0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    trainer: str = "xgboost",
    nodes: int = 2,
    node_placement: dict = {},
    device: str = "auto",
    false_negative_cost: float = 10.0,
    false_positive_cost: float = 1.0,
    gates: dict = {},
    signing_method: str = "key",
    target: str = "local",
    serving: dict = {},
    rollout_steps: list = [5, 25, 50, 100],
    bake_seconds: float = 300.0,
    min_samples: int = 300,
    look_seconds: float = 10.0,
    deadline_seconds: float = 3600.0,
    shadow_seconds: float = 0.0,
    rollout_limits: dict = {},
) -> NamedTuple("Outputs", [("branch", str)]):
    """Checks a release's parameters before anything expensive starts.

    Fails at once, naming the parameter, its value and what to do, where a later step would fail after hours.

    Args:
        model_name: Name of the registered model; 1 to 63 letters, digits, '.', '_' or '-'.
        feature_repo_uri: Folder of the Feast feature repo (path, s3:// or gs://).
        entity_rows_uri: Labelled entity rows (Parquet or CSV; path, s3:// or gs://).
        feature_service: Name of the Feast feature service.
        label: Column of the entity rows to predict, 0 or 1.
        timestamp_column: Column of the entity rows that holds each row's moment.
        data_start: First moment of the rows to use (ISO date or time, UTC); empty for no bound.
        data_end: Moment before which the rows to use end (ISO date or time, UTC); empty for no bound.
        test_days: Days at the end that the model is judged on; 0 to use a fraction.
        validation_days: Days before those, for early stopping and the threshold; 0 to use a fraction.
        gap_days: Days left out between the parts, because labels arrive late.
        test_fraction: Share of the rows that the model is judged on, where test_days is 0.
        validation_fraction: Share of the rows for early stopping and the threshold, where validation_days is 0.
        trainer: xgboost, torch, xgboost-distributed or torch-distributed.
        nodes: Number of nodes of a distributed training.
        node_placement: Where and with what they run; see train_distributed.
        device: auto, cpu or cuda.
        false_negative_cost: Cost of a positive that the model misses.
        false_positive_cost: Cost of a negative that the model flags.
        gates: Gates of the evaluation; see evaluate_model.
        signing_method: key, certificate, pkcs11 or sigstore.
        target: kserve, local, registry or none.
        serving: How the model is served on KServe; see rollout_model.
        rollout_steps: Percentages of the live traffic, rising.
        bake_seconds: Seconds that every step of the rollout takes at least.
        min_samples: Requests that the new version must have got in every step.
        look_seconds: Seconds between two looks.
        deadline_seconds: Seconds after which a step without enough requests is given up.
        shadow_seconds: Seconds of mirrored traffic before the first step; 0 for none.
        rollout_limits: How much worse the new version may be; see rollout_model.

    Returns:
        branch: The training step to run: xgboost, xgboost-gpu, torch, torch-gpu, xgboost-distributed or torch-distributed.
    """
    from modelyard.components.request.release_request import check_release_request

    branch = check_release_request(
        {
            "model_name": model_name,
            "feature_repo_uri": feature_repo_uri,
            "entity_rows_uri": entity_rows_uri,
            "feature_service": feature_service,
            "label": label,
            "timestamp_column": timestamp_column,
            "data_start": data_start,
            "data_end": data_end,
            "test_days": test_days,
            "validation_days": validation_days,
            "gap_days": gap_days,
            "test_fraction": test_fraction,
            "validation_fraction": validation_fraction,
            "trainer": trainer,
            "nodes": nodes,
            "node_placement": node_placement,
            "device": device,
            "false_negative_cost": false_negative_cost,
            "false_positive_cost": false_positive_cost,
            "gates": gates,
            "signing_method": signing_method,
            "target": target,
            "serving": serving,
            "rollout_steps": rollout_steps,
            "bake_seconds": bake_seconds,
            "min_samples": min_samples,
            "look_seconds": look_seconds,
            "deadline_seconds": deadline_seconds,
            "shadow_seconds": shadow_seconds,
            "rollout_limits": rollout_limits,
        }
    )
    return (branch,)
