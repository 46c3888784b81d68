"""Training on several nodes: the work behind ``train_distributed``.

The step divides the rows, starts the job, waits, and delivers. Everything of a training is in its job's folder, whose name is a
digest of the rows, of every parameter and of the number of nodes: a step that is killed at any moment and run again finds
there what is done already, and on a cluster the job itself.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modelyard.components import settings
from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage import uris
from modelyard.components.training import boosted_trees, tabular_network
from modelyard.components.training.devices import cuda_devices
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.job import Job, JobFailed
from modelyard.components.training.distributed.job_folder import (
    ASSIGNMENT,
    MODEL,
    PROGRESS,
    RESULT,
    VALIDATION,
    JobFolder,
    shard,
)
from modelyard.components.training.distributed.placement import MOST_NODES, NodePlacement, parse_node_placement
from modelyard.components.training.distributed.shards import write_shards
from modelyard.components.training.labelled_rows import LabelledRows, check_alike, fit_features, open_rows
from modelyard.components.training.requested import check_range, override, positive_weight
from modelyard.components.training.session import Interrupted, Plan, Session, Trained, training_session
from modelyard.components.training.versions import library_versions

TRAINERS = ("xgboost", "torch")
BACKENDS = ("auto", "local", "kubernetes")
_POLL_SECONDS = {"local": 0.2, "kubernetes": 3.0}
_PROGRESS_SECONDS = 15.0
_SUFFIX = ".checkpoint.npz"


@dataclass(frozen=True)
class DistributedParameters:
    """What ``train_distributed`` can be told; see its documentation for each."""

    trainer: str = "xgboost"
    nodes: int = 2
    parameters: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    false_negative_cost: float = 10.0
    false_positive_cost: float = 1.0
    seed: int = 0
    checkpoint_uri: str = ""
    backend: str = "auto"
    cluster: dict[str, Any] = field(default_factory=dict)
    timeout_seconds: int = 86_400

    def check(self) -> None:
        """Checks every value but ``parameters`` and ``cluster``.

        Raises:
            InvalidInput: a value is out of its range.
        """
        if self.trainer not in TRAINERS:
            raise InvalidInput("trainer", self.trainer, f"give {' or '.join(TRAINERS)}")
        if self.backend not in BACKENDS:
            raise InvalidInput("backend", self.backend, f"give {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
        check_range("nodes", self.nodes, 1, MOST_NODES)
        check_range("timeout_seconds", self.timeout_seconds, 60)


@dataclass(frozen=True)
class _Work:
    """What is trained, whichever the trainer: its parameters, and what to tell the nodes and MLflow of them."""

    chosen: Any
    device: str
    shaping: dict[str, Any]
    learned: dict[str, Any]
    rounds: int
    patience: int
    checkpoint_rounds: int
    model_file: str
    modules: tuple[str, ...]
    flavour: Callable[[dict[str, str]], dict[str, dict[str, Any]]]


def train_on_nodes(
    train_path: str | os.PathLike[str],
    validation_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model_name: str,
    parameters: DistributedParameters,
) -> Trained:
    """Trains a classifier on several nodes and writes it as a model directory.

    Args:
        train_path: rows to learn from, as ``write_dataset`` wrote them.
        validation_path: later rows, for early stopping and the decision threshold; every node must be able to hold them.
        destination: the model directory to write.
        model_name: name of the model, which its MLflow experiment gets too.
        parameters: how to train.

    Raises:
        InvalidInput: a parameter or the data cannot be used.
        NotAvailable: the device, MLflow, the store, the SDK or the cluster is not there.
        JobFailed: a node failed, or the job took too long.
        Interrupted: SIGTERM arrived; the job is ended, and the same call goes on from its checkpoint.
    """
    check_model_name(model_name)
    parameters.check()
    placement = parse_node_placement(parameters.cluster)
    backend = parameters.backend
    if backend == "auto":
        backend = "kubernetes" if settings.in_cluster() else "local"
    train, validation = open_rows(train_path, "train"), open_rows(validation_path, "validation")
    check_alike(train, validation)
    spec = ModelSpec(fit_features(train), train.info.roles.label, "", 0.5)
    work = _work(parameters, backend, train, spec)
    spec = replace(spec, model_file=work.model_file)
    place = work.chosen.checkpoint_uri or settings.checkpoints()
    _check_place(place, backend)
    plan = Plan(
        trainer="train_distributed",
        model_name=model_name,
        train=train,
        validation=validation,
        parameters={**work.shaping, "trainer": parameters.trainer, "nodes": parameters.nodes},
        versions=library_versions(*(work.modules if backend == "local" else ())),
        rounds=work.rounds,
        patience=work.patience,
        checkpoint_uri=place,
        checkpoint_rounds=0,
    )
    with training_session(plan) as session:
        key = session.checkpoint_uri.rsplit("/", 1)[1].removesuffix(_SUFFIX)
        folder = JobFolder(session.checkpoint_uri.removesuffix(_SUFFIX) + ".job")
        job = _job(key, folder, work, backend, placement, model_name, parameters, session)
        learned = _learned(folder, work.model_file)
        if learned is None:
            _assign(folder, work, spec, train, validation, parameters)
            _run(session, job, folder, backend, parameters.timeout_seconds)
            learned = _learned(folder, work.model_file)
        if learned is None:
            raise JobFailed(f"the job {job.name} ended well but left no model in {folder.uri}: run the step again")
        result, content = learned
        session.plan = replace(plan, versions=result["versions"])
        session.run.describe({f"version_{name}": version for name, version in result["versions"].items()}, {}, {})
        session.history = result["history"]
        trained = session.deliver(
            destination=Path(destination),
            spec=spec,
            write_model=lambda path: _write(path, content),
            flavour=work.flavour(result["versions"]),
            rounds=session.best_round + 1,
            false_negative_cost=work.chosen.false_negative_cost,
            false_positive_cost=work.chosen.false_positive_cost,
            seed=work.chosen.seed,
        )
        # The job first: one that is complete and has no result would be in the way of whoever repeats the step.
        job.stop()
        folder.remove(parameters.nodes)
        return trained


def _work(parameters: DistributedParameters, backend: str, train: LabelledRows, spec: ModelSpec) -> _Work:
    common = {
        "device": parameters.device,
        "false_negative_cost": parameters.false_negative_cost,
        "false_positive_cost": parameters.false_positive_cost,
        "seed": parameters.seed,
        "checkpoint_uri": parameters.checkpoint_uri,
    }
    if parameters.trainer == "xgboost":
        trees, more = override(boosted_trees.BoostingParameters(**common), parameters.parameters)  # type: ignore[arg-type]
        trees = _with_threads(trees.with_more(more), backend, parameters.nodes)
        trees.check()
        if trees.memory_limit_gib:
            raise InvalidInput("memory_limit_gib", trees.memory_limit_gib, "nodes hold their rows in memory; give more nodes")
        boosted_trees.check_names(spec.features)
        boosted_trees.check_further_parameters(more, spec.features)
        device = _device(trees.device, backend, parameters.nodes, boosted_trees.choose_device)
        weight = positive_weight(trees.imbalance, train.rows, train.positives)
        learned = boosted_trees.learned_parameters(trees, device, weight)
        return _Work(
            chosen=trees,
            device=device,
            shaping=boosted_trees.shaping_parameters(trees, learned),
            learned=learned,
            rounds=trees.rounds,
            patience=trees.early_stopping_rounds,
            checkpoint_rounds=trees.checkpoint_rounds,
            model_file=boosted_trees.MODEL_FILE,
            modules=("xgboost", "numpy"),
            flavour=lambda versions: boosted_trees.flavour(versions["xgboost"]),
        )
    network, more = override(tabular_network.NetworkParameters(**common), parameters.parameters)  # type: ignore[arg-type]
    if more:
        raise InvalidInput("parameters", sorted(more), "train_torch has no such parameter; see its documentation")
    network = _with_threads(network, backend, parameters.nodes)
    network.check()
    device = _device(network.device, backend, parameters.nodes, tabular_network.choose_device)
    mixed = network.mixed_precision and device == "cuda"
    return _Work(
        chosen=network,
        device=device,
        shaping=tabular_network.shaping_parameters(network, device, mixed, train),
        learned={},
        rounds=network.epochs,
        patience=network.early_stopping_epochs,
        checkpoint_rounds=network.checkpoint_epochs,
        model_file=tabular_network.MODEL_FILE,
        modules=("torch", "onnx", "onnxruntime", "numpy"),
        flavour=lambda versions: tabular_network.flavour(versions["onnx"]),
    )


def _with_threads(chosen: Any, backend: str, nodes: int) -> Any:
    """Divides this machine's processors among the nodes, if they are its processes and nothing else was asked for."""
    if chosen.threads or backend != "local":
        return chosen
    return replace(chosen, threads=max(1, (os.cpu_count() or 1) // nodes))


def _device(asked: str, backend: str, nodes: int, choose: Callable[[str], str]) -> str:
    if backend == "kubernetes":
        # The step's own pod has no GPU; that a node's has one, the node checks.
        return "cpu" if asked == "auto" else asked if asked == "cuda" else choose(asked)
    if asked == "auto" and cuda_devices() < nodes:
        return "cpu"
    if asked == "cuda" and 0 < cuda_devices() < nodes:
        raise NotAvailable(
            f"device = 'cuda': each of {nodes} nodes needs a GPU of its own, and there are {cuda_devices()}: give fewer nodes"
        )
    return choose(asked)


def _check_place(place: str, backend: str) -> None:
    if backend == "local":
        if not place:
            raise InvalidInput("checkpoint_uri", place, "give a folder or an object store to keep rows and checkpoints in")
        return
    if not place:
        raise NotAvailable(
            "rows and checkpoints have no place: set checkpoint_uri, or MODELYARD_MODEL_STORE on the pod, to an object store"
        )
    if uris.local_path(place) is not None:
        raise InvalidInput("checkpoint_uri", place, "the nodes are other machines; give s3://, gs:// or minio://")


def _job(
    key: str,
    folder: JobFolder,
    work: _Work,
    backend: str,
    placement: NodePlacement,
    model_name: str,
    parameters: DistributedParameters,
    session: Session,
) -> Job:
    # A pod's name is the job's and 12 characters, and must be one label of a host's name.
    name = f"modelyard-{key[:24]}"
    if backend == "kubernetes":
        from modelyard.components.training.distributed.cluster_job import ClusterJob

        return ClusterJob(
            name,
            parameters.trainer,
            parameters.nodes,
            work.device,
            folder.uri,
            model_name,
            placement,
            parameters.timeout_seconds,
            lambda: session.stop_if_asked(dict),
        )
    from modelyard.components.training.distributed.local_job import LocalJob

    return LocalJob(name, parameters.trainer, parameters.nodes, folder.uri, lambda: session.stop_if_asked(dict))


def _learned(folder: JobFolder, model_file: str) -> tuple[dict[str, Any], bytes] | None:
    """What the nodes left: the result and the model; None if either is not there (any more)."""
    result = folder.get_json(RESULT)
    if result is None:
        return None
    with tempfile.TemporaryDirectory(prefix="modelyard-") as aside:
        model = folder.get(MODEL, Path(aside, model_file))
        return None if model is None else (result, model.read_bytes())


def _assign(
    folder: JobFolder,
    work: _Work,
    spec: ModelSpec,
    train: LabelledRows,
    validation: LabelledRows,
    parameters: DistributedParameters,
) -> None:
    """Divides the rows; the assignment, written last, says that all were there, and a store's expiry may have taken some."""
    names = [shard(rank) for rank in range(parameters.nodes)]
    if folder.has(ASSIGNMENT) and all(folder.has(name) for name in (*names, VALIDATION)):
        return
    with tempfile.TemporaryDirectory(prefix="modelyard-") as aside:
        write_shards(train, parameters.nodes, [Path(aside, name) for name in names])
        write_shards(validation, 1, [Path(aside, VALIDATION)])
        for name in (*names, VALIDATION):
            folder.put(name, Path(aside, name))
    chosen = asdict(work.chosen)
    chosen["checkpoint_uri"] = ""
    assignment = Assignment(
        trainer=parameters.trainer,
        nodes=parameters.nodes,
        features=[asdict(feature) for feature in spec.features],
        label=spec.label,
        model_file=work.model_file,
        parameters=chosen,
        shaping=work.shaping,
        learned=work.learned,
        device=work.device,
        rounds=work.rounds,
        patience=work.patience,
        checkpoint_rounds=work.checkpoint_rounds,
        share=train.positives / train.rows,
        train_digest=train.digest,
        validation_digest=validation.digest,
    )
    folder.put_json(ASSIGNMENT, assignment.as_json())


def _run(session: Session, job: Job, folder: JobFolder, backend: str, timeout_seconds: int) -> None:
    """Starts the job, or finds it, and waits for its end.

    Raises:
        JobFailed: it failed, or took too long.
        NotAvailable: it cannot be started, or how it is doing cannot be learned.
        Interrupted: SIGTERM arrived; the job is ended.
    """
    ends = time.monotonic() + timeout_seconds
    looked = time.monotonic()
    try:
        job.start()
        while True:
            session.stop_if_asked(dict)
            state = job.state()
            if state.status == "completed":
                return
            if state.status == "failed":
                raise JobFailed(
                    f"the job {job.name} failed; run the step again and it goes on from its last checkpoint\n{state.reason}"
                )
            if time.monotonic() > ends:
                job.stop()
                raise JobFailed(f"the job {job.name} was not done in {timeout_seconds} s and is ended: raise timeout_seconds")
            if time.monotonic() - looked > _PROGRESS_SECONDS:
                looked = time.monotonic()
                session.run.log_history(_progress(folder))
            time.sleep(_POLL_SECONDS[backend])
    except BaseException as error:
        # A local job would go on, and hold up the end of this process; one on a cluster is found again by the next attempt.
        if backend == "local" or isinstance(error, (Interrupted, KeyboardInterrupt)):
            job.stop()
        raise


def _progress(folder: JobFolder) -> dict[str, list[float]]:
    """The rounds so far, for MLflow; nothing where the store does not answer, as the next look makes up for it."""
    try:
        return folder.get_json(PROGRESS) or {}
    except NotAvailable as error:
        print(f"{error}; training goes on, and its progress is logged later.", flush=True)
        return {}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
