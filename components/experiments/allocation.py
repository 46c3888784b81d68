"""Whether the traffic was split as it was asked for, by a test that may be read at any time.

A split that comes out otherwise (a sample ratio mismatch) says that some are lost or moved on the way, rarely at random, so
that the arms are no longer alike but for the version. What is split, keys or requests, is counted once each. The test is that
of Lindon and Malek, *Anytime-valid inference for multinomial count data* (2022): how much more probable the arms found are
under shares spread around the asked one than under the asked one. By Ville's inequality that ratio ever reaches 1/alpha with
probability alpha at most where the split is right.
"""

from dataclasses import dataclass

import numpy as np

from modelyard.components.errors import InvalidInput

MISMATCH_ALPHA = 0.001
# As many units as the belief in the asked share is worth; shares 5 points off are then found soonest.
_CONCENTRATION = 100.0


@dataclass(frozen=True)
class Allocation:
    """How traffic was split.

    Attributes:
        units: what was split, keys or requests: those of the control and of the version under trial.
        asked: percent of them that the version under trial was to get; None if it is not known.
        log_e_value: logarithm of the largest evidence against the asked share so far; 0 without one.
    """

    units: tuple[int, int]
    asked: float | None
    log_e_value: float

    @property
    def share(self) -> float:
        """Percent of them that it got."""
        return 100 * self.units[1] / max(sum(self.units), 1)

    @property
    def mismatch(self) -> bool:
        """Whether the split is certainly not as asked."""
        return bool(self.log_e_value >= -np.log(MISMATCH_ALPHA))


def check_allocation(in_trial: np.ndarray, percent: float) -> Allocation:
    """Tests the split.

    Args:
        in_trial: whether each key or request, in the order of time, went to the version under trial: bool, shape (units,).
        percent: the share asked for it; 0: not known, so nothing is tested.

    Raises:
        InvalidInput: the percentage is no share.
    """
    from scipy.special import betaln

    if not 0 <= percent < 100:
        raise InvalidInput("share_b", percent, "give the percentage asked for version_b, below 100; 0 leaves it unchecked")
    units = (int((~in_trial).sum()), int(in_trial.sum()))
    if not percent or not len(in_trial):
        return Allocation(units, percent or None, 0.0)
    share = percent / 100
    into = np.cumsum(in_trial)
    out = np.arange(1, len(in_trial) + 1) - into
    prior = _CONCENTRATION * share, _CONCENTRATION * (1 - share)
    evidence = betaln(prior[0] + into, prior[1] + out) - betaln(*prior) - into * np.log(share) - out * np.log1p(-share)
    return Allocation(units, percent, float(max(evidence.max(), 0.0)))
