"""The predictor's Prometheus metrics.

Counting costs a microsecond or two a request: plain numbers, which only the event loop's thread changes, and which become
samples when somebody scrapes. (``prometheus_client``'s own histograms take a lock and a walk over all edges for each row.)

``modelyard_request_seconds`` is the predictor's own time: from the moment that the body is there to the moment that the answer
is ready, with the waiting for a thread in between, without what the client takes to send and to fetch.

Every metric carries the labels ``model`` and ``version``, so that the versions of a model can be compared wherever they run.
``modelyard_counting_since_seconds`` tells one process from the one before it in the same place, whose counts are gone.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_FEW_ROWS = 8
_SCORE_EDGES = np.array(SCORE_EDGES)


class Metrics(Collector):
    """The counts of one predictor.

    Attributes:
        digest: digest of the model that is served now.
        in_flight: requests for inference that have begun and are not answered.
        reload_failures: reloads that were refused.
        logged_rows: says how many rows the prediction log has written and dropped.
    """

    def __init__(self, model_name: str, version: str, digest: str) -> None:
        self._names = ("model", "version")
        self._values = (model_name, version)
        self.digest = digest
        self.in_flight = 0
        self.reload_failures = 0
        self._since = time.time()
        self.logged_rows: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._requests: Counter[int] = Counter()
        self._latency = [0] * (len(LATENCY_EDGES) + 1)
        self._seconds = 0.0
        self._scores = [0] * (len(SCORE_EDGES) + 1)
        self._score_sum = 0.0
        self._decisions = [0, 0]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def count_request(self, status: int, seconds: float) -> None:
        """Counts a request for inference that has been answered with an HTTP status."""
        self._requests[status] += 1
        self._latency[bisect_left(LATENCY_EDGES, seconds)] += 1
        self._seconds += seconds

    def count_rows(self, scores: np.ndarray, decisions: np.ndarray) -> None:
        """Counts scored rows: probabilities and decisions, both of shape (rows,)."""
        if len(scores) <= _FEW_ROWS:
            for score in scores.tolist():
                self._scores[bisect_left(SCORE_EDGES, score)] += 1
                self._score_sum += score
        else:
            filled = np.bincount(np.searchsorted(_SCORE_EDGES, scores), minlength=len(self._scores)).tolist()
            self._scores = [before + more for before, more in zip(self._scores, filled)]
            self._score_sum += float(np.add.reduce(scores))
        flagged = int(np.add.reduce(decisions))
        self._decisions[1] += flagged
        self._decisions[0] += len(decisions) - flagged

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What ``prometheus_client`` asks for at each scrape."""
        requests = self._counter("modelyard_requests", "Requests for inference by HTTP status", "status")
        for status, count in sorted(self._requests.items()):
            requests.add_metric([*self._values, str(status)], count)
        yield requests
        yield self._histogram(
            "modelyard_request_seconds",
            "Time from the last byte of a request for inference to its answer, waiting for a thread included",
            LATENCY_EDGES,
            self._latency,
            self._seconds,
        )
        yield self._histogram(
            "modelyard_scores", "Probabilities given, one for each row", SCORE_EDGES, self._scores, self._score_sum
        )
        decisions = self._counter("modelyard_decisions", "Rows by decision", "decision")
        for decision, count in enumerate(self._decisions):
            decisions.add_metric([*self._values, str(decision)], count)
        yield decisions
        yield self._gauge("modelyard_requests_in_flight", "Requests for inference not answered yet", self.in_flight)
        rows = self._counter("modelyard_prediction_log_rows", "Rows that the prediction log wrote or dropped", "outcome")
        for outcome, count in zip(("written", "dropped"), self.logged_rows()):
            rows.add_metric([*self._values, outcome], count)
        yield rows
        yield self._gauge("modelyard_counting_since_seconds", "Unix time since which all of this is counted", self._since)
        yield self._gauge("modelyard_model_info", "The model that is served", 1, digest=self.digest)
        failures = self._counter("modelyard_reload_failures", "Reloads that were refused")
        failures.add_metric(self._values, self.reload_failures)
        yield failures

    def _counter(self, name: str, meaning: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, meaning, labels=(*self._names, *labels))

    def _gauge(self, name: str, meaning: str, value: float, **labels: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, meaning, labels=(*self._names, *labels))
        family.add_metric((*self._values, *labels.values()), value)
        return family

    def _histogram(
        self, name: str, meaning: str, edges: tuple[float, ...], counts: Sequence[int], total: float
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, meaning, labels=self._names)
        bounds = [*map(floatToGoString, edges), "+Inf"]
        family.add_metric(self._values, list(zip(bounds, accumulate(counts))), total)
        return family
