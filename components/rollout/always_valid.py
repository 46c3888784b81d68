"""What every sequential test of a rollout has in common: an e-value, a threshold, and counts that are checked."""

import math
from typing import Any, Literal

import numpy as np

from modelyard.components.errors import InvalidInput

Decision = Literal["go_on", "fail"]

LARGEST_COUNT = 1_000_000_000
"""Most that may be counted in one look: beyond, logs of factorials are no longer exact to four digits after the point."""

_TUNED_ROWS = 100.0


class AlwaysValidTest:
    """A test whose e-value may be read after every look.

    The e-value is 1 at the start, and at any time one may choose to stop, has expectation at most 1 if the canary is within
    the null. Then it ever reaches ``1 / alpha`` with probability at most ``alpha`` (Ville, 1939). Once it has, the test has
    decided.

    Args:
        alpha: largest acceptable probability that a canary within the null is ever failed.
    """

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise InvalidInput("alpha", alpha, "give the largest acceptable probability of a false alarm, above 0 and below 1")
        self.alpha = float(alpha)
        self._failed = False

    @property
    def decision(self) -> Decision:
        """``fail`` once the e-value has reached the threshold, and ever after."""
        return "fail" if self._failed else "go_on"

    @property
    def threshold(self) -> float:
        """The e-value that decides: ``1 / alpha``."""
        return 1 / self.alpha

    @property
    def log_e_value(self) -> float:
        """Natural log of the e-value: 0 says nothing, that of `threshold` decides. It goes no higher."""
        return -math.log(self.alpha) if self._failed else min(self._log_value(), -math.log(self.alpha))

    def _log_value(self) -> float:
        raise NotImplementedError


def log_sum(logs: np.ndarray) -> np.ndarray:
    """Log of the sum over the last axis of what ``logs`` are the logs of; scipy's does the same, ten times as slowly."""
    largest = logs.max(axis=-1)
    return largest + np.log(np.exp(logs - largest[..., None]).sum(axis=-1))


def share_reach(size: float, chance: float) -> float:
    """How far a share may be from what was to be expected, at any time, but for ``chance``.

    The normal mixture of Howard et al. (2021) with Hoeffding's variance, 1/4 for each of ``size`` independent answers of yes
    or no. It is tightest at about a hundred of them.
    """
    if not size:
        return 1.0
    variance, tuned = size / 4, _TUNED_ROWS / 4
    return math.sqrt((variance + tuned) * math.log((variance + tuned) / (tuned * chance**2))) / size


def checked_count(name: str, value: Any) -> int:
    """``value`` if it is a count of one look."""
    if isinstance(value, float) and not value.is_integer():
        raise InvalidInput(name, value, "give a whole number")
    count = int(value)
    if not 0 <= count <= LARGEST_COUNT:
        raise InvalidInput(name, value, f"give what was counted in this look, from 0 to {LARGEST_COUNT:,}")
    return count


def checked_counts(name: str, values: Any, buckets: int) -> np.ndarray:
    """``values`` as int64, shape (buckets,), if they are counts of one look."""
    counts = np.asarray(values)
    if counts.shape != (buckets,):
        raise InvalidInput(name, counts.shape, f"give one count for each of the {buckets} buckets")
    if counts.dtype.kind not in "iu" or counts.min() < 0 or counts.sum() > LARGEST_COUNT:
        raise InvalidInput(name, counts.tolist(), f"give whole numbers, at most {LARGEST_COUNT:,} in all")
    return counts.astype(np.int64)
