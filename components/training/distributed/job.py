"""What a step asks of the job that its nodes are."""

from dataclasses import dataclass
from typing import Protocol

from modelyard.components.errors import ModelyardError


class JobFailed(ModelyardError):
    """A node failed, or the job was ended; what it printed is in the message."""


@dataclass(frozen=True)
class JobState:
    """How a job is doing.

    Attributes:
        status: ``running`` (or about to), ``completed`` or ``failed``.
        reason: why it failed.
    """

    status: str
    reason: str = ""


class Job(Protocol):
    """A job of several nodes; every verb may be repeated."""

    name: str

    def start(self) -> None:
        """Starts the job, or finds it as an earlier attempt of the same step left it; one that has ended is started anew.

        To be called only where there is no result: a job that ended well then lost it.

        Raises:
            InvalidInput: the job as described cannot be.
            NotAvailable: the job cannot be started.
        """

    def state(self) -> JobState:
        """How it is doing.

        Raises:
            NotAvailable: that cannot be learned.
        """

    def stop(self) -> None:
        """Ends the job, running or not; its nodes leave a checkpoint."""
