"""What an arm did between two looks, from counts that only grow, until whatever counts starts again."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.components.serving.target import Counts


@dataclass(frozen=True)
class Increment:
    """What an arm did between two looks; attributes as in ``Counts``.

    Attributes:
        restarted: whether a count fell, so that all of its kind count from zero.
        predictor_restarted: whether it was one that the predictor itself keeps: latencies or scores.
    """

    answered: int = 0
    rejected: int = 0
    failed: int = 0
    latency: tuple[int, ...] = Counts().latency
    scores: tuple[int, ...] = Counts().scores
    flagged: int = 0
    restarted: bool = False
    predictor_restarted: bool = False

    @property
    def requests(self) -> int:
        """All requests."""
        return self.answered + self.rejected + self.failed

    @property
    def samples(self) -> int:
        """Requests that say something about the arm: those that were not refused for what they asked."""
        return self.answered + self.failed


def increment(before: Counts | None, now: Counts | None) -> Increment:
    """What happened from ``before`` to ``now``; nothing if either is not known, or both count since different moments.

    Requests, latencies and scores may be counted in different places, which start again each by itself.
    """
    if before is None or now is None or before.origin != now.origin:
        return Increment()
    (answered, rejected, failed), first = _grown(
        (before.answered, before.rejected, before.failed), (now.answered, now.rejected, now.failed)
    )
    latency, second = _grown(before.latency, now.latency)
    scores, third = _grown((*before.scores, before.flagged), (*now.scores, now.flagged))
    predictor = second or third
    return Increment(answered, rejected, failed, latency, scores[:-1], scores[-1], first or predictor, predictor)


def _grown(before: Sequence[int], now: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    if any(later < earlier for earlier, later in zip(before, now)):
        return tuple(now), True
    return tuple(later - earlier for earlier, later in zip(before, now)), False
