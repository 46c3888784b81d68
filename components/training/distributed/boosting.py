"""One node of a training with XGBoost: its rows as bins, and histograms summed over all nodes by XGBoost's collective."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelyard.components.artifacts.xgboost_library import load_xgboost
from modelyard.components.training.boosted_trees import BoostingParameters, binned_rows, choose_device, grow_trees
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.team import (
    LOOPBACK,
    PATIENCE_SECONDS,
    Place,
    TeamSession,
    own_address,
    wait_for_first,
)
from modelyard.components.training.labelled_rows import LabelledRows
from modelyard.components.training.session import Interrupted

if TYPE_CHECKING:
    from xgboost.tracker import RabitTracker

_GOODBYE_SECONDS = 300
_TRACKERS: "list[RabitTracker]" = []


class BoostingTeam:
    """The nodes that XGBoost's collective joins; see ``team.Team``."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.stop_asked = self.agreed_to_stop = False

    def largest(self, values: np.ndarray) -> np.ndarray:
        """See ``team.Team``."""
        from xgboost import collective

        return collective.allreduce(values, collective.Op.MAX)


def boost_together(
    session: TeamSession,
    team: BoostingTeam,
    place: Place,
    assignment: Assignment,
    rows: LabelledRows,
    held_out: LabelledRows,
    destination: Path,
) -> None:
    """Grows the trees with the other nodes; node 0 writes them to ``destination``.

    Args:
        session: keeps history and checkpoints.
        team: this node among the others.
        place: where they meet.
        assignment: what to train.
        rows: this node's rows.
        held_out: all validation rows: every node scores them, and so knows by itself when to stop.
        destination: file to write.

    Raises:
        NotAvailable: the device or node 0 is not there.
        Interrupted: a node was asked to stop; the checkpoint is written.
    """
    choose_device(assignment.device)
    parameters = BoostingParameters(**assignment.parameters)
    with _joined(place):
        session.join(team)
        model = grow_trees(
            session, assignment.learned, parameters.threads, binned_rows(rows, held_out, assignment.spec, parameters, None)
        )
    if place.rank == 0:
        model.save_model(destination)


@contextmanager
def _joined(place: Place) -> Iterator[None]:
    load_xgboost()
    from xgboost import collective
    from xgboost.tracker import RabitTracker

    tracker = None
    if place.rank == 0:
        tracker = RabitTracker(n_workers=place.size, host_ip=own_address(place), port=place.port, sortby="task")
        tracker.start()
        # Freed while nodes are connected, it takes the process down; it goes with it in any case.
        _TRACKERS.append(tracker)
    else:
        wait_for_first(place)
    # Ranks follow the tasks' names as texts.
    collective.init(
        dmlc_communicator="rabit",
        dmlc_tracker_uri=own_address(place),
        dmlc_tracker_port=place.port,
        dmlc_task_id=f"{place.rank:06d}",
        # For the others to come, and for each answer of theirs; the tracker has no limit of its own.
        dmlc_timeout=int(PATIENCE_SECONDS),
    )
    if place.on_loopback:
        _keep_to_loopback()
    try:
        yield
    except Interrupted:
        # All nodes have agreed to stop here. After any other error there is nobody to say goodbye to.
        _leave(tracker)
        raise
    _leave(tracker)


def _leave(tracker: "RabitTracker | None") -> None:
    from xgboost import collective
    from xgboost.core import XGBoostError

    try:
        collective.finalize()
        if tracker is not None:
            # The others say goodbye to it.
            tracker.wait_for(_GOODBYE_SECONDS)
    except XGBoostError as error:
        # All nodes have what they came for: the trees, or the agreement to stop.
        print(f"left without a goodbye: {str(error).partition('Stack trace')[0].strip()}", flush=True)


def _keep_to_loopback() -> None:
    """Takes the sockets that XGBoost listens on at every address, without a choice, away from all but the loopback device."""
    if sys.platform != "linux":
        return
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            listening = socket.socket(fileno=int(entry.name))
            try:
                if listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and listening.getsockname()[0] != LOOPBACK:
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            finally:
                listening.detach()
