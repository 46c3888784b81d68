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
        imbalance: Weight of a positive row relative to a negative one: a number; balanced for negatives per positive; none or
            auto for 1. Rare positives are met by stopping at the best PR-AUC and by a threshold of least cost, so weights
            only worsen the ranking and make the scores no probabilities (measured: see positive_weight).
        device: auto, cpu or cuda; cuda fails if XGBoost or the machine lacks it.
        false_negative_cost: Cost of a positive that the model misses, for the decision threshold.
        false_positive_cost: Cost of a negative that the model flags, in the same unit.
        seed: Seed of every random draw.
        threads: CPU threads; 0 for all.
        memory_limit_gib: Memory that the training rows may take, in GiB; beyond it they are kept on disk. 0 for half
            of what is free.
        checkpoint_uri: Where checkpoints are kept: s3://, gs:// or minio://, or a folder on a volume that outlives the pod.
            Empty for the local home; in a cluster for .checkpoints below MODELYARD_MODEL_STORE if that is an object store,
            else for none.
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


@component("torch")
def train_torch(
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    model_name: str,
    epochs: int = 50,
    early_stopping_epochs: int = 8,
    hidden: list = [128, 64],
    dropout: float = 0.1,
    learning_rate: float = 0.001,
    weight_decay: float = 0.0001,
    batch_size: int = 1024,
    mixed_precision: bool = True,
    parameters: dict = {},
    imbalance: str = "auto",
    device: str = "auto",
    false_negative_cost: float = 10.0,
    false_positive_cost: float = 1.0,
    seed: int = 0,
    threads: int = 0,
    checkpoint_uri: str = "",
    checkpoint_epochs: int = 1,
) -> NamedTuple("Outputs", [("model_uri", str), ("digest", str), ("run_id", str)]):
    """Trains a neural network with PyTorch, stopped early by the PR-AUC on later rows, and tracks it in MLflow.

    Numbers are standardised and missing ones imputed, text and categorical columns embedded; all of it becomes part of one ONNX
    model, which is compared with the trained one before it is delivered. The step may be stopped at any moment and run
    again: it goes on after its last finished epoch, in the same MLflow run. The training rows must fit into memory.

    Args:
        train: Rows to learn from.
        validation: Later rows, by which training is stopped and the decision threshold chosen.
        model_name: Name of the model: letters, digits, '-', '_' and '.'.
        epochs: At most so many passes over the training rows.
        early_stopping_epochs: Epochs without a better PR-AUC on the validation rows after which to stop; 0 for never. The
            weights of the best epoch are kept in either case.
        hidden: Width of each hidden layer.
        dropout: Share of each hidden layer's values that is dropped while learning.
        learning_rate: Step size of AdamW.
        weight_decay: Weight decay of AdamW.
        batch_size: Rows in a step.
        mixed_precision: Whether a GPU computes in 16 bits where that is safe; a CPU never does.
        parameters: Any of the parameters here, which it overrides, such as {"epochs": 20}.
        imbalance: Weight of a positive row relative to a negative one: a number; balanced for negatives per positive; none or
            auto for 1, which keeps the scores probabilities.
        device: auto, cpu or cuda; cuda fails if PyTorch or the machine lacks it.
        false_negative_cost: Cost of a positive that the model misses, for the decision threshold.
        false_positive_cost: Cost of a negative that the model flags, in the same unit.
        seed: Seed of every random draw.
        threads: CPU threads; 0 for PyTorch's own choice.
        checkpoint_uri: Where checkpoints are kept: s3://, gs:// or minio://, or a folder on a volume that outlives the pod.
            Empty for the local home; in a cluster for .checkpoints below MODELYARD_MODEL_STORE if that is an object store,
            else for none.
        checkpoint_epochs: Epochs between checkpoints; 0 for only on SIGTERM.

    Returns:
        model: The model directory, unsigned.
        metrics: PR-AUC and ROC-AUC on the validation rows, epochs up to the best, decision threshold and seconds.
        model_uri: URI of the model directory.
        digest: Digest that names the model.
        run_id: MLflow run of the training.
    """
    from modelyard.components.errors import InvalidInput
    from modelyard.components.training.requested import override, whole
    from modelyard.components.training.tabular_network import NetworkParameters, train_network

    chosen, more = override(
        NetworkParameters(
            device=device,
            epochs=epochs,
            early_stopping_epochs=early_stopping_epochs,
            hidden=[whole(width) for width in hidden],
            dropout=dropout,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            mixed_precision=mixed_precision,
            imbalance=imbalance,
            false_negative_cost=false_negative_cost,
            false_positive_cost=false_positive_cost,
            seed=seed,
            threads=threads,
            checkpoint_uri=checkpoint_uri,
            checkpoint_epochs=checkpoint_epochs,
        ),
        parameters,
    )
    if more:
        raise InvalidInput("parameters", sorted(more), "train_torch has no such parameter; see its documentation")
    trained = train_network(train.path, validation.path, model.path, model_name, chosen)
    for name, value in trained.metrics.items():
        metrics.log_metric(name, value)
    model.framework = "onnx"
    model.metadata.update({"digest": trained.digest, "run_id": trained.run_id, "framework": "onnx"})
    return (model.uri, trained.digest, trained.run_id)


@component("distributed")
def train_distributed(
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    model_name: str,
    trainer: str = "xgboost",
    nodes: int = 2,
    parameters: dict = {},
    device: str = "auto",
    false_negative_cost: float = 10.0,
    false_positive_cost: float = 1.0,
    seed: int = 0,
    checkpoint_uri: str = "",
    backend: str = "auto",
    cluster: dict = {},
    timeout_seconds: int = 86_400,
) -> NamedTuple("Outputs", [("model_uri", str), ("digest", str), ("run_id", str)]):
    """Trains on several nodes through Kubeflow Trainer, with XGBoost or PyTorch, and tracks it in MLflow.

    Every node holds its share of the training rows; together they learn one model, delivered as train_xgboost and train_torch
    deliver theirs. In a cluster the nodes are pods of a TrainJob that run this package's own image; rows, checkpoints and the
    result pass through an object store. On a laptop they are processes. A node that fails fails the step, with the node's
    log. The step may be stopped at any moment and run again: it finds the job that it started, or the job goes on from its last
    checkpoint. A step that is cancelled deletes its job.

    Args:
        train: Rows to learn from.
        validation: Later rows, by which training is stopped and the decision threshold chosen.
        model_name: Name of the model: letters, digits, '-', '_' and '.'.
        trainer: xgboost or torch.
        nodes: Number of nodes; the model depends on it, as on a seed.
        parameters: Parameters of train_xgboost or train_torch by name, such as {"rounds": 300, "max_depth": 8}, with the
            same defaults, and for xgboost any other of XGBoost's; memory_limit_gib aside, because every node holds its
            rows in memory.
        device: auto, cpu or cuda; cuda gives each node one GPU. In a cluster auto is cpu.
        false_negative_cost: Cost of a positive that the model misses, for the decision threshold.
        false_positive_cost: Cost of a negative that the model flags, in the same unit.
        seed: Seed of every random draw.
        checkpoint_uri: Where rows, checkpoints and the result are kept while the job runs: s3://, gs:// or minio://; on a
            laptop also a folder. Empty for the local home; in a cluster for .checkpoints below MODELYARD_MODEL_STORE.
        backend: kubernetes, local or auto, which is kubernetes in a pod and local elsewhere.
        cluster: How the nodes are placed, by key: namespace, runtime (default xgboost-distributed or torch-distributed), image,
            cpu, memory, service_account, node_selector, tolerations and ready_seconds (how long they may wait for
            a machine; 3600).
        timeout_seconds: Seconds after which the job is ended, whether or not this step is still there.

    Returns:
        model: The model directory, unsigned.
        metrics: PR-AUC and ROC-AUC on the validation rows, rounds kept, decision threshold and seconds.
        model_uri: URI of the model directory.
        digest: Digest that names the model.
        run_id: MLflow run of the training.
    """
    from modelyard.components.training.distributed.training import DistributedParameters, train_on_nodes

    chosen = DistributedParameters(
        trainer=trainer,
        nodes=nodes,
        parameters=parameters,
        device=device,
        false_negative_cost=false_negative_cost,
        false_positive_cost=false_positive_cost,
        seed=seed,
        checkpoint_uri=checkpoint_uri,
        backend=backend,
        cluster=cluster,
        timeout_seconds=timeout_seconds,
    )
    trained = train_on_nodes(train.path, validation.path, model.path, model_name, chosen)
    for name, value in trained.metrics.items():
        metrics.log_metric(name, value)
    framework = "onnx" if trainer == "torch" else "xgboost"
    model.framework = framework
    model.metadata.update({"digest": trained.digest, "run_id": trained.run_id, "framework": framework})
    return (model.uri, trained.digest, trained.run_id)
