from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("train")
def train_xgboost(
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    model_name: str,
    rounds: int = 500,
    early_stopping_rounds: int = 50,
    learning_rate: float = 0.1,
    max_depth: int = 6,
    subsample: float = 1.0,
    colsample_bytree: float = 1.0,
    parameters: dict = {},
    imbalance: str = "auto",
    device: str = "auto",
    false_negative_cost: float = 10.0,
    false_positive_cost: float = 1.0,
    seed: int = 0,
    threads: int = 0,
    memory_limit_gib: float = 0.0,
    checkpoint_uri: str = "",
    checkpoint_rounds: int = 50,
) -> NamedTuple("Outputs", [("model_uri", str), ("digest", str), ("run_id", str)]):
    """Trains gradient-boosted trees with XGBoost, stopped early by the PR-AUC on later rows, and tracks it in MLflow.

    The step may be stopped at any moment and run again: it goes on from its last checkpoint, to the same model, byte for
    byte, in the same MLflow run. On SIGTERM it finishes the round, writes a checkpoint and fails, so that a retry goes on.
    Text and categorical columns are learned as categories; a level that the training rows lack counts as missing. A run
    named by ``MLFLOW_RUN_ID`` is added to; otherwise one is made in the experiment ``MLFLOW_EXPERIMENT_ID``,
    ``MLFLOW_EXPERIMENT_NAME`` or the model's name.

    Args:
        train: Rows to learn from.
        validation: Later rows, by which training is stopped and the decision threshold chosen.
        model_name: Name of the model: letters, digits, '-', '_' and '.'.
        rounds: At most so many boosting rounds.
        early_stopping_rounds: Rounds without a better PR-AUC on the validation rows after which to stop; 0 for never. The
            model is cut to its best round in either case.
        learning_rate: How much of each tree is added, above 0 and at most 1.
        max_depth: Greatest depth of a tree; 0 for no limit.
        subsample: Share of the rows that each tree sees.
        colsample_bytree: Share of the columns that each tree sees.
        parameters: Any of the parameters here, which it overrides, and any other parameter of XGBoost's trees by XGBoost's
            name (https://xgboost.readthedocs.io/en/stable/parameter.html), such as {"min_child_weight": 5, "max_bin": 512}.
        imbalance: Weight of a positive row relative to a negative one: a number, none for 1, or auto for the square root of
            negatives per positive, which finds rare positives earlier and distorts the probabilities less than the full ratio.
        device: auto, cpu or cuda; cuda fails if XGBoost or the machine lacks it.
        false_negative_cost: Cost of a positive that the model misses, for the decision threshold.
        false_positive_cost: Cost of a negative that the model flags, in the same unit.
        seed: Seed of every random draw.
        threads: CPU threads; 0 for all.
        memory_limit_gib: Memory that the training rows may take, in GiB; beyond it they are kept on disk. 0 for half
            of what is free.
        checkpoint_uri: Folder of checkpoints, on a volume that outlives the pod. Empty for the local home, or for none in
            a cluster.
        checkpoint_rounds: Rounds between checkpoints; 0 for only on SIGTERM.

    Returns:
        model: The model directory, unsigned.
        metrics: PR-AUC and ROC-AUC on the validation rows, rounds kept, decision threshold and seconds.
        model_uri: URI of the model directory.
        digest: Digest that names the model.
        run_id: MLflow run of the training.
    """
    from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
    from modelyard.components.training.requested import override

    chosen, more = override(
        BoostingParameters(
            device=device,
            rounds=rounds,
            early_stopping_rounds=early_stopping_rounds,
            learning_rate=learning_rate,
            max_depth=max_depth,
            subsample=subsample,
            colsample_bytree=colsample_bytree,
            imbalance=imbalance,
            false_negative_cost=false_negative_cost,
            false_positive_cost=false_positive_cost,
            seed=seed,
            threads=threads,
            memory_limit_gib=memory_limit_gib,
            checkpoint_uri=checkpoint_uri,
            checkpoint_rounds=checkpoint_rounds,
        ),
        parameters,
    )
    trained = train_boosted_trees(train.path, validation.path, model.path, model_name, chosen.with_more(more))
    for name, value in trained.metrics.items():
        metrics.log_metric(name, value)
    model.framework = "xgboost"
    model.metadata.update({"digest": trained.digest, "run_id": trained.run_id, "framework": "xgboost"})
    return (model.uri, trained.digest, trained.run_id)
