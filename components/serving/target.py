"""A serving target: the handful of verbs that a rollout needs, and what they say about a served model.

A target serves each model by up to two arms: ``stable``, the version in charge, and ``canary``, the version under trial, which
gets a share of the live traffic, or a copy of it. The steps and the statistics of a rollout stand above these verbs and know
nothing of processes or clusters.

Every verb is safe to repeat: asked for what is already so, it changes nothing. Each returns once what it asked for is in force.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from modelyard.components.errors import ModelyardError
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES

# How an arm is asked for scores: as our own predictor takes rows, or as NVIDIA's Triton does.
PREDICTOR, TRITON = "modelyard", "triton"


class TargetChanged(ModelyardError):
    """Somebody else changed what is served meanwhile; the message says what was found."""


class RecordChanged(ModelyardError):
    """Somebody else wrote the record since it was read."""


@dataclass(frozen=True)
class ServedModel:
    """A released model, as a target knows it.

    Attributes:
        version: its version in the registry.
        digest: its model digest.
        uri: its signed directory: path, ``s3://`` or ``gs://``.
    """

    version: str
    digest: str
    uri: str


@dataclass(frozen=True)
class Arm:
    """One version that is being served.

    Attributes:
        model: what it serves.
        share: percent of the live traffic it is given, 0 to 100.
        ready: whether it answers, its model verified and its golden rows replayed.
        failed: whether it will not become ready by itself (its model is refused, or it keeps crashing).
        reason: why it is not ready; empty if it is.
        url: base URL that leads to this arm alone.
        mirrored: whether it gets a copy of the live traffic, its answers thrown away.
        layout: how it is asked for scores, ``PREDICTOR`` or ``TRITON``.
    """

    model: ServedModel
    share: int
    ready: bool
    failed: bool = False
    reason: str = ""
    url: str = ""
    mirrored: bool = False
    layout: str = PREDICTOR


def serves(arm: Arm | None, digest: str) -> bool:
    """Whether there is this arm and the model with this digest is what it serves."""
    return arm is not None and arm.model.digest == digest


@dataclass(frozen=True)
class ServingState:
    """What a target serves for one model.

    Attributes:
        stable: the version in charge; None if the model is not served yet.
        canary: the version under trial, if any.
        previous: the version in charge before, which a rollback brings back.
        url: base URL of the model's live traffic.
    """

    model_name: str
    stable: Arm | None = None
    canary: Arm | None = None
    previous: ServedModel | None = None
    url: str = ""


@dataclass(frozen=True)
class Counts:
    """What an arm has done since it started. A count that falls says that the arm, or what counts for it, started again.

    Attributes:
        answered: requests answered with 2xx.
        rejected: requests answered with 4xx: what they asked for was refused.
        failed: requests answered with 5xx, or not at all.
        latency: requests by ``LATENCY_EDGES``, shape (edges + 1,).
        scores: scored rows by ``SCORE_EDGES``, shape (edges + 1,).
        flagged: scored rows whose decision was 1.
        origin: since when is counted; counts of different origins have nothing to do with each other.
    """

    answered: int = 0
    rejected: int = 0
    failed: int = 0
    latency: tuple[int, ...] = field(default=(0,) * (len(LATENCY_EDGES) + 1))
    scores: tuple[int, ...] = field(default=(0,) * (len(SCORE_EDGES) + 1))
    flagged: int = 0
    origin: str = ""

    @property
    def requests(self) -> int:
        """All requests that reached the arm."""
        return self.answered + self.rejected + self.failed


@dataclass(frozen=True)
class ArmCounts:
    """The counts of both arms, read at one moment; None for an arm that is not there or could not be read."""

    stable: Counts | None
    canary: Counts | None


class ServingTarget(Protocol):
    """The verbs. All raise ``NotAvailable`` if the target cannot be reached or does not obey in time.

    The record can be read and written while another thread waits in a verb.

    Attributes:
        mirrors: whether a canary can be given a copy of the traffic.
    """

    mirrors: bool

    def state(self, model_name: str) -> ServingState:
        """What is served now, as the target sees it, not as it was last asked for."""

    def start_canary(self, model_name: str, model: ServedModel) -> None:
        """Starts ``model`` beside the stable version, without traffic, and returns when it is ready or has failed.

        Where the model is not served yet, the canary is the only arm, and ``promote`` makes it the stable one.

        Raises:
            TargetChanged: another version is the canary already.
        """

    def set_share(self, model_name: str, percent: int, *, mirror: bool = False) -> None:
        """Gives the canary this percentage of the live traffic (0 to 100), or with ``mirror`` of a copy of it.

        Raises:
            TargetChanged: there is no canary.
        """

    def promote(self, model_name: str, digest: str) -> None:
        """Makes the canary with this digest the stable version with all the traffic; the stable one becomes ``previous``.

        Raises:
            TargetChanged: neither the canary nor the stable version has this digest.
        """

    def roll_back(self, model_name: str) -> None:
        """Takes the canary away; the stable version gets all the traffic. Without a canary it changes nothing."""

    def restore(self, model_name: str, model: ServedModel) -> None:
        """Puts ``model`` in charge in one step: ready first, then all traffic. A canary goes; stable becomes ``previous``."""

    def counts(self, model_name: str) -> ArmCounts:
        """The counts of both arms at a moment that is not before the call, so that two shares are never mixed."""

    def read_record(self, model_name: str) -> dict[str, Any] | None:
        """What ``write_record`` wrote last: the rollout's own notes, which outlive the step that wrote them."""

    def write_record(self, model_name: str, record: dict[str, Any] | None, *, revision: int | None = None) -> None:
        """Keeps the rollout's notes (JSON-ready) with the served model, whole or not at all; None removes them.

        Args:
            revision: if given, what stands there now must have it as its entry ``revision``; no record has 0.

        Raises:
            RecordChanged: it has another one.
        """
