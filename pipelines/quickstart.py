"""The quickstart pipeline: simulated card transactions, then a release of a fraud model on them. It needs no data."""

from kfp import dsl

from modelyard.components.features.component import simulate_transactions
from modelyard.pipelines.cluster import place
from modelyard.pipelines.release import Released, release


@dsl.pipeline(name="quickstart", description="Simulate card transactions and release a fraud model on them.")
def quickstart(
    model_name: str = "card-fraud",
    customers: int = 2000,
    terminals: int = 4000,
    days: int = 90,
    start_date: str = "2018-04-01",
    drift: str = "none",
    drift_day: int = 0,
    data_start: str = "",
    data_end: str = "",
    test_days: float = 7.0,
    validation_days: float = 7.0,
    gap_days: float = 7.0,
    trainer: str = "xgboost",
    device: str = "auto",
    training_parameters: dict = {},
    gates: dict = {},
    target: str = "registry",
    serving: dict = {},
    rollout_steps: list = [5, 25, 50, 100],
    bake_seconds: float = 10.0,
    min_samples: int = 100,
    deadline_seconds: float = 600.0,
    seed: int = 0,
) -> Released:
    """Simulates card transactions with frauds and releases a fraud model on them.

    Args:
        model_name: Name of the registered model.
        customers: Number of customers to simulate.
        terminals: Number of payment terminals to simulate.
        days: Number of days to simulate.
        start_date: First simulated day (ISO date).
        drift: What changes from drift_day on: none, spending, new_fraud or both.
        drift_day: Day, counted from 0, from which on the drift is at work.
        data_start: First moment of the transactions to use (ISO date or time, UTC); empty for no bound.
        data_end: Moment before which the transactions to use end (ISO date or time, UTC); empty for no bound.
        test_days: Days at the end that the model is judged on.
        validation_days: Days before those, for early stopping and the threshold.
        gap_days: Days left out between the parts, because fraud is found out late.
        trainer: xgboost or torch.
        device: auto, cpu or cuda; cuda gets the training step one GPU, and it fails without one.
        training_parameters: Parameters of the trainer by name.
        gates: Gates of the evaluation; empty for the defaults.
        target: registry makes an accepted model the champion at once and serves it nowhere; kserve rolls it out on KServe,
            local on this machine, and both need live traffic from the second model on; none leaves it the challenger.
        serving: How it is served on KServe; see release.
        rollout_steps: Percentages of the live traffic that it gets, one after another.
        bake_seconds: Seconds that every step takes at least.
        min_samples: Requests that it must have got in every step; without them it never passes.
        deadline_seconds: Seconds after which a step without enough requests is given up, and the version taken back.
        seed: Seed of everything random.

    Returns:
        decision: What the gates decided, and then the rollout: pass, fail or inconclusive.
        outcome: promoted, rolled_back, registered (target none) or refused (by the gates).
        digest: Digest that names the trained model.
        version: Version in the registry; empty when the model was refused.
    """
    simulated = simulate_transactions(
        customers=customers,
        terminals=terminals,
        days=days,
        start_date=start_date,
        seed=seed,
        drift=drift,
        drift_day=drift_day,
    )
    place(simulated, cpu="2", memory="8G", minutes=60, cached=True)
    released = release(
        model_name=model_name,
        feature_repo_uri=simulated.outputs["feature_repo_uri"],
        entity_rows_uri=simulated.outputs["entity_rows_uri"],
        feature_service="fraud_detection",
        label="is_fraud",
        entity_features=["amount", "night", "weekend"],
        data_start=data_start,
        data_end=data_end,
        test_days=test_days,
        validation_days=validation_days,
        gap_days=gap_days,
        trainer=trainer,
        device=device,
        training_parameters=training_parameters,
        gates=gates,
        cluster_by="customer_id",
        purpose="Flag card transactions that are likely fraudulent, on simulated data.",
        owner="Whoever runs the quickstart.",
        risk_class="none: simulated data",
        limits="Simulated transactions after Le Borgne et al. (2022); not for real payments.",
        oversight="None needed: nothing acts on its scores.",
        target=target,
        serving=serving,
        rollout_steps=rollout_steps,
        bake_seconds=bake_seconds,
        min_samples=min_samples,
        look_seconds=1.0,
        deadline_seconds=deadline_seconds,
        seed=seed,
    )
    return Released(
        decision=released.outputs["decision"],
        outcome=released.outputs["outcome"],
        digest=released.outputs["digest"],
        version=released.outputs["version"],
    )
