"""What Istio's proxies count on the way to an arm's Service: requests by status, and latency in Envoy's buckets.

The side that sends is asked (``reporter="source"``): the gateway, and clients with a sidecar. So a request is counted once,
with or without sidecars on the predictors, and one that found nobody to answer it is counted too, as failed. The replicas that
are waited for are these proxies. Istio may drop counters that nobody used for a while and begin them anew
(``statsEvictionInterval``).

Scores and decisions are not known to it.
"""

from modelyard.components.serving.metrics.counting import LATENCY, PRESENT, outcome
from modelyard.components.serving.metrics.prometheus import Labels
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import exactly, selector

_REQUESTS = "istio_requests_total"
_LATENCY = "istio_request_duration_milliseconds_bucket"
_SERVICE = "destination_service_name"
_STATUS = "response_code"


class IstioVocabulary:
    """Istio's standard metrics."""

    seconds = 0.001
    apart = True
    dated = False

    def presence(self, workload: Workload) -> str:
        """The proxies that sent requests to either arm."""
        # A proxy has no series of an arm that it sent nothing to; that it has one of the other arm says that it was looked at.
        return _of(workload, rf"{exactly(workload.service)}-.*", _REQUESTS)

    def everything(self, workload: Workload) -> str:
        """All that is compared, and what shows the proxies."""
        return _of(workload, rf"{exactly(workload.service)}-.*", _REQUESTS, _LATENCY)

    def meaning(self, workload: Workload, labels: Labels) -> str:
        """By the metric's name, if it is of the arm's Service; that of a Knative revision has a private one beside it."""
        name = labels["__name__"]
        if labels.get(_SERVICE) not in (workload.name, f"{workload.name}-private"):
            return PRESENT if name == _REQUESTS else ""
        if name == _REQUESTS:
            return outcome(labels.get(_STATUS, ""))
        return LATENCY if name == _LATENCY else ""


def _of(workload: Workload, services: str, *names: str) -> str:
    place = exactly(workload.namespace)
    return selector(names, reporter="source", destination_service_namespace=place, **{_SERVICE: services})
