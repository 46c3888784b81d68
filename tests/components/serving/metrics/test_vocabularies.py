"""Each vocabulary against what its programs write, by way of a real Prometheus."""

from dataclasses import replace

import pytest

from modelyard.components.serving.buckets import LATENCY_EDGES, bucket
from modelyard.components.serving.metrics.istio import IstioVocabulary
from modelyard.components.serving.metrics.knative import KnativeVocabulary
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.triton import TritonVocabulary
from tests.components.serving.local.conftest import until
from tests.components.serving.metrics.conftest import CANARY, STABLE

pytestmark = pytest.mark.server

KNATIVE_EDGES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
ISTIO_EDGES = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000)


def histogram(name, labels, edges, values):
    lines = [f'{name}_bucket{{{labels},le="{edge}"}} {sum(value <= edge for value in values)}' for edge in edges]
    lines += [f'{name}_bucket{{{labels},le="+Inf"}} {len(values)}', f"{name}_sum{{{labels}}} {sum(values)}"]
    return [*lines, f"{name}_count{{{labels}}} {len(values)}"]


def text(*lines):
    return "\n".join(lines) + "\n"


def latency(*places):
    return tuple(sum(place == own for own in places) for place in range(len(LATENCY_EDGES) + 1))


def above(seconds):
    """The first bucket that holds something longer."""
    return bucket(seconds * 1.0001, LATENCY_EDGES)


def queue_proxy(revision, by_status):
    """What a queue-proxy of Knative 1.20 writes: only ``target_info`` names the revision."""
    name, scope = (
        "kn_serving_invocation_duration_seconds",
        'otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_version=""',
    )
    lines = [
        f'target_info{{k8s_namespace_name="shop",kn_revision_name="{revision}",kn_service_name="fraud-predictor"}} 1',
        f"kn_serving_queue_depth{{{scope}}} 1",
    ]
    for status, seconds in by_status.items():
        lines += histogram(name, f'http_response_status_code="{status}",{scope}', KNATIVE_EDGES, seconds)
    return text(*lines)


def test_knative_counts_by_revision_status_and_its_own_buckets(cluster):
    arms = [replace(STABLE, name=f"fraud-predictor-0000{number}") for number in (1, 2)]
    pods = [cluster.pod(f"{arm.name}-deployment") for arm in (arms[0], *arms)]
    other = cluster.pod("fraud-predictor-00003-deployment")
    source = cluster.source(KnativeVocabulary())
    assert source.counts(*arms).stable is None
    before = {"200": [0.004, 0.02]}
    for pod, name in zip([*pods, other], ["fraud-predictor-00001"] * 2 + ["fraud-predictor-00002", "fraud-predictor-00003"]):
        pod.text = queue_proxy(name, before)
    until(lambda: source.counts(*arms).canary is not None)
    pods[0].text = queue_proxy("fraud-predictor-00001", {"200": [*before["200"], 0.006], "422": [0.3]})
    pods[1].text = queue_proxy("fraud-predictor-00001", {"200": [*before["200"], 0.02, 20.0]})
    pods[2].text = queue_proxy("fraud-predictor-00002", {"200": [*before["200"], 0.02], "500": [20.0]})
    other.text = queue_proxy("fraud-predictor-00003", {"200": [0.1] * 100})
    counts = source.counts(*arms)
    assert (counts.stable.answered, counts.stable.rejected, counts.stable.failed) == (3, 1, 0)
    assert (counts.canary.answered, counts.canary.rejected, counts.canary.failed) == (1, 0, 1)
    # The stable arm's as slow as they may be, the canary's as fast.
    assert counts.stable.latency == latency(*(bucket(edge, LATENCY_EDGES) for edge in (0.01, 0.025, 0.5, 100)))
    assert counts.canary.latency == latency(above(0.01), above(10))
    assert sum(counts.stable.scores) == counts.stable.flagged == 0


def proxy(by_service):
    """What an Istio proxy writes of the requests that it sent, and of some that it got."""
    lines = []
    for (service, status), milliseconds in by_service.items():
        for reporter in ("source", "destination"):
            labels = (
                f'reporter="{reporter}",destination_service_namespace="shop",destination_service_name="{service}",'
                f'response_code="{status}",response_flags="-",source_workload="gateway"'
            )
            lines.append(f"istio_requests_total{{{labels}}} {len(milliseconds)}")
            lines += histogram("istio_request_duration_milliseconds", labels, ISTIO_EDGES, milliseconds)
    return text(*lines)


def test_istio_counts_what_proxies_sent_to_an_arms_service_even_the_first_request(cluster):
    one, other = cluster.pod("gateway", "istio"), cluster.pod("gateway", "istio")
    stable, canary, source = STABLE, CANARY, cluster.source(IstioVocabulary())
    begun = {("fraud-predictor", "200"): [3.0] * 5, ("fraudulent-predictor", "200"): [3.0]}
    one.text = other.text = proxy(begun)
    until(lambda: source.counts(stable, canary).stable is not None)
    source.counts(stable, canary)
    one.text = proxy({**begun, ("fraud-v2-predictor", "200"): [30.0, 0.3], ("fraud-v2-predictor", "503"): [70_000.0]})
    other.text = proxy(
        {
            **begun,
            ("fraud-predictor", "200"): [3.0] * 6,
            ("fraud-v2-predictor", "0"): [1.0],
            ("fraud-v2-predictor-private", "404"): [1.0],
            ("fraudulent-predictor", "200"): [3.0] * 50,
        }
    )
    counts = source.counts(stable, canary)
    assert (counts.stable.answered, counts.stable.rejected, counts.stable.failed) == (1, 0, 0)
    assert counts.stable.latency == latency(bucket(0.005, LATENCY_EDGES))
    assert (counts.canary.answered, counts.canary.rejected, counts.canary.failed) == (2, 1, 2)
    assert counts.canary.latency == latency(above(0.025), 0, above(60), above(0.0005), above(0.0005))
    # A counter that was not used is dropped, and begins anew later, while the proxy goes on.
    one.text = proxy({**begun, ("fraud-v2-predictor", "200"): [30.0, 0.3]})
    source.counts(stable, canary)
    one.text = proxy({**begun, ("fraud-v2-predictor", "200"): [30.0, 0.3], ("fraud-v2-predictor", "503"): [1.0, 1.0]})
    assert source.counts(stable, canary).canary.failed == 4
    assert source.counts(stable, canary).canary.answered == 2


def triton(succeeded, failed=None, model="fraud"):
    labels = f'model="{model}",version="1"'
    lines = [f"nv_inference_request_success{{{labels}}} {succeeded}"]
    lines += [f'nv_inference_request_failure{{{labels},reason="{reason}"}} {count}' for reason, count in (failed or {}).items()]
    return text(*lines, f"nv_inference_request_duration_us{{{labels}}} 1234")


def test_triton_counts_by_pod_because_its_own_version_says_nothing(cluster):
    stable, canary = cluster.pod("fraud-predictor-5f"), cluster.pod("fraud-v2-predictor")
    elsewhere = cluster.pod("fraud-predictor-5f", "bank")
    source = cluster.source(TritonVocabulary())
    none = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    for pod in (stable, canary, elsewhere):
        pod.text = triton(0, none)
    until(lambda: None not in vars(source.counts(STABLE, CANARY)).values())
    stable.text = triton(100, none)
    canary.text = triton(9, {"REJECTED": 1, "CANCELED": 2, "BACKEND": 3, "OTHER": 4}) + triton(55, model="other")
    elsewhere.text = triton(1000, none)
    counts = source.counts(STABLE, CANARY)
    assert (counts.stable.answered, counts.stable.rejected, counts.stable.failed) == (100, 0, 0)
    assert (counts.canary.answered, counts.canary.rejected, counts.canary.failed) == (9, 2, 8)
    assert sum(counts.canary.latency) == sum(counts.canary.scores) == 0


@pytest.mark.parametrize("vocabulary", [KnativeVocabulary(), IstioVocabulary(), TritonVocabulary()])
def test_a_name_stays_one_name_whatever_characters_it_has(vocabulary, cluster):
    # Prometheus would refuse the query else.
    workload = Workload('a"b\\c.*', "1", "shop}", "fraud", "fräud-(predictor")
    source = cluster.source(vocabulary)
    assert source.counts(workload, None).stable is None
