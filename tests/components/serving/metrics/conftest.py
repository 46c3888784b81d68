import time
from collections.abc import Iterator

import pytest

from modelyard.components.predictor.metrics import Metrics
from modelyard.components.serving.metrics.prometheus import Prometheus
from modelyard.components.serving.metrics.prometheus_source import PrometheusSource
from modelyard.components.serving.metrics.source import Workload
from tests.services.prometheus import EXECUTABLE, Exposition, PrometheusServer, running_prometheus

STABLE = Workload("fraud", "1", "shop", "fraud", "fraud-predictor")
CANARY = Workload("fraud", "2", "shop", "fraud", "fraud-v2-predictor")


class Pod:
    """What Prometheus scrapes as one pod: nothing yet, and then what a test lets it say.

    Attributes:
        text: what it says; None to fail.
    """

    def __init__(self, name: str, namespace: str = "shop") -> None:
        self.name, self.namespace, self.text = name, namespace, ""
        self.exposition = Exposition(lambda: self.text)

    @property
    def target(self) -> dict[str, dict[str, str]]:
        """How it is scraped."""
        return {self.exposition.address: {"pod": self.name, "namespace": self.namespace}}


class Replica:
    """A predictor's own metrics on a pod, without the predictor."""

    def __init__(self, pod: Pod, workload: Workload) -> None:
        self.pod, self._workload = pod, workload
        self.restart()

    def restart(self) -> None:
        """All its counts begin at zero."""
        self.metrics = Metrics(self._workload.model_name, self._workload.version, "blake3:0")
        self.serve(0)

    def serve(self, requests: int, status: int = 200, seconds: float = 0.003) -> None:
        for _ in range(requests):
            self.metrics.count_request(status, seconds)
        self.pod.text = self.metrics.exposition().decode()


class Cluster:
    """Pods that a running Prometheus scrapes from its start, so that a test need not wait until it finds them."""

    def __init__(self, prometheus: PrometheusServer, pods: list[Pod]) -> None:
        self.prometheus, self._pods = prometheus, pods

    def pod(self, prefix: str, namespace: str = "shop") -> Pod:
        """A pod that no test has had, by how its name begins."""
        found = next(pod for pod in self._pods if pod.name.startswith(prefix) and pod.namespace == namespace)
        self._pods.remove(found)
        return found

    def source(self, vocabulary) -> PrometheusSource:
        return PrometheusSource(Prometheus(self.prometheus.url), vocabulary)


PODS = [
    *[("any", "shop")] * 14,
    *[("any", "bank")] * 1,
    *[("fraud-predictor-5f6d8c9b7", "shop"), ("fraud-v2-predictor-7c9f6d5b8", "shop"), ("fraud-predictor-5f6d8c9b7", "bank")],
    *[(f"fraud-predictor-0000{number}-deployment-66b8d7c9f", "shop") for number in (1, 1, 2, 3)],
    *[("gateway", "istio"), ("gateway", "istio")],
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if not EXECUTABLE:
        pytest.skip("there is no prometheus to run: apt install prometheus")
    pods = [Pod(f"{name}-x{number:04}", namespace) for number, (name, namespace) in enumerate(PODS)]
    with running_prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        server.scrape({address: labels for pod in pods for address, labels in pod.target.items()})
        client = Prometheus(server.url)
        deadline = time.monotonic() + 60
        while len(client.ask("up == 1")) < len(pods):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Cluster(server, list(pods))
    for pod in pods:
        pod.exposition.close()
