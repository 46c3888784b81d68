"""One node of a training with PyTorch: gradients averaged over all nodes' rows after every step."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.training.distributed.assignment import Assignment
from modelyard.components.training.distributed.team import PATIENCE_SECONDS, Place, TeamSession
from modelyard.components.training.labelled_rows import LabelledRows
from modelyard.components.training.session import CRITERION, Interrupted
from modelyard.components.training.tabular_network import (
    PARITY_ROWS,
    Alone,
    Network,
    NetworkParameters,
    Preparation,
    choose_device,
    encoded,
    fit,
    import_torch,
    reproducible,
    write_checked,
)

# Names the file through which processes of one machine meet, in place of node 0's port: PyTorch's listens at every address.
MEETING_FILE = "MODELYARD_MEETING_FILE"
# Float noise in the spread of a column that is constant.
_NO_SPREAD = 1e-9
_ROUND_METRICS = (CRITERION, "round_log_loss")


class NetworkTeam(Alone):
    """The nodes that PyTorch's process group joins; see ``team.Team`` and ``tabular_network.Alone``.

    Args:
        place: this node's place.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, place: Place, device: str) -> None:
        self.rank, self.size = place.rank, place.size
        self.stop_asked = self.agreed_to_stop = False
        self._device = device

    def largest(self, values: np.ndarray) -> np.ndarray:
        """See ``team.Team``."""
        torch = import_torch()
        shared = torch.from_numpy(values.astype(np.float64)).to(self._device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return shared.cpu().numpy()

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of every node's ``values``, float64, element by element."""
        torch = import_torch()
        shared = torch.from_numpy(values.astype(np.float64)).to(self._device)
        torch.distributed.all_reduce(shared)
        return shared.cpu().numpy()

    def steps(self, rows: int, batch: int) -> int:
        return super().steps(int(self.largest(np.array([float(rows)]))[0]), batch)

    def average(self, module: Any, rows: int) -> None:
        torch = import_torch()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([(gradient * rows).flatten() for gradient in gradients])
        told = torch.tensor([float(rows), float(self.stop_asked)], device=flat.device)
        shared = torch.cat([flat, told])
        torch.distributed.all_reduce(shared)
        self.agreed_to_stop |= bool(shared[-1] > 0)
        shared /= shared[-2].clone()
        start = 0
        for gradient in gradients:
            gradient.copy_(shared[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def from_first(self, value: Callable[[], dict[str, float]]) -> dict[str, float]:
        torch = import_torch()
        found = value() if self.rank == 0 else {}
        shared = torch.tensor([found.get(name, math.nan) for name in _ROUND_METRICS], dtype=torch.float64, device=self._device)
        torch.distributed.broadcast(shared, 0)
        return dict(zip(_ROUND_METRICS, shared.cpu().tolist(), strict=True))


def fit_together(
    session: TeamSession,
    team: NetworkTeam,
    place: Place,
    assignment: Assignment,
    rows: LabelledRows,
    held_out: LabelledRows,
    destination: Path,
) -> None:
    """Trains the network with the other nodes; node 0 writes it to ``destination``.

    Args:
        session: keeps history and checkpoints.
        team: this node among the others.
        place: where they meet.
        assignment: what to train.
        rows: this node's rows.
        held_out: all validation rows.
        destination: file to write.

    Raises:
        NotAvailable: PyTorch, the device or node 0 is not there.
        Interrupted: a node was asked to stop; the checkpoint is written.
        ParityError: the exported model differs from the trained one.
    """
    choose_device(assignment.device)
    parameters, spec = NetworkParameters(**assignment.parameters), assignment.spec
    with _joined(place, assignment.device), reproducible(parameters.threads, assignment.device):
        session.join(team)
        matrix, later = encoded(rows, spec), encoded(held_out, spec)
        network = Network(_prepare_together(matrix, spec, team), parameters)
        mixed = bool(assignment.shaping["mixed_precision"])
        fit(
            session, network, parameters, assignment.device, mixed, matrix, rows.labels, later, held_out.labels,
            assignment.share, team,
        )  # fmt: skip
    if place.rank == 0:
        write_checked(network, destination, spec, later[:PARITY_ROWS])


@contextmanager
def _joined(place: Place, device: str) -> Iterator[None]:
    torch = import_torch()
    meeting = os.environ.get(MEETING_FILE, "")
    if meeting:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meeting}" if meeting else f"tcp://{place.host}:{place.port}",
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=PATIENCE_SECONDS),
    )
    try:
        yield
    except Interrupted:
        # All nodes have agreed to stop here. After any other error leaving the group would wait for those that are gone.
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _prepare_together(matrix: np.ndarray, spec: ModelSpec, team: NetworkTeam) -> Preparation:
    """What ``tabular_network.prepare`` fits to one node's rows, fitted to all nodes'."""
    numbers = tuple(position for position, feature in enumerate(spec.features) if feature.categories is None)
    values = matrix[:, list(numbers)].astype(np.float64)
    known = ~np.isnan(values)
    counts, sums, missing = np.split(
        team.total(np.concatenate([known.sum(0), np.where(known, values, 0).sum(0), (~known).sum(0)])), 3
    )
    means = sums / np.maximum(counts, 1)
    squares = team.total((np.where(known, values - means, 0) ** 2).sum(0))
    spreads = np.sqrt(squares / np.maximum(counts, 1))
    scales = np.where(spreads > _NO_SPREAD * np.abs(means), spreads, 1.0)
    return Preparation(
        numbers=numbers,
        means=means.astype(np.float32),
        scales=scales.astype(np.float32),
        indicated=tuple(position for position in range(len(numbers)) if missing[position]),
        categories=tuple(
            (position, len(feature.categories))
            for position, feature in enumerate(spec.features)
            if feature.categories is not None
        ),
    )
