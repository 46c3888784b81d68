"""What our own predictor counts, the same in every mode: requests by status, latency, scores and decisions, by version.

Its series, at ``/metrics`` of the port that it serves on, name the model and the version, so it does not matter how they are
scraped; where the scrape adds a label ``namespace``, that counts too. Requests that no predictor saw are in none of its counts.
"""

from modelyard.components.serving.metrics.counting import FLAGGED, LATENCY, SCORES, SINCE, outcome
from modelyard.components.serving.metrics.prometheus import Labels
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import exactly, selector

_SINCE = "modelyard_counting_since_seconds"
_REQUESTS = "modelyard_requests_total"
_LATENCY = "modelyard_request_seconds_bucket"
_SCORES = "modelyard_scores_bucket"
_DECISIONS = "modelyard_decisions_total"


class PredictorVocabulary:
    """The predictor's own metrics."""

    seconds = 1.0
    apart = False
    dated = True

    def presence(self, workload: Workload) -> str:
        """When it began to count."""
        return _of(workload, _SINCE)

    def everything(self, workload: Workload) -> str:
        """All that is compared."""
        return _of(workload, _SINCE, _REQUESTS, _LATENCY, _SCORES, _DECISIONS)

    def meaning(self, workload: Workload, labels: Labels) -> str:
        """By the metric's name; of the decisions, those that are 1 count."""
        name = labels["__name__"]
        if name == _REQUESTS:
            return outcome(labels.get("status", ""))
        if name == _DECISIONS:
            return FLAGGED if labels.get("decision") == "1" else ""
        return {_SINCE: SINCE, _LATENCY: LATENCY, _SCORES: SCORES}.get(name, "")


def _of(workload: Workload, *names: str) -> str:
    # A label that is not there matches the empty alternative.
    place = f"{exactly(workload.namespace)}|"
    return selector(names, model=exactly(workload.model_name), version=exactly(workload.version), namespace=place)
