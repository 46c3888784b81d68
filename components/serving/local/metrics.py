"""Reads what a predictor counts, from its Prometheus text, into the buckets that arms are compared by."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES

_SAMPLE = re.compile(r"modelyard_(\w+?)(?:_bucket)?\{(.*)\} (\S+)")
_EDGE = re.compile(r'(?:^|,)le="([^"]+)"')
_FLAGGED = 'decision="1"'


@dataclass(frozen=True)
class PredictorMetrics:
    """What a predictor has counted since it started.

    Attributes:
        in_flight: requests it works on.
        latency: answered requests by ``LATENCY_EDGES``, shape (edges + 1,).
        scores: scored rows by ``SCORE_EDGES``, shape (edges + 1,).
        flagged: scored rows whose decision was 1.
    """

    in_flight: int
    latency: tuple[int, ...]
    scores: tuple[int, ...]
    flagged: int


def read_metrics(text: str) -> PredictorMetrics:
    """Reads the text of a predictor's ``/metrics``; what it has not counted yet is 0.

    Raises:
        ValueError: it is no such text.
    """
    in_flight = flagged = 0
    latency: dict[float, int] = {}
    scores: dict[float, int] = {}
    for line in text.splitlines():
        if not line.startswith("modelyard_"):
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, labels, value = sample[1], sample[2], sample[3]
        if name == "requests_in_flight":
            in_flight += int(float(value))
        elif name == "decisions_total" and _FLAGGED in labels:
            flagged += int(float(value))
        elif name in ("request_seconds", "scores") and (edge := _EDGE.search(labels)):
            counted = latency if name == "request_seconds" else scores
            counted[float(edge[1])] = counted.get(float(edge[1]), 0) + int(float(value))
    return PredictorMetrics(in_flight, _buckets(latency, LATENCY_EDGES), _buckets(scores, SCORE_EDGES), flagged)


def _buckets(cumulative: dict[float, int], edges: Sequence[float]) -> tuple[int, ...]:
    """Counts by bucket from Prometheus' counts of what is at most each edge."""
    if not cumulative:
        return (0,) * (len(edges) + 1)
    expected = (*edges, float("inf"))
    if tuple(sorted(cumulative)) != expected:
        raise ValueError(f"the predictor counts in other buckets than this release compares: {sorted(cumulative)}")
    totals = [0, *(cumulative[edge] for edge in expected)]
    return tuple(after - before for before, after in itertools.pairwise(totals))
