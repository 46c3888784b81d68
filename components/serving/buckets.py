"""The buckets that predictors count latencies and scores in, and that a rollout compares arms by.

Both are fixed, because only counts in the same buckets can be compared between versions, pods and days.
"""

import math
from bisect import bisect_left

# Seconds, half an octave apart, 0.25 ms to 16 s. A bucket holds what is at most its edge; one more bucket holds the rest.
LATENCY_EDGES = tuple(round(0.00025 * 2 ** (step / 2), 8) for step in range(33))
# Probabilities, evenly spaced in log-odds from -8 to 8: scores of rare events crowd near zero.
SCORE_EDGES = tuple(round(1 / (1 + math.exp(-step / 2)), 8) for step in range(-16, 17))


def bucket(value: float, edges: tuple[float, ...]) -> int:
    """Index of the bucket that holds ``value``, 0 to ``len(edges)``."""
    return bisect_left(edges, value)
