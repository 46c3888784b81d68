"""What runs on each node: ``python -m modelyard.components.training.distributed.node FOLDER``.

It takes its rows from the job's folder, learns with the other nodes, and node 0 leaves model and result there. It ends with 0
when that is done, with 75 when it was asked to stop and left a checkpoint, and with 1, and the reason, otherwise.

In a cluster the credentials of the object store are those of the pod's service account, or the keys of a Secret mounted
at ``MOUNTED_CREDENTIALS``: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, or ``gcloud-application-credentials.json``.
"""

import os
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.lean_imports import treat_process_as_step
from modelyard.components.training.checkpoints import CheckpointFile
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.job_folder import (
    ASSIGNMENT,
    CHECKPOINT,
    MODEL,
    PROGRESS,
    RESULT,
    VALIDATION,
    JobFolder,
    shard,
)
from modelyard.components.training.distributed.shards import read_shard
from modelyard.components.training.distributed.team import TeamSession, place_from_environment
from modelyard.components.training.session import Interrupted, Plan

MOUNTED_CREDENTIALS = Path("/var/run/secrets/modelyard-storage")
STOPPED = os.EX_TEMPFAIL
# Twice this and twice the patience of a checkpoint may pass after SIGTERM, of the 30 s that Kubernetes grants.
_PROGRESS_PATIENCE = 4.0


class _Progress:
    """Stands for the MLflow run, which belongs to the step: it gets the rounds' metrics through the folder."""

    run_id = ""

    def __init__(self, folder: JobFolder, rank: int) -> None:
        self._folder, self._rank = folder, rank

    def log_history(self, history: dict[str, list[float]], *, last: bool = False) -> None:
        if self._rank != 0:
            return
        try:
            self._folder.put_json(PROGRESS, history, patience=_PROGRESS_PATIENCE)
        except NotAvailable as error:
            # The step only shows it: the rounds themselves go over with the result.
            print(f"{error}; training goes on, and the progress is told later.", flush=True)


def take_part(folder: JobFolder) -> None:
    """Trains with the other nodes.

    Raises:
        InvalidInput: the folder or the environment is not that of a node.
        NotAvailable: another node, the device or the store is not there.
        Interrupted: a node was asked to stop; the checkpoint is written.
    """
    content = folder.get_json(ASSIGNMENT)
    if content is None:
        raise InvalidInput("folder", folder.uri, "there is no training in it; nodes are started by train_distributed")
    assignment = Assignment(**content)
    place = place_from_environment(assignment.trainer)
    if place.size != assignment.nodes:
        raise InvalidInput("nodes", place.size, f"the training is divided among {assignment.nodes}")
    if assignment.trainer == "xgboost":
        from modelyard.components.training.distributed.boosting import BoostingTeam, boost_together

        team: Any = BoostingTeam(place.rank)
        learn: Any = boost_together
        modules: tuple[str, ...] = ("xgboost", "numpy")
    else:
        from modelyard.components.training.distributed.network import NetworkTeam, fit_together

        team = NetworkTeam(place, assignment.device)
        learn = fit_together
        modules = ("torch", "onnx", "onnxruntime", "numpy")

    with tempfile.TemporaryDirectory(prefix="modelyard-node-") as aside:
        rows = read_shard(_fetched(folder, shard(place.rank), aside), assignment.spec, assignment.train_digest)
        held_out = read_shard(_fetched(folder, VALIDATION, aside), assignment.spec, assignment.validation_digest)
        plan = Plan(
            trainer="train_distributed",
            model_name="",
            train=rows,
            validation=held_out,
            parameters=assignment.shaping,
            versions={},
            rounds=assignment.rounds,
            patience=assignment.patience,
            checkpoint_uri="",
            checkpoint_rounds=assignment.checkpoint_rounds,
        )
        checkpoint = CheckpointFile(folder.of(CHECKPOINT))
        resumed = checkpoint.load()
        session = TeamSession(plan, _Progress(folder, place.rank), checkpoint, resumed)  # type: ignore[arg-type]
        if resumed is not None:
            print(f"Going on after round {session.rounds_done}.", flush=True)
        model = Path(aside, assignment.model_file)
        learn(session, team, place, assignment, rows, held_out, model)
        if place.rank == 0:
            from modelyard.components.training.versions import library_versions

            folder.put(MODEL, model)
            folder.put_json(RESULT, {"history": session.history, "versions": library_versions(*modules)})


def _fetched(folder: JobFolder, name: str, aside: str) -> Path:
    path = folder.get(name, Path(aside, name))
    if path is None:
        raise InvalidInput("folder", folder.of(name), "it is not there; run the step again, which divides the rows anew")
    return path


def _take_credentials() -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        path = MOUNTED_CREDENTIALS / name
        if path.is_file():
            os.environ.setdefault(name, path.read_text(encoding="utf-8").strip())
    account = MOUNTED_CREDENTIALS / "gcloud-application-credentials.json"
    if account.is_file():
        os.environ.setdefault("GOOGLE_APPLICATION_CREDENTIALS", str(account))


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(STOPPED)


def _take_signals_beside_main_thread() -> None:
    """Has SIGTERM delivered to a thread that does nothing else; Python still runs its handler in the main thread.

    XGBoost takes a wait for another node that a signal interrupts for the loss of that node, in whichever of its threads.
    Those that are started from here on, by libraries too, do not get the signal either.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    threading.Thread(target=_end_if_alone, args=(heard,), daemon=True, name="signals").start()
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _end_if_alone(heard: int) -> None:
    """Ends the process at a SIGTERM that comes before the nodes have met.

    A main thread that waits for them in a library runs no handler, for up to an hour, and there is nothing to keep yet.
    """
    while number := os.read(heard, 1):
        if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _leave:
            os._exit(STOPPED)


def main(arguments: list[str]) -> int:
    """Runs a node; returns its exit status."""
    # The first process of a container ignores a signal that it has no handler for.
    signal.signal(signal.SIGTERM, _leave)
    treat_process_as_step()
    _take_credentials()
    try:
        (uri,) = arguments
        take_part(JobFolder(uri))
    except Interrupted as stopped:
        print(stopped, flush=True)
        return STOPPED
    except ModelyardError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


def _main() -> None:
    _take_signals_beside_main_thread()
    try:
        status = main(sys.argv[1:])
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Native threads that wait for other nodes would hold up Python's own way of ending, or crash it.
    os._exit(status)


if __name__ == "__main__":
    _main()
