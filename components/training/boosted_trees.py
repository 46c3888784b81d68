"""Gradient-boosted trees with XGBoost: the work behind ``train_xgboost``.

**A stopped training goes on to the very bytes that it would have reached.** XGBoost alone does not: its samplers of rows and
columns draw from a state that no model file holds. Here that state is made anew before every round, from the seed
and the round's number (see ``_renew_samplers``). Neither the number of threads nor keeping the rows on disk changes the bytes
on a CPU, where the histograms are summed up in whole numbers' order; a GPU gives another model than a CPU does.

**base_score is always 0.5.** Otherwise XGBoost >= 3.1 writes it as a vector, which readers of the 2.x line drop without an
error; and 0.5 learns rare positives better.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.components.artifacts.model import Feature, ModelSpec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.artifacts.xgboost_library import load_xgboost
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training.devices import cuda_devices, device_for
from modelyard.components.training.labelled_rows import LabelledRows, check_alike, fit_features, open_rows
from modelyard.components.training.memory import available_bytes
from modelyard.components.training.requested import check_costs, check_range, positive_weight
from modelyard.components.training.session import CRITERION, Plan, Session, Trained, training_session
from modelyard.components.training.versions import library_versions

if TYPE_CHECKING:
    import xgboost

MODEL_FILE = "model.ubj"
_BOOSTER = "booster"
# What XGBoost reports of the validation rows after each round, and what it is called here.
_METRICS = {"aucpr": CRITERION, "logloss": "round_log_loss"}
# Names under which XGBoost knows a parameter that has a name of its own here.
_OWN_NAMES = {
    "eta": "learning_rate",
    "scale_pos_weight": "imbalance",
    "n_jobs": "threads",
    "nthread": "threads",
    "random_state": "seed",
    "num_boost_round": "rounds",
    "n_estimators": "rounds",
}
_SAMPLING = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")
_GIB = 2**30
# Per row, besides the features' bins: label, prediction, gradient pair, position in the tree.
_ROW_BYTES = 32


@dataclass(frozen=True)
class BoostingParameters:
    """What ``train_xgboost`` can be told; see its documentation for each.

    Attributes:
        more: further parameters of XGBoost's trees and objective, by XGBoost's names.
    """

    device: str = "auto"
    rounds: int = 500
    early_stopping_rounds: int = 50
    learning_rate: float = 0.1
    max_depth: int = 6
    subsample: float = 1.0
    colsample_bytree: float = 1.0
    imbalance: str = "auto"
    false_negative_cost: float = 10.0
    false_positive_cost: float = 1.0
    seed: int = 0
    threads: int = 0
    memory_limit_gib: float = 0.0
    checkpoint_uri: str = ""
    checkpoint_rounds: int = 50
    more: dict[str, Any] = field(default_factory=dict)

    def with_more(self, more: dict[str, Any]) -> "BoostingParameters":
        """A copy with further parameters of XGBoost."""
        return replace(self, more=more)

    def check(self) -> None:
        """Checks every value but those of ``more``, which XGBoost checks.

        Raises:
            InvalidInput: a value is out of its range.
        """
        check_range("rounds", self.rounds, 1)
        check_range("early_stopping_rounds", self.early_stopping_rounds, 0)
        check_range("learning_rate", self.learning_rate, 0, 1, open_low=True)
        check_range("max_depth", self.max_depth, 0, 64)
        check_range("subsample", self.subsample, 0, 1, open_low=True)
        check_range("colsample_bytree", self.colsample_bytree, 0, 1, open_low=True)
        check_costs(self.false_negative_cost, self.false_positive_cost)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("threads", self.threads, 0)
        check_range("memory_limit_gib", self.memory_limit_gib, 0)
        check_range("checkpoint_rounds", self.checkpoint_rounds, 0)


def train_boosted_trees(
    train_path: str | os.PathLike[str],
    validation_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model_name: str,
    parameters: BoostingParameters,
) -> Trained:
    """Trains a classifier and writes it as a model directory.

    Args:
        train_path: rows to learn from, as ``write_dataset`` wrote them.
        validation_path: later rows, for early stopping and the decision threshold.
        destination: the model directory to write.
        model_name: name of the model, which its MLflow experiment gets too.
        parameters: how to train.

    Raises:
        InvalidInput: a parameter or the data cannot be used.
        NotAvailable: the device or MLflow is not there.
        Interrupted: SIGTERM arrived; the same call goes on from the checkpoint.
    """
    check_model_name(model_name)
    parameters.check()
    device = choose_device(parameters.device)
    train, validation = open_rows(train_path, "train"), open_rows(validation_path, "validation")
    check_alike(train, validation)
    features = fit_features(train)
    check_names(features)
    check_further_parameters(parameters.more, features)
    weight = positive_weight(parameters.imbalance, train.rows, train.positives)
    external = needs_external_memory(train, parameters)
    learned = learned_parameters(parameters, device, weight)
    shaping = shaping_parameters(parameters, learned)
    plan = Plan(
        trainer="train_xgboost",
        model_name=model_name,
        train=train,
        validation=validation,
        parameters=shaping,
        versions=library_versions("xgboost", "numpy"),
        rounds=parameters.rounds,
        patience=parameters.early_stopping_rounds,
        checkpoint_uri=parameters.checkpoint_uri,
        checkpoint_rounds=parameters.checkpoint_rounds,
    )
    spec = ModelSpec(features, train.info.roles.label, MODEL_FILE, 0.5)
    with training_session(plan) as session:
        session.run.tag({"modelyard.external_memory": str(external).lower()})
        with _cache_folder(external, Path(destination)) as cache:
            model = grow_trees(session, learned, parameters.threads, binned_rows(train, validation, spec, parameters, cache))
        return session.deliver(
            destination=Path(destination),
            spec=spec,
            write_model=model.save_model,
            flavour=flavour(plan.versions["xgboost"]),
            rounds=session.best_round + 1,
            false_negative_cost=parameters.false_negative_cost,
            false_positive_cost=parameters.false_positive_cost,
            seed=parameters.seed,
        )


def learned_parameters(parameters: BoostingParameters, device: str, weight: float) -> dict[str, Any]:
    """What XGBoost is told, by its own names.

    Args:
        parameters: what was asked for.
        device: ``cpu`` or ``cuda``.
        weight: weight of a positive row.
    """
    return {
        "objective": "binary:logistic",
        "base_score": 0.5,
        "tree_method": "hist",
        "learning_rate": parameters.learning_rate,
        "max_depth": parameters.max_depth,
        "subsample": parameters.subsample,
        "colsample_bytree": parameters.colsample_bytree,
        "scale_pos_weight": weight,
        "seed": parameters.seed,
        "seed_per_iteration": True,
        "device": device,
        **parameters.more,
    }


def shaping_parameters(parameters: BoostingParameters, learned: dict[str, Any]) -> dict[str, Any]:
    """Everything that the delivered model depends on besides the rows."""
    return {
        **learned,
        "rounds": parameters.rounds,
        "early_stopping_rounds": parameters.early_stopping_rounds,
        "imbalance": parameters.imbalance,
        "false_negative_cost": parameters.false_negative_cost,
        "false_positive_cost": parameters.false_positive_cost,
    }


def flavour(version: str) -> dict[str, dict[str, Any]]:
    """MLflow's flavour of the delivered model, which XGBoost ``version`` wrote."""
    return {
        "xgboost": {
            "data": MODEL_FILE,
            "model_class": "xgboost.core.Booster",
            "model_format": "ubj",
            "xgb_version": version,
        }
    }


def choose_device(asked: str) -> str:
    """``cpu`` or ``cuda``: what was asked for, or for ``auto`` the GPU if there is one that this XGBoost can use.

    Raises:
        InvalidInput: ``asked`` is something else.
        NotAvailable: ``cuda`` was asked for and XGBoost or the machine lacks it; XGBoost itself would only warn.
    """
    return device_for(asked, _why_no_cuda)


def _why_no_cuda() -> str:
    if not load_xgboost().build_info().get("USE_CUDA"):
        return "this XGBoost was built without CUDA; install modelyard[cuda] in place of modelyard[cpu]"
    return "" if cuda_devices() else "the NVIDIA driver shows no GPU; give the step one"


def needs_external_memory(train: LabelledRows, parameters: BoostingParameters) -> bool:
    """Whether the training rows would take more memory, as numbers and as bins, than the limit or half of what is free."""
    cell_bytes = 4 + (1 if int(parameters.more.get("max_bin", 256)) <= 256 else 2)
    needed = train.rows * (len(train.schema) * cell_bytes + _ROW_BYTES)
    limit = parameters.memory_limit_gib * _GIB or available_bytes() / 2
    return needed > limit


def check_further_parameters(more: dict[str, Any], features: tuple[Feature, ...]) -> None:
    """XGBoost only warns of a name it does not know: ask a booster which ones it does.

    Raises:
        InvalidInput: it knows none of that name, or refuses the value.
    """
    xgboost = load_xgboost()
    fixed = {"objective": "binary:logistic", "tree_method": "hist"}
    row = xgboost.DMatrix(
        np.zeros((1, len(features)), np.float32), np.zeros(1), feature_names=[feature.name for feature in features]
    )
    learner = json.loads(xgboost.Booster(fixed, [row]).save_config())["learner"]
    known = {
        *learner["gradient_booster"]["tree_train_param"],
        *(name for updater in learner["gradient_booster"]["updater"] for name in updater.get("hist_train_param", ())),
        "num_parallel_tree",
    } - set(_OWN_NAMES)
    for name, value in more.items():
        if name in _OWN_NAMES:
            raise InvalidInput(f"parameters[{name!r}]", value, f"give it as {_OWN_NAMES[name]}")
        if name not in known:
            raise InvalidInput("parameters", name, f"there is no such parameter; XGBoost's are {', '.join(sorted(known))}")
        try:
            xgboost.Booster({**fixed, name: value}, [row]).save_config()
        except (xgboost.core.XGBoostError, TypeError, ValueError) as error:
            raise InvalidInput(f"parameters[{name!r}]", value, f"XGBoost refuses it: {_first_line(error)}") from error


def check_names(features: tuple[Feature, ...]) -> None:
    """Checks that XGBoost can keep the features' names.

    Raises:
        InvalidInput: it cannot.
    """
    for feature in features:
        if any(character in feature.name for character in "[]<"):
            raise InvalidInput("column", feature.name, "XGBoost takes no name with '[', ']' or '<'; rename it")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Stack trace" not in line), "unknown")


@contextmanager
def _cache_folder(needed: bool, destination: Path) -> Iterator[Path | None]:
    """A folder beside the model for rows that do not fit into memory; removed at the end, or by the next attempt."""
    if not needed:
        yield None
        return
    cache = destination.parent / f".partial-{destination.name}-external-memory"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    print(f"The training rows are kept on disk, in {cache}: in memory they would take more than they may.", flush=True)
    try:
        yield cache
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def binned_rows(
    train: LabelledRows, validation: LabelledRows, spec: ModelSpec, parameters: BoostingParameters, cache: Path | None
) -> list["xgboost.DMatrix"]:
    """Training and validation rows as histogram bins, in memory or in files below ``cache``."""
    xgboost = load_xgboost()

    class Batches(xgboost.DataIter):  # type: ignore[name-defined]
        def __init__(self, rows: LabelledRows, name: str) -> None:
            # XGBoost goes over the rows several times: what fits into memory is read once.
            super().__init__(cache_prefix=str(cache / name) if cache else None)
            held = None if cache else list(rows.matrices(spec))
            self._read = lambda: iter(held) if held is not None else rows.matrices(spec)
            self._left = self._read()

        def next(self, input_data: Any) -> bool:
            for matrix, labels in self._left:
                input_data(
                    data=matrix,
                    label=labels,
                    feature_names=list(spec.feature_names),
                    feature_types=["q" if feature.categories is None else "c" for feature in spec.features],
                )
                return True
            return False

        def reset(self) -> None:
            self._left = self._read()

    matrix_type = xgboost.ExtMemQuantileDMatrix if cache else xgboost.QuantileDMatrix
    common = {"max_bin": int(parameters.more.get("max_bin", 256)), "nthread": parameters.threads, "enable_categorical": True}
    rows = matrix_type(Batches(train, "train"), **common)
    return [rows, matrix_type(Batches(validation, "validation"), ref=rows, **common)]


def grow_trees(session: Session, learned: dict[str, Any], threads: int, bins: list["xgboost.DMatrix"]) -> "xgboost.Booster":
    """Grows the trees, and returns those up to the best round: a reader that knows nothing of early stopping gets them too."""
    rows, held_out = bins
    xgboost = load_xgboost()
    saved = session.arrays.get(_BOOSTER)
    booster = xgboost.Booster(
        {**learned, "nthread": threads, "eval_metric": list(_METRICS)},
        bins,
        model_file=None if saved is None else bytearray(saved.tobytes()),
    )
    samples = any(float(learned.get(name, 1)) < 1 for name in _SAMPLING)
    while not session.finished:
        number = session.rounds_done
        if samples and number:
            _renew_samplers(booster)
        booster.update(rows, number)
        if not number:
            _check_device(booster, learned["device"])
        session.end_round(_parse(booster.eval_set([(held_out, "validation")], number)), lambda: {_BOOSTER: _raw(booster)})
    return booster[: session.best_round + 1]


def _renew_samplers(booster: "xgboost.Booster") -> None:
    """Makes the next round draw its rows and columns from the seed and its own number alone.

    XGBoost seeds its generator before every round (``seed_per_iteration``), but its column sampler lives as long as the
    tree updater, and making it takes a number from the generator. A booster loaded from a checkpoint has a new updater, one
    that has gone on has an old one. Naming another tree method and the old one again makes a new updater in both; predictions
    and bins stay.
    """
    booster.set_param({"tree_method": "approx"})
    booster.save_config()
    booster.set_param({"tree_method": "hist"})


def _check_device(booster: "xgboost.Booster", device: str) -> None:
    used = json.loads(booster.save_config())["learner"]["generic_param"]["device"]
    if not used.startswith(device):
        raise NotAvailable(f"XGBoost trains on {used} although {device} was asked for: check the driver, or set device to cpu")


def _raw(booster: "xgboost.Booster") -> np.ndarray:
    return np.frombuffer(booster.save_raw("ubj"), dtype=np.uint8)


def _parse(report: str) -> dict[str, float]:
    """``[3]\tvalidation-aucpr:0.61\tvalidation-logloss:0.1`` as metrics by their names here."""
    values = dict(entry.removeprefix("validation-").rsplit(":", 1) for entry in report.split("\t")[1:])
    return {ours: float(values[theirs]) for theirs, ours in _METRICS.items()}
