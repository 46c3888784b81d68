"""How the nodes of a training find each other, and the one thing that both trainers agree on: when to stop.

Kubeflow Trainer tells each pod its place by variables, ``DMLC_*`` for XGBoost and ``PET_*`` for PyTorch; on one machine
``local_nodes`` sets the same ones.
"""

import os
import signal
import socket
import time
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import numpy as np

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training.session import Session

# Other pods may still be waiting for a machine, or for their image.
PATIENCE_SECONDS = 3600.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """A node's place among the others.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        host, port: where node 0 is met.
    """

    rank: int
    size: int
    host: str
    port: int

    @property
    def on_loopback(self) -> bool:
        """Whether all nodes are processes of this machine."""
        return self.host == LOOPBACK


class Team(Protocol):
    """The nodes that learn together.

    Attributes:
        rank: this node's number.
        stop_asked: whether this node was asked to stop.
        agreed_to_stop: whether all nodes know that one was.
    """

    rank: int
    stop_asked: bool
    agreed_to_stop: bool

    def largest(self, values: np.ndarray) -> np.ndarray:
        """The largest of every node's ``values``, float64, element by element; every node must call it."""


class TeamSession(Session):
    """A training's rounds on one node: node 0 keeps the checkpoints, and all nodes stop after the same round."""

    team: Team

    def join(self, team: Team) -> None:
        """Checks that every node starts from the same round; from then on SIGTERM asks all of them to stop.

        Raises:
            NotAvailable: they do not; started again, they will.
        """
        self.team = team
        done = float(self.rounds_done)
        most, least = team.largest(np.array([done, -done]))
        if most != -least:
            raise NotAvailable(f"the nodes start from rounds {-least:.0f} to {most:.0f}: run the step again")
        # Not before: a node that still waits for the others ends by itself when it is asked to stop.
        signal.signal(signal.SIGTERM, self.ask_to_stop)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: all nodes stop after the round under way."""
        self.team.stop_asked = True

    def end_round(self, metrics, snapshot):  # type: ignore[no-untyped-def]
        self.team.agreed_to_stop |= bool(self.team.largest(np.array([float(self.team.stop_asked)]))[0])
        # A checkpoint on the way out is written by stop_if_asked.
        self._stop_asked = self.team.agreed_to_stop
        super().end_round(metrics, snapshot)

    def stop_if_asked(self, snapshot):  # type: ignore[no-untyped-def]
        # What this node alone knows does not count: the others would wait for it.
        self._stop_asked = self.team.agreed_to_stop
        super().stop_if_asked(snapshot)

    def save(self, arrays, *, required=False):  # type: ignore[no-untyped-def]
        if self.team.rank == 0:
            super().save(arrays, required=required)


def place_from_environment(trainer: str) -> Place:
    """This node's place.

    Args:
        trainer: ``xgboost`` or ``torch``.

    Raises:
        InvalidInput: the variables are not set, so this is no node of a job.
    """
    names = {
        "xgboost": ("DMLC_TASK_ID", "DMLC_NUM_WORKER", "DMLC_TRACKER_URI", "DMLC_TRACKER_PORT"),
        "torch": ("PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    }[trainer]
    values = [os.environ.get(name, "") for name in names]
    for name, value in zip(names, values, strict=True):
        if not value:
            raise InvalidInput(name, value, f"start the nodes through the runtime {trainer}-distributed, which sets it")
    rank, size, host, port = values
    return Place(int(rank), int(size), host, int(port))


def wait_for_first(place: Place) -> None:
    """Waits until node 0 listens.

    Raises:
        NotAvailable: it does not in an hour.
    """
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > ends:
                raise NotAvailable(
                    f"node 0 at {place.host}:{place.port} cannot be reached ({error}): see its log, and whether a "
                    "network policy lets the nodes talk to each other"
                ) from error
        time.sleep(0.1 if place.on_loopback else 2)


def own_address(place: Place) -> str:
    """Address that node 0 is met at, for node 0 to listen on.

    Raises:
        NotAvailable: the name that the others know it by is still not resolved after an hour.
    """
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return socket.gethostbyname(place.host)
        except OSError as error:
            if time.monotonic() > ends:
                raise NotAvailable(f"{place.host} is not resolved ({error}): the job's headless service is missing") from error
        time.sleep(2)
