"""What Knative's queue-proxy counts, by OpenTelemetry's names: requests by status, and latency in its own buckets.

It needs ``request-metrics-protocol: prometheus`` in ConfigMap ``config-observability``, and a scrape of port 9091 of each pod
that adds the labels ``namespace`` and ``pod``, as a PodMonitor does. The series themselves do not name the revision;
``target_info`` of the same scrape does.

Scores and decisions are not known to it. A request that the predictor never answered is counted as the 5xx that it became.
"""

from modelyard.components.serving.metrics.counting import LATENCY, PRESENT, outcome
from modelyard.components.serving.metrics.prometheus import Labels
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import exactly, pods_of, selector

_PRESENT = "target_info"
_REVISION = "kn_revision_name"
_REQUESTS = "kn_serving_invocation_duration_seconds_count"
_LATENCY = "kn_serving_invocation_duration_seconds_bucket"
_STATUS = "http_response_status_code"


class KnativeVocabulary:
    """The metrics of Knative's queue-proxy."""

    seconds = 1.0
    apart = False
    dated = False

    def presence(self, workload: Workload) -> str:
        """The queue-proxies of the revision."""
        return _of(workload, _PRESENT, **{_REVISION: exactly(workload.name)})

    def everything(self, workload: Workload) -> str:
        """All that is compared."""
        return _of(workload, _PRESENT, _REQUESTS, _LATENCY)

    def meaning(self, workload: Workload, labels: Labels) -> str:
        """By the metric's name; the count of all latencies with a status is that of its requests."""
        name = labels["__name__"]
        if name == _PRESENT:
            return PRESENT if labels.get(_REVISION) == workload.name else ""
        if name == _REQUESTS:
            return outcome(labels.get(_STATUS, ""))
        return LATENCY if name == _LATENCY else ""


def _of(workload: Workload, *names: str, **matchers: str) -> str:
    return selector(names, namespace=exactly(workload.namespace), pod=pods_of(workload), **matchers)
