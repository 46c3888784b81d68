"""What Triton counts: requests that succeeded and that failed.

It needs a scrape of port 8002 of each pod that adds the labels ``namespace`` and ``pod``, as a PodMonitor does: Triton's own
label ``version`` is that of its model repository. Triton keeps no distribution of latencies, knows no scores, and does not
count what its HTTP server refuses as malformed; a request that its client cancelled counts as rejected.
"""

from modelyard.components.serving.metrics.counting import ANSWERED, FAILED, REJECTED
from modelyard.components.serving.metrics.prometheus import Labels
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import exactly, pods_of, selector

_SUCCEEDED = "nv_inference_request_success"
_FAILED = "nv_inference_request_failure"


class TritonVocabulary:
    """Triton's metrics."""

    seconds = 1.0
    apart = False
    dated = False

    def presence(self, workload: Workload) -> str:
        """Its count of successes, which begins at zero when the model is loaded."""
        return _of(workload, _SUCCEEDED)

    def everything(self, workload: Workload) -> str:
        """All that is compared."""
        return _of(workload, _SUCCEEDED, _FAILED)

    def meaning(self, workload: Workload, labels: Labels) -> str:
        """By the metric's name, and the reason of a failure."""
        if labels["__name__"] == _SUCCEEDED:
            return ANSWERED
        return REJECTED if labels.get("reason") == "CANCELED" else FAILED


def _of(workload: Workload, *names: str) -> str:
    return selector(names, model=exactly(workload.model_name), namespace=exactly(workload.namespace), pod=pods_of(workload))
