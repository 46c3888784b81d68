"""Intervals that hold at every look, however many there are and whenever one stops: confidence sequences.

An ordinary 95 % interval holds at one moment that was fixed beforehand. Who looks every day and stops when it excludes zero
is wrong several times as often. A confidence sequence holds at all moments at once with its probability, so that it may be
read daily and acted on at once; it costs about half as much width again.

This one is asymptotic: that of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, *Time-uniform central limit theory and
asymptotic confidence sequences* (2024). It is the boundary that a Gaussian mixture puts around a Brownian motion, at the scale
of a standard error that is estimated from the data. A bound that needs no limit would need a bound on what one unit can
contribute; the unit is a key, which sends as many requests as it likes.

An estimate by all data up to a moment is, in the clock of its information (one over its squared standard error), a Brownian
motion with drift, whatever the shares of the arms; exactly so where the rows of a key are exchangeable. A clock that runs
faster than the information does no harm, because then looks lie closer together in information than the boundary provides for
(Slepian's inequality). Therefore the clock here is a count, which needs no estimate and only ever grows.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error, and the bounds that hold at every look."""

    value: float
    error: float
    low: float
    high: float


def interval(value: float, error: float, progress: float, alpha: float) -> Interval:
    """The confidence sequence at one look.

    Args:
        value: the estimate by all data so far.
        error: its standard error.
        progress: data so far as a share of the amount at which the interval is to be tightest, for its amount; more than 0.
            Any choice holds; it must be the same at all looks.
        alpha: probability, in (0, 1), that the truth is outside at any look.
    """
    half = error * boundary(progress, alpha)
    return Interval(value, error, value - half, value + half)


def boundary(progress: float, alpha: float) -> float:
    """Standard errors on each side of the estimate."""
    level = -2 * math.log(alpha)
    # Where the width is least at a progress of 1, to a good approximation (the paper's appendix B.2).
    mixed = progress * (level + math.log(level + 1))
    return math.sqrt((1 + 1 / mixed) * (math.log1p(mixed) + level))
