"""One training from its start to its end: resumed where it was stopped, checkpointed, tracked, and stopped in good order.

Both trainers run their rounds inside ``training_session``. A round is one boosting round or one epoch. After each, the
trainer calls ``Session.end_round``; the history kept there is all that early stopping knows, so a resumed training
decides as an uninterrupted one would.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import ModelyardError
from modelyard.components.signing.provenance import code_revision
from modelyard.components.training.checkpoints import CheckpointFile, Snapshot, checkpoint_file, training_key
from modelyard.components.training.labelled_rows import LabelledRows
from modelyard.components.training.model_directory import write_model_directory
from modelyard.components.training.tracked_run import TrackedRun

CRITERION = "round_pr_auc"
_SECONDS_BETWEEN_LOGS = 10.0


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        digest: the model's digest.
        run_id: its MLflow run.
        metrics: figures about it, finite floats by name.
    """

    digest: str
    run_id: str
    metrics: dict[str, float]


class Interrupted(ModelyardError):
    """The training was asked to stop; its checkpoint lets the same step go on."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained, how, and how carefully.

    Attributes:
        trainer: name of the component.
        model_name: name of the model.
        train, validation: the rows.
        parameters: everything besides the rows that the result depends on, JSON-ready.
        versions: versions of the libraries that the result depends on.
        rounds: at most so many rounds.
        patience: rounds without a better validation PR-AUC after which to stop; 0 for never.
        checkpoint_uri: where checkpoints are kept, see ``checkpoint_file``.
        checkpoint_rounds: rounds between checkpoints; 0 for none but on SIGTERM.
    """

    trainer: str
    model_name: str
    train: LabelledRows
    validation: LabelledRows
    parameters: dict[str, Any]
    versions: dict[str, str]
    rounds: int
    patience: int
    checkpoint_uri: str
    checkpoint_rounds: int


class Session:
    """A training under way.

    Attributes:
        plan: what is trained.
        run: its MLflow run.
        history: value of each round by metric; ``CRITERION`` is among them after the first round.
        arrays: what the trainer had saved when it was stopped; empty for a new training.
        completed: whether the result is logged.
    """

    def __init__(self, plan: Plan, run: TrackedRun, checkpoint: CheckpointFile, resumed: Snapshot | None) -> None:
        self.plan = plan
        self.run = run
        self.history: dict[str, list[float]] = dict(resumed.state["history"]) if resumed else {}
        self.arrays = resumed.arrays if resumed else {}
        self._seconds_before = float(resumed.state["seconds"]) if resumed else 0.0
        self._started = self._last_log = time.monotonic()
        self._checkpoint = checkpoint
        self._stop_asked = False
        self._saved_rounds = self.rounds_done if resumed else -1
        self.completed = False

    @property
    def checkpoint_uri(self) -> str:
        """Where this training's checkpoint is kept; empty for nowhere."""
        return self._checkpoint.uri

    @property
    def rounds_done(self) -> int:
        return len(self.history.get(CRITERION, ()))

    @property
    def best_round(self) -> int:
        """The first round with the highest validation PR-AUC, counted from 0."""
        return int(np.argmax(self.history[CRITERION]))

    @property
    def seconds(self) -> float:
        """Wall time of the training, including what was done before it was stopped."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether no further round is needed."""
        if not self.rounds_done:
            return False
        waited = self.rounds_done - 1 - self.best_round
        return self.rounds_done >= self.plan.rounds or (0 < self.plan.patience <= waited)

    def end_round(self, metrics: dict[str, float], snapshot: Callable[[], dict[str, np.ndarray]]) -> None:
        """Keeps the round's metrics, and a checkpoint if one is due.

        Args:
            metrics: the round's values; ``CRITERION`` must be among them.
            snapshot: gives the arrays that a resumed training starts from.

        Raises:
            Interrupted: SIGTERM arrived; the checkpoint is written.
        """
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        every = self.plan.checkpoint_rounds
        if every and self.rounds_done % every == 0 and not self._stop_asked:
            self.save(snapshot())
        self.stop_if_asked(snapshot)
        if time.monotonic() - self._last_log > _SECONDS_BETWEEN_LOGS:
            self.run.log_history(self.history)
            self._last_log = time.monotonic()
            print(
                f"round {self.rounds_done}: " + ", ".join(f"{name} {value:.5f}" for name, value in metrics.items()), flush=True
            )

    def stop_if_asked(self, snapshot: Callable[[], dict[str, np.ndarray]]) -> None:
        """Ends the training if SIGTERM arrived; in the midst of a long round that round is given up.

        Args:
            snapshot: gives the arrays as they were after the last whole round.

        Raises:
            Interrupted: SIGTERM arrived; the checkpoint is written.
        """
        if not self._stop_asked:
            return
        if self._saved_rounds != self.rounds_done:
            self.save(snapshot())
        self.run.log_history(self.history)
        where = self._checkpoint.uri
        raise Interrupted(
            f"stopped by SIGTERM after round {self.rounds_done} of at most {self.plan.rounds}: "
            + (f"run the same step again and it goes on from {where}" if where else "there is no checkpoint to go on from")
        )

    def save(self, arrays: dict[str, np.ndarray], *, required: bool = False) -> None:
        """Writes a checkpoint; see ``CheckpointFile.save`` for a store that does not take it."""
        state = {"history": self.history, "run_id": self.run.run_id, "seconds": self.seconds}
        if self._checkpoint.save(Snapshot(state, arrays), required=required):
            self._saved_rounds = self.rounds_done

    def deliver(
        self,
        destination: Path,
        spec: ModelSpec,
        write_model: Callable[[Path], None],
        flavour: dict[str, dict[str, Any]],
        rounds: int,
        *,
        false_negative_cost: float,
        false_positive_cost: float,
        seed: int,
    ) -> Trained:
        """Writes the model directory and logs the result; the checkpoint is then no longer needed.

        Args:
            rounds: rounds that the model is made of.
            destination, spec, write_model, flavour, false_negative_cost, false_positive_cost, seed: see
                ``write_model_directory``; what was trained on, and how, is added to ``spec``.
        """
        plan = self.plan
        training = {"trainer": plan.trainer, "parameters": plan.parameters, "rounds": rounds, "versions": plan.versions}
        data = {**plan.train.facts, "validation": plan.validation.facts}
        delivery = write_model_directory(
            destination,
            replace(spec, training=training, data=data),
            write_model,
            flavour,
            plan.train,
            plan.validation,
            false_negative_cost=false_negative_cost,
            false_positive_cost=false_positive_cost,
            seed=seed,
        )
        metrics = {
            **delivery.metrics,
            "threshold": delivery.threshold,
            "rounds": float(rounds),
            "seconds": round(self.seconds, 3),
        }
        self.run.log_history(self.history, last=True)
        self.run.tag({"modelyard.model_digest": delivery.digest})
        self.run.finish(metrics)
        self.completed = True
        self._checkpoint.remove()
        return Trained(delivery.digest, self.run.run_id, metrics)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: the round under way is finished first."""
        self._stop_asked = True


@contextmanager
def training_session(plan: Plan) -> Iterator[Session]:
    """Runs a training: the block does the rounds and calls ``Session.deliver``.

    Raises:
        NotAvailable: MLflow or the store of checkpoints cannot be reached.
        Interrupted: SIGTERM arrived.
    """
    facts = {
        "trainer": plan.trainer,
        "model_name": plan.model_name,
        "train": plan.train.digest,
        "validation": plan.validation.digest,
        "parameters": plan.parameters,
        "versions": plan.versions,
    }
    with checkpoint_file(plan.checkpoint_uri, training_key(facts)) as checkpoint:
        resumed = checkpoint.load()
        run = TrackedRun(plan.model_name, resumed.state["run_id"] if resumed else "")
        session = Session(plan, run, checkpoint, resumed)
        status = "FAILED"
        try:
            if resumed is None:
                # So that a training killed before its first checkpoint goes on with the run it made.
                session.save({}, required=True)
            elif session.rounds_done:
                print(f"Going on after round {session.rounds_done}, from {checkpoint.uri}.", flush=True)
            run.describe(
                {**plan.parameters, **{f"version_{name}": version for name, version in plan.versions.items()}},
                {
                    "modelyard.trainer": plan.trainer,
                    "modelyard.model_name": plan.model_name,
                    "modelyard.train_digest": plan.train.digest,
                    "modelyard.validation_digest": plan.validation.digest,
                    "modelyard.code_revision": code_revision(),
                },
                {"training": plan.train, "validation": plan.validation},
            )
            with _on_sigterm(session.ask_to_stop):
                yield session
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            if not session.completed:
                run.end_badly(status)


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Python lets only the main thread handle signals; elsewhere SIGTERM ends the process, and the last checkpoint counts.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
