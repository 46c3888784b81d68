"""The release pipeline: from features to a signed model that has beaten the champion, before and under live traffic.

::

    check_release ─ fetch_features ─ split_dataset ─ train_xgboost | train_torch | train_distributed ─ evaluate_model
        refused:  record_refusal
        accepted: write_model_card ─ sign_model ─ register_model ─ rollout_model: promoted or rolled back
"""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.evaluation.component import evaluate_model, write_model_card
from modelyard.components.features.component import fetch_features, split_dataset
from modelyard.components.registry.component import record_refusal, register_model
from modelyard.components.request.component import check_release
from modelyard.components.rollout.component import rollout_model
from modelyard.components.signing.component import sign_model
from modelyard.components.training.component import train_distributed, train_torch, train_xgboost
from modelyard.pipelines.cluster import (
    place,
    with_node_images,
    with_prometheus_token,
    with_signing_key,
    with_verification_key,
    with_wandb_key,
)


class Released(NamedTuple):
    """What a release tells the pipeline around it."""

    decision: str
    outcome: str
    digest: str
    version: str


@dsl.pipeline(name="release", description="Train a model, judge it against the champion, sign it, register it and roll it out.")
def release(
    model_name: str,
    feature_repo_uri: str,
    entity_rows_uri: str,
    feature_service: str,
    label: str,
    timestamp_column: str = "event_timestamp",
    entity_features: list = [],
    kept_columns: list = [],
    data_start: str = "",
    data_end: str = "",
    test_days: float = 0.0,
    validation_days: float = 0.0,
    gap_days: float = 0.0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    group_by: str = "",
    trainer: str = "xgboost",
    nodes: int = 2,
    node_placement: dict = {},
    device: str = "auto",
    training_parameters: dict = {},
    false_negative_cost: float = 10.0,
    false_positive_cost: float = 1.0,
    gates: dict = {},
    slices: list = [],
    cluster_by: str = "",
    recall_at_precision: float = 0.9,
    cards_per_day: int = 100,
    purpose: str = "",
    owner: str = "",
    risk_class: str = "",
    limits: str = "",
    oversight: str = "",
    logging: str = "",
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
    wandb_project: str = "",
    seed: int = 0,
) -> Released:
    """Trains a model on features as of each row's moment, judges it against the champion, and rolls it out under live traffic.

    A version that fails on its way is taken back without anybody's doing, and the reason stands in the report and the registry.

    Args:
        model_name: Name of the registered model; 1 to 63 letters, digits, '.', '_' or '-'.
        feature_repo_uri: Folder of the Feast feature repo (path, s3:// or gs://).
        entity_rows_uri: Labelled entity rows (Parquet or CSV; path, s3:// or gs://).
        feature_service: Name of the Feast feature service whose features the model gets.
        label: Column of the entity rows to predict, 0 or 1.
        timestamp_column: Column of the entity rows that holds each row's moment.
        entity_features: Further columns of the entity rows that the model gets, known at the row's moment.
        kept_columns: Further columns of the entity rows that are no features, to slice, cluster or group by.
        data_start: First moment of the rows to use (ISO date or time, UTC); empty for no bound.
        data_end: Moment before which the rows to use end (ISO date or time, UTC); empty for no bound.
        test_days: Days at the end that the model is judged on; 0 to use test_fraction.
        validation_days: Days before those, for early stopping and the threshold; 0 to use validation_fraction.
        gap_days: Days left out between the parts, because labels arrive late.
        test_fraction: Share of the rows, the latest ones, that the model is judged on.
        validation_fraction: Share of the rows, those before, for early stopping and the threshold.
        group_by: Column, such as a customer's id, whose values in the test rows must not occur in training; empty for none.
        trainer: xgboost or torch, in one pod; xgboost-distributed or torch-distributed, on several nodes (see
            train_distributed).
        nodes: Number of nodes of a distributed training.
        node_placement: Where and with what those nodes run, by key: namespace, runtime, image, cpu, memory, service_account,
            node_selector, tolerations and ready_seconds. See train_distributed.
        device: auto, cpu or cuda; cuda gets the training step, or each node, one GPU, and it fails without one.
        training_parameters: Parameters of the trainer by name, such as {"rounds": 300, "max_depth": 6}.
        false_negative_cost: Cost of a positive that the model misses, in the unit of false_positive_cost.
        false_positive_cost: Cost of a negative that the model flags.
        gates: Gates of the evaluation; empty for the defaults. See evaluate_model.
        slices: Columns by whose values the model is judged separately as well.
        cluster_by: Column, such as a customer's id, by which the bootstrap resamples; empty to resample rows.
        recall_at_precision: Precision that the recall at precision is taken at.
        cards_per_day: Cards (values of cluster_by) that can be checked in a day, for card precision.
        purpose: What the model is for, for its card.
        owner: Who answers for the model, for its card.
        risk_class: Risk class of the use, for the card.
        limits: Where the model must not be used, for its card.
        oversight: Who watches the model and can overrule it, for its card.
        logging: What is logged of its use, and for how long, for its card.
        signing_method: key, certificate, pkcs11 or sigstore; keys and identities come from the cluster's configuration.
        target: Where an accepted model is rolled out: kserve (an InferenceService, see serving) or local (behind a proxy on
            this machine); registry makes it the champion at once and serves it nowhere, none leaves it the challenger.
        serving: How it is served on KServe, by key: namespace, mode (standard or knative), runtime (predictor or triton),
            cpu, memory, gpus, min_replicas, max_replicas, autoscaler, scale_metric, scale_target, node_selector,
            tolerations, spot, service_account, timeout_seconds, ready_seconds and long_hosts. See rollout_model.
        rollout_steps: Percentages of the live traffic that it gets, one after another.
        bake_seconds: Seconds that every step takes at least.
        min_samples: Requests that it must have got in every step; without them it never passes.
        look_seconds: Seconds between two looks at what both versions did.
        deadline_seconds: Seconds after which a step without enough requests is given up, and the version taken back.
        shadow_seconds: Seconds for which it first gets a copy of the traffic, its answers thrown away; 0 for none. KServe
            cannot copy traffic.
        rollout_limits: How much worse it may be; empty for the defaults. See rollout_model.
        wandb_project: Weights & Biases project that mirrors the run; empty for none.
        seed: Seed of everything random.

    Returns:
        decision: What the gates decided, and then the rollout: pass, fail or inconclusive.
        outcome: promoted, rolled_back, registered (target none) or refused (by the gates).
        digest: Digest that names the trained model.
        version: Version in the registry; empty when the model was refused.
    """
    request = check_release(
        model_name=model_name,
        feature_repo_uri=feature_repo_uri,
        entity_rows_uri=entity_rows_uri,
        feature_service=feature_service,
        label=label,
        timestamp_column=timestamp_column,
        data_start=data_start,
        data_end=data_end,
        test_days=test_days,
        validation_days=validation_days,
        gap_days=gap_days,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        trainer=trainer,
        nodes=nodes,
        node_placement=node_placement,
        device=device,
        false_negative_cost=false_negative_cost,
        false_positive_cost=false_positive_cost,
        gates=gates,
        signing_method=signing_method,
        target=target,
        serving=serving,
        rollout_steps=rollout_steps,
        bake_seconds=bake_seconds,
        min_samples=min_samples,
        look_seconds=look_seconds,
        deadline_seconds=deadline_seconds,
        shadow_seconds=shadow_seconds,
        rollout_limits=rollout_limits,
    )
    place(request, cpu="1", memory="1G", minutes=10)

    # What a URI leads to changes without the URI changing: never cached.
    features = fetch_features(
        feature_repo_uri=feature_repo_uri,
        entity_rows_uri=entity_rows_uri,
        feature_service=feature_service,
        label=label,
        timestamp_column=timestamp_column,
        entity_features=entity_features,
        kept_columns=kept_columns,
        start=data_start,
        end=data_end,
    ).after(request)
    place(features, cpu="4", memory="16G", minutes=240)

    parts = split_dataset(
        dataset=features.outputs["training_data"],
        test_days=test_days,
        validation_days=validation_days,
        gap_days=gap_days,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        group_by=group_by,
    )
    place(parts, cpu="2", memory="16G", minutes=60, cached=True)

    training = {
        "train": parts.outputs["train"],
        "validation": parts.outputs["validation"],
        "model_name": model_name,
        "device": device,
        "parameters": training_parameters,
        "false_negative_cost": false_negative_cost,
        "false_positive_cost": false_positive_cost,
        "seed": seed,
    }
    with dsl.If(request.outputs["branch"] == "xgboost", name="xgboost"):
        xgboost = place(train_xgboost(**training), cpu="4", memory="16G", minutes=720, retries=5)
    with dsl.Elif(request.outputs["branch"] == "xgboost-gpu", name="xgboost-gpu"):
        xgboost_gpu = place(train_xgboost(**training), cpu="4", memory="16G", minutes=720, retries=5, gpu=True)
    with dsl.Elif(request.outputs["branch"] == "torch", name="torch"):
        torch = place(train_torch(**training), cpu="4", memory="16G", minutes=720, retries=5)
    with dsl.Elif(request.outputs["branch"] == "torch-gpu", name="torch-gpu"):
        torch_gpu = place(train_torch(**training), cpu="4", memory="16G", minutes=720, retries=5, gpu=True)
    with dsl.Elif(request.outputs["branch"] == "xgboost-distributed", name="xgboost-distributed"):
        xgboost_nodes = train_distributed(**training, trainer="xgboost", nodes=nodes, cluster=node_placement)
        with_node_images(place(xgboost_nodes, cpu="2", memory="16G", minutes=2880, retries=5))
    with dsl.Else(name="torch-distributed"):
        torch_nodes = train_distributed(**training, trainer="torch", nodes=nodes, cluster=node_placement)
        with_node_images(place(torch_nodes, cpu="2", memory="16G", minutes=2880, retries=5))
    trained = {
        output: dsl.OneOf(
            *(task.outputs[output] for task in (xgboost, xgboost_gpu, torch, torch_gpu, xgboost_nodes, torch_nodes))
        )
        for output in ("model_uri", "digest", "run_id")
    }
    # Artifacts cannot be joined after a branch everywhere this file runs, addresses can.
    model = dsl.importer(artifact_uri=trained["model_uri"], artifact_class=dsl.Model, reimport=False)
    model.set_display_name("trained model")

    evaluation = evaluate_model(
        model=model.output,
        test=parts.outputs["test"],
        model_name=model_name,
        expected_digest=trained["digest"],
        run_id=trained["run_id"],
        gates=gates,
        slices=slices,
        cluster_by=cluster_by,
        recall_at_precision=recall_at_precision,
        cards_per_day=cards_per_day,
        false_negative_cost=false_negative_cost,
        false_positive_cost=false_positive_cost,
        seed=seed,
    )
    with_verification_key(place(evaluation, cpu="2", memory="16G", minutes=120))

    with dsl.If(evaluation.outputs["decision"] == "pass", name="accepted"):
        card = write_model_card(
            model=model.output,
            evaluation=evaluation.outputs["evaluation"],
            model_name=model_name,
            purpose=purpose,
            owner=owner,
            risk_class=risk_class,
            limits=limits,
            oversight=oversight,
            logging=logging,
            run_id=trained["run_id"],
        )
        place(card, cpu="1", memory="4G", minutes=30)
        signed = sign_model(
            model=model.output,
            evaluation=evaluation.outputs["evaluation"],
            card=card.outputs["card"],
            card_html=card.outputs["card_html"],
            bom=card.outputs["bom"],
            model_name=model_name,
            run_id=trained["run_id"],
            method=signing_method,
        )
        with_signing_key(place(signed, cpu="2", memory="4G", minutes=60))
        registered = register_model(
            signed_model=signed.outputs["signed_model"],
            evaluation=evaluation.outputs["evaluation"],
            model_name=model_name,
            run_id=trained["run_id"],
            wandb_project=wandb_project,
        )
        with_wandb_key(with_verification_key(place(registered, cpu="2", memory="4G", minutes=60)))
        rolled_out = rollout_model(
            model_name=model_name,
            version=registered.outputs["version"],
            digest=registered.outputs["digest"],
            uri=registered.outputs["uri"],
            target=target,
            serving=serving,
            steps=rollout_steps,
            bake_seconds=bake_seconds,
            min_samples=min_samples,
            look_seconds=look_seconds,
            deadline_seconds=deadline_seconds,
            shadow_seconds=shadow_seconds,
            limits=rollout_limits,
            run_id=trained["run_id"],
        )
        with_prometheus_token(with_verification_key(place(rolled_out, cpu="1", memory="4G", minutes=2880)))
    with dsl.Else(name="refused"):
        refusal = record_refusal(evaluation=evaluation.outputs["evaluation"], model_name=model_name, run_id=trained["run_id"])
        place(refusal, cpu="1", memory="1G", minutes=10)

    return Released(
        decision=dsl.OneOf(rolled_out.outputs["decision"], refusal.outputs["decision"]),
        outcome=dsl.OneOf(rolled_out.outputs["outcome"], refusal.outputs["outcome"]),
        digest=trained["digest"],
        version=dsl.OneOf(registered.outputs["version"], refusal.outputs["version"]),
    )
