"""A neural network for tabular rows with PyTorch: the work behind ``train_torch``.

Numbers are standardised, with an indicator for those that were missing among the training rows; categories are embedded; a
few fully connected layers follow. All of it, imputation included, is part of the ONNX graph, so the delivered model takes
the very matrix that ``ModelSpec.encode`` gives, as a boosted one does.

Every epoch draws its order of rows and its dropout from the seed and its own number, so a training that is stopped and run
again on a CPU with as many threads reaches the same bytes.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.artifacts.scoring import open_scorer
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.evaluation.metrics import average_precision, curve, log_losses
from modelyard.components.training.devices import device_for
from modelyard.components.training.labelled_rows import LabelledRows, check_alike, fit_features, open_rows
from modelyard.components.training.onnx_graph import write_network
from modelyard.components.training.requested import check_costs, check_range, positive_weight
from modelyard.components.training.session import CRITERION, Plan, Session, Trained, training_session
from modelyard.components.training.versions import library_versions

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.onnx"
PARITY = 1e-5
CLIP = 10.0
PARITY_ROWS = 20_000
_SCORING_ROWS = 65_536
_MAX_EMBEDDING = 16
_BEST = "best/"
_NOW = "now/"
_OPTIMIZER = "optimizer/"


class ParityError(ModelyardError):
    """The exported model answers differently from the one that was trained. It is not delivered."""


@dataclass(frozen=True)
class NetworkParameters:
    """What ``train_torch`` can be told; see its documentation for each."""

    device: str = "auto"
    epochs: int = 50
    early_stopping_epochs: int = 8
    hidden: list = field(default_factory=lambda: [128, 64])
    dropout: float = 0.1
    learning_rate: float = 0.001
    weight_decay: float = 0.0001
    batch_size: int = 1024
    mixed_precision: bool = True
    imbalance: str = "auto"
    false_negative_cost: float = 10.0
    false_positive_cost: float = 1.0
    seed: int = 0
    threads: int = 0
    checkpoint_uri: str = ""
    checkpoint_epochs: int = 1

    def check(self) -> None:
        """Checks every value.

        Raises:
            InvalidInput: a value is out of its range.
        """
        check_range("epochs", self.epochs, 1)
        check_range("early_stopping_epochs", self.early_stopping_epochs, 0)
        if not self.hidden or not all(type(width) is int and 1 <= width <= 65_536 for width in self.hidden):
            raise InvalidInput("hidden", self.hidden, "give the width of each hidden layer, such as [128, 64]")
        check_range("dropout", self.dropout, 0, 0.95)
        check_range("learning_rate", self.learning_rate, 0, 1, open_low=True)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("batch_size", self.batch_size, 1)
        check_costs(self.false_negative_cost, self.false_positive_cost)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("threads", self.threads, 0)
        check_range("checkpoint_epochs", self.checkpoint_epochs, 0)


@dataclass(frozen=True)
class Preparation:
    """What the graph does to the encoded matrix before the first layer, fitted to the training rows.

    Attributes:
        numbers: positions of the number columns.
        means, scales: float32, one for each of ``numbers``; what is missing becomes the mean.
        indicated: positions, within ``numbers``, of those that were missing somewhere.
        categories: position and number of levels of each category column.
    """

    numbers: tuple[int, ...]
    means: np.ndarray
    scales: np.ndarray
    indicated: tuple[int, ...]
    categories: tuple[tuple[int, int], ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each category's embedding."""
        return tuple(min(_MAX_EMBEDDING, (levels + 3) // 2) for _, levels in self.categories)

    @property
    def width(self) -> int:
        """Width of the first layer's input."""
        return len(self.numbers) + len(self.indicated) + sum(self.widths)


def train_network(
    train_path: str | os.PathLike[str],
    validation_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model_name: str,
    parameters: NetworkParameters,
) -> Trained:
    """Trains a classifier and writes it as a model directory.

    Args:
        train_path: rows to learn from, as ``write_dataset`` wrote them; their encoded matrix must fit into memory.
        validation_path: later rows, for early stopping and the decision threshold.
        destination: the model directory to write.
        model_name: name of the model, which its MLflow experiment gets too.
        parameters: how to train.

    Raises:
        InvalidInput: a parameter or the data cannot be used.
        NotAvailable: PyTorch, the device or MLflow is not there.
        Interrupted: SIGTERM arrived; the same call goes on from the checkpoint.
        ParityError: the exported model differs from the trained one.
    """
    import_torch()
    check_model_name(model_name)
    parameters.check()
    device = choose_device(parameters.device)
    train, validation = open_rows(train_path, "train"), open_rows(validation_path, "validation")
    check_alike(train, validation)
    spec = ModelSpec(fit_features(train), train.info.roles.label, MODEL_FILE, 0.5)
    mixed = parameters.mixed_precision and device == "cuda"
    plan = Plan(
        trainer="train_torch",
        model_name=model_name,
        train=train,
        validation=validation,
        parameters=shaping_parameters(parameters, device, mixed, train),
        versions=library_versions("torch", "onnx", "onnxruntime", "numpy"),
        rounds=parameters.epochs,
        patience=parameters.early_stopping_epochs,
        checkpoint_uri=parameters.checkpoint_uri,
        checkpoint_rounds=parameters.checkpoint_epochs,
    )
    with training_session(plan) as session, reproducible(parameters.threads, device):
        matrix = encoded(train, spec)
        held_out = encoded(validation, spec)
        network = Network(prepare(matrix, spec), parameters)
        share = train.positives / train.rows
        fit(session, network, parameters, device, mixed, matrix, train.labels, held_out, validation.labels, share, Alone())
        return session.deliver(
            destination=Path(destination),
            spec=spec,
            write_model=lambda path: write_checked(network, path, spec, held_out[:PARITY_ROWS]),
            flavour=flavour(plan.versions["onnx"]),
            rounds=session.best_round + 1,
            false_negative_cost=parameters.false_negative_cost,
            false_positive_cost=parameters.false_positive_cost,
            seed=parameters.seed,
        )


def shaping_parameters(parameters: NetworkParameters, device: str, mixed: bool, train: LabelledRows) -> dict[str, Any]:
    """Everything that the delivered model depends on besides the rows, and the weight of a positive one."""
    return {
        "device": device,
        "epochs": parameters.epochs,
        "early_stopping_epochs": parameters.early_stopping_epochs,
        "hidden": parameters.hidden,
        "dropout": parameters.dropout,
        "learning_rate": parameters.learning_rate,
        "weight_decay": parameters.weight_decay,
        "batch_size": parameters.batch_size,
        "mixed_precision": mixed,
        "imbalance": parameters.imbalance,
        "positive_weight": positive_weight(parameters.imbalance, train.rows, train.positives),
        "false_negative_cost": parameters.false_negative_cost,
        "false_positive_cost": parameters.false_positive_cost,
        "seed": parameters.seed,
    }


def flavour(version: str) -> dict[str, dict[str, Any]]:
    """MLflow's flavour of the delivered model, which onnx ``version`` wrote."""
    return {"onnx": {"data": MODEL_FILE, "onnx_version": version, "providers": ["CPUExecutionProvider"]}}


class Alone:
    """A node that trains by itself; several that train one network share these verbs (see ``distributed.network``).

    Attributes:
        rank: this node's number.
        size: number of nodes.
    """

    rank, size = 0, 1

    def steps(self, rows: int, batch: int) -> int:
        """Steps of an epoch for ``rows`` rows of this node's, ``batch`` at a time."""
        return -(-rows // batch)

    def average(self, module: Any, rows: int) -> None:
        """Makes the gradients of ``module``, means over ``rows`` rows, the means over all nodes' rows."""

    def from_first(self, value: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What ``value`` gives on the first node, on every node."""
        return value()


def choose_device(asked: str) -> str:
    """``cpu`` or ``cuda``: what was asked for, or for ``auto`` the GPU if there is one that this PyTorch can use.

    Raises:
        InvalidInput: ``asked`` is something else.
        NotAvailable: ``cuda`` was asked for and PyTorch or the machine lacks it.
    """
    return device_for(asked, _why_no_cuda)


def _why_no_cuda() -> str:
    torch = import_torch()
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install the CUDA build"
    return "" if torch.cuda.is_available() else "PyTorch finds no usable GPU; give the step one"


def prepare(matrix: np.ndarray, spec: ModelSpec) -> Preparation:
    """Fits the preparation to the training rows.

    Args:
        matrix: encoded rows, float32, shape (rows, features).
        spec: the features' kinds.
    """
    numbers, categories = [], []
    for position, feature in enumerate(spec.features):
        if feature.categories is None:
            numbers.append(position)
        else:
            categories.append((position, len(feature.categories)))
    means, scales, indicated = [], [], []
    for position, column in enumerate(numbers):
        values = matrix[:, column].astype(np.float64)
        known = values[~np.isnan(values)]
        spread = float(known.std()) if len(known) else 0.0
        means.append(float(known.mean()) if len(known) else 0.0)
        scales.append(spread if spread > 0 else 1.0)
        if len(known) < len(values):
            indicated.append(position)
    return Preparation(
        numbers=tuple(numbers),
        means=np.array(means, np.float32),
        scales=np.array(scales, np.float32),
        indicated=tuple(indicated),
        categories=tuple(
            (position, len(feature.categories))
            for position, feature in enumerate(spec.features)
            if feature.categories is not None
        ),
    )


class Network:
    """The trained part as a module, and the prepared input that it takes.

    Attributes:
        preparation: what is done to the encoded matrix before.
        module: the trained part.
    """

    def __init__(self, preparation: Preparation, parameters: NetworkParameters) -> None:
        torch = import_torch()
        self.preparation = preparation
        torch.manual_seed(parameters.seed)
        layers: list[Any] = []
        width = preparation.width
        for size in parameters.hidden:
            layers += [torch.nn.Linear(width, size), torch.nn.ReLU(), torch.nn.Dropout(parameters.dropout)]
            width = size
        tables = [
            torch.nn.Embedding(levels + 1, size)
            for (_, levels), size in zip(preparation.categories, preparation.widths, strict=True)
        ]
        for table in tables:
            torch.nn.init.normal_(table.weight, std=0.1)
            # Row 0 stands for missing and unseen: neutral until the training rows teach it something.
            torch.nn.init.zeros_(table.weight[0:1])
        self.module = torch.nn.ModuleDict(
            {
                "tables": torch.nn.ModuleList(tables),
                "layers": torch.nn.Sequential(*layers),
                "out": torch.nn.Linear(width, 1),
            }
        )

    def logits(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Log-odds, shape (rows,), for encoded rows."""
        torch = import_torch()
        preparation = self.preparation
        parts = []
        if preparation.numbers:
            numbers = rows[:, list(preparation.numbers)]
            missing = torch.isnan(numbers)
            means = torch.from_numpy(preparation.means).to(rows.device)
            scales = torch.from_numpy(preparation.scales).to(rows.device)
            parts.append(torch.where(missing, 0.0, (numbers - means) / scales).clamp(-CLIP, CLIP))
            if preparation.indicated:
                parts.append(missing[:, list(preparation.indicated)].to(rows.dtype))
        for (position, _), table in zip(preparation.categories, self.module["tables"], strict=True):
            codes = rows[:, position]
            parts.append(table(torch.where(torch.isnan(codes), -1.0, codes).to(torch.int64) + 1))
        hidden = self.module["layers"](torch.cat(parts, dim=1))
        return self.module["out"](hidden).squeeze(1)

    def scores(self, rows: "torch.Tensor") -> np.ndarray:
        """Probabilities, float32, shape (rows,)."""
        torch = import_torch()
        self.module.eval()
        with torch.no_grad():
            parts = [torch.sigmoid(self.logits(part)).cpu() for part in rows.split(_SCORING_ROWS)]
        return torch.cat(parts).numpy()


def fit(
    session: Session,
    network: Network,
    parameters: NetworkParameters,
    device: str,
    mixed: bool,
    matrix: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    share: float,
    team: Alone,
) -> None:
    """Trains to the end, and leaves the network on the CPU with the weights of the best epoch.

    Args:
        session: keeps history and checkpoints.
        network: what to train.
        parameters: how.
        device: ``cpu`` or ``cuda``.
        mixed: whether to compute in 16 bits.
        matrix, labels: this node's encoded training rows.
        held_out, held_out_labels: validation rows; used on the first node alone.
        share: share of positives among all training rows.
        team: the nodes that learn together; a batch is divided among them.
    """
    torch = import_torch()
    module = network.module
    weight = float(session.plan.parameters["positive_weight"])
    with torch.no_grad():
        # Starting at the classes' own odds spares the first epochs from learning them.
        module["out"].bias.fill_(math.log(share * weight / (1 - share)))
    module.to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay)
    best = _restore(session, module, optimizer)
    rows = torch.from_numpy(matrix).to(device)
    wanted = torch.from_numpy(labels.astype(np.float32)).to(device)
    later = torch.from_numpy(held_out).to(device)
    half = torch.bfloat16 if mixed and torch.cuda.is_bf16_supported() else torch.float16
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight, device=device))
    batch = -(-parameters.batch_size // team.size)
    steps = team.steps(len(rows), batch)
    kept = session.arrays

    def judge() -> dict[str, float]:
        scores = network.scores(later)
        if not np.isfinite(scores).all():
            return {CRITERION: math.nan}
        losses = log_losses(held_out_labels, scores.astype(np.float64))
        return {CRITERION: average_precision(curve(held_out_labels, scores)), "round_log_loss": float(losses.mean())}

    while not session.finished:
        epoch = session.rounds_done
        torch.manual_seed((parameters.seed * 1_000_003 + epoch) * team.size + team.rank)
        # Made anew each epoch, so that a resumed training scales its gradients alike.
        scaler = torch.amp.GradScaler(device, enabled=mixed and half == torch.float16)
        module.train()
        order = torch.randperm(len(rows)).to(device)
        for step in range(steps):
            session.stop_if_asked(lambda kept=kept: kept)  # type: ignore[misc]
            chosen = order[step * batch : (step + 1) * batch]
            optimizer.zero_grad(set_to_none=True)
            # A node may have a row less than another, and so none for the last step; it takes part with a weight of 0.
            some = chosen if len(chosen) else order[:1]
            with torch.autocast(device, dtype=half, enabled=mixed):
                loss = loss_of(network.logits(rows[some]).float(), wanted[some])
            scaler.scale(loss).backward()
            team.average(module, len(chosen))
            scaler.step(optimizer)
            scaler.update()
        metrics = team.from_first(judge)
        if math.isnan(metrics[CRITERION]):
            raise ModelyardError(
                f"epoch {epoch} gave scores that are no numbers: lower learning_rate, {parameters.learning_rate}"
            )
        if not epoch or metrics[CRITERION] > max(session.history[CRITERION]):
            best = _weights(module)
        kept = _snapshot(module, optimizer, best)
        session.end_round(metrics, lambda kept=kept: kept)  # type: ignore[misc]
    module.load_state_dict({name: torch.from_numpy(value) for name, value in best.items()})
    module.to("cpu").eval()


def write_checked(network: Network, path: Path, spec: ModelSpec, probes: np.ndarray) -> None:
    """Writes the network as ONNX, and compares what it answers with what the network itself does.

    Args:
        network: on the CPU.
        path: file to write.
        spec: what the model needs.
        probes: encoded rows to compare on.

    Raises:
        ParityError: the answers differ.
    """
    layers = sum(name.startswith("layers.") and name.endswith(".weight") for name in network.module.state_dict())
    write_network(path, network.preparation, _weights(network.module), layers, CLIP)
    _check_parity(network, path, spec, probes)


def _weights(module: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def _snapshot(module: Any, optimizer: Any, best: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {f"{_NOW}{name}": value for name, value in _weights(module).items()}
    arrays |= {f"{_BEST}{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        arrays |= {f"{_OPTIMIZER}{number}/{name}": tensor.detach().cpu().numpy() for name, tensor in state.items()}
    return arrays


def _restore(session: Session, module: Any, optimizer: Any) -> dict[str, np.ndarray]:
    """Loads a snapshot, if there is one, and returns the best weights so far."""
    torch = import_torch()
    if not session.arrays:
        return {}
    named: dict[str, dict[str, np.ndarray]] = {_NOW: {}, _BEST: {}, _OPTIMIZER: {}}
    for name, value in session.arrays.items():
        prefix, rest = name.split("/", 1)
        named[f"{prefix}/"][rest] = value
    module.load_state_dict({name: torch.from_numpy(value) for name, value in named[_NOW].items()})
    states: dict[int, dict[str, Any]] = {}
    for name, value in named[_OPTIMIZER].items():
        number, key = name.split("/")
        states.setdefault(int(number), {})[key] = torch.from_numpy(np.asarray(value))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return named[_BEST]


def encoded(rows: LabelledRows, spec: ModelSpec) -> np.ndarray:
    """All rows as the model's input matrix, float32, shape (rows, features)."""
    matrix = np.empty((rows.rows, len(spec.features)), np.float32)
    start = 0
    for part, _ in rows.matrices(spec):
        matrix[start : start + len(part)] = part
        start += len(part)
    return matrix


def _check_parity(network: Network, path: Path, spec: ModelSpec, rows: np.ndarray) -> None:
    torch = import_torch()
    probes = np.vstack([rows, np.full((1, rows.shape[1]), np.nan, np.float32)])
    trained = network.scores(torch.from_numpy(probes))
    exported = open_scorer(path.parent, spec).score_matrix(probes)
    worst = float(np.abs(trained - exported).max())
    if not worst <= PARITY:
        raise ParityError(
            f"the exported model differs from the trained one by up to {worst:.2g}, more than {PARITY:g}: it is not delivered; "
            "check the versions of onnx and onnxruntime"
        )


@contextmanager
def reproducible(threads: int, device: str) -> Iterator[None]:
    """Deterministic algorithms on the CPU and a given number of threads, in the block only."""
    torch = import_torch()
    threads_before, strict_before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if threads:
        torch.set_num_threads(threads)
    # On a GPU some have no deterministic form that is fast: there only the seed is fixed.
    torch.use_deterministic_algorithms(device == "cpu")
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(strict_before)


def import_torch() -> Any:
    """The ``torch`` module.

    Raises:
        NotAvailable: it is not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError as error:
        raise NotAvailable("PyTorch is not installed: install modelyard[torch], or train with train_xgboost") from error
    return torch
