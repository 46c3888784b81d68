import shutil
from collections.abc import Callable, Iterator

import pytest

from modelyard.components.predictor.metrics import Metrics
from modelyard.components.serving.metrics.source import Workload
from tests.services.prometheus import Exposition, PrometheusServer, running_prometheus

STABLE = Workload("fraud", "1", "shop", "fraud", "fraud-predictor")
CANARY = Workload("fraud", "2", "shop", "fraud", "fraud-v2-predictor")


class Replica:
    """A predictor's own metrics behind a port of its own, without the predictor."""

    def __init__(self, version: str) -> None:
        self.version, self.failing = version, False
        self._exposition = Exposition(lambda: None if self.failing else self.metrics.exposition().decode())
        self.address = self._exposition.address
        self.restart()

    def restart(self) -> None:
        """All its counts begin at zero."""
        self.metrics = Metrics("fraud", self.version, "blake3:0")

    def serve(self, requests: int, status: int = 200, seconds: float = 0.003) -> None:
        for _ in range(requests):
            self.metrics.count_request(status, seconds)

    def close(self) -> None:
        self._exposition.close()


@pytest.fixture(scope="module")
def shared_prometheus(tmp_path_factory) -> Iterator[PrometheusServer]:
    if not shutil.which("prometheus"):
        pytest.skip("there is no prometheus to run: apt install prometheus")
    with running_prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        yield server


@pytest.fixture
def prometheus(shared_prometheus) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes nothing yet; its earlier samples stay."""
    yield shared_prometheus
    shared_prometheus.scrape({})


@pytest.fixture
def new_replica() -> Iterator[Callable[[str], Replica]]:
    made: list[Replica] = []

    def make(version: str) -> Replica:
        made.append(Replica(version))
        return made[-1]

    yield make
    for replica in made:
        replica.close()
