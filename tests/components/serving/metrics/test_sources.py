import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.metrics.sources import open_source
from tests.components.serving.metrics.conftest import STABLE
from tests.services.servers import free_port


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MODELYARD_METRICS_SOURCE", raising=False)
    monkeypatch.setenv("MODELYARD_PROMETHEUS_URL", f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("name", ["predictor", "knative", "istio", "triton"])
def test_a_source_opens_without_looking_and_says_when_it_cannot_be_reached(name):
    source = open_source(name)
    with pytest.raises(NotAvailable, match=r"Prometheus at http://127\.0\.0\.1"):
        source.counts(STABLE, None)


def test_the_environment_goes_before_what_the_layout_suggests(monkeypatch):
    monkeypatch.setenv("MODELYARD_METRICS_SOURCE", "graphite")
    with pytest.raises(InvalidInput, match=r"MODELYARD_METRICS_SOURCE = 'graphite': choose from predictor, knative"):
        open_source("triton")


def test_an_unknown_source_and_a_missing_address_are_refused(monkeypatch):
    with pytest.raises(InvalidInput, match="metrics source = 'statsd'"):
        open_source("statsd")
    monkeypatch.delenv("MODELYARD_PROMETHEUS_URL")
    with pytest.raises(InvalidInput, match="MODELYARD_PROMETHEUS_URL"):
        open_source()
