"""Counts from a real Prometheus that scrapes predictors' own metrics."""

import random
from dataclasses import replace

import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.metrics import prometheus_source
from modelyard.components.serving.metrics.predictor import PredictorVocabulary
from modelyard.components.serving.metrics.prometheus import Prometheus
from modelyard.components.serving.metrics.prometheus_source import PrometheusSource
from tests.components.serving.local.conftest import until
from tests.components.serving.metrics.conftest import CANARY, STABLE, Pod, Replica
from tests.services.prometheus import EXECUTABLE, running_prometheus

pytestmark = pytest.mark.server


@pytest.fixture
def arms(request):
    """Both arms of a model that no other test has."""
    name = f"model.{abs(hash(request.node.name))}"
    return replace(STABLE, model_name=name), replace(CANARY, model_name=name)


def until_measured(source, stable, canary=None):
    """Waits until Prometheus has found the arms; what is counted begins here."""

    def measured():
        counts = source.counts(stable, canary)
        return counts.stable is not None and (canary is None or counts.canary is not None)

    until(measured)


def test_each_call_tells_all_that_was_done_before_it_and_nothing_from_before_the_first(cluster, arms):
    source = cluster.source(PredictorVocabulary())
    stable, one, other = (Replica(cluster.pod("any"), arm) for arm in (arms[0], arms[1], arms[1]))
    stable.serve(1000)
    one.serve(50, 500)
    until_measured(source, *arms)
    # A replica that was not measured yet counts from when it is.
    until(lambda: len(Prometheus(cluster.prometheus.url).ask(PredictorVocabulary().presence(arms[1]))) == 2)
    begin = source.counts(*arms)
    assert begin.stable.requests == begin.canary.requests == 0
    assert begin.stable.origin == begin.canary.origin != cluster.source(PredictorVocabulary()).counts(*arms).stable.origin
    draw, answered, failed, served = random.Random(5), 0, 0, 0
    for look in range(6):
        served += (more := draw.randrange(40))
        stable.serve(more)
        for replica in (one, other):
            answered += (good := draw.randrange(9))
            failed += (bad := draw.randrange(3))
            replica.serve(good)
            replica.serve(bad, 503, seconds=2.0)
        counts = source.counts(*arms)
        assert (counts.stable.answered, counts.stable.failed) == (served, 0)
        assert (counts.canary.answered, counts.canary.failed) == (answered, failed)
        assert sum(counts.canary.latency) == answered + failed
        if look == 3:
            one.restart()
            one.serve(2)
            answered += 2


def test_neither_other_models_nor_versions_nor_namespaces_are_mixed_in(cluster, arms):
    source = cluster.source(PredictorVocabulary())
    dotless = replace(arms[0], model_name=arms[0].model_name.replace(".", "x"))
    own, *others = (
        Replica(cluster.pod("any", namespace), arm)
        for namespace, arm in (
            ("shop", arms[0]), ("shop", replace(arms[0], version="10")), ("shop", dotless), ("bank", arms[0]),
        )
    )  # fmt: skip
    until_measured(source, arms[0])
    for other in others:
        other.serve(7)
    own.serve(1)
    assert source.counts(arms[0], None).stable.answered == 1
    until(
        lambda: Prometheus(cluster.prometheus.url).ask(PredictorVocabulary().presence(replace(arms[0], namespace="bank"))) != []
    )


def test_an_arm_that_cannot_be_scraped_is_not_known_and_nothing_of_it_is_lost(cluster, arms):
    source = cluster.source(PredictorVocabulary())
    stable, canary = (Replica(cluster.pod("any"), arm) for arm in arms)
    assert source.counts(None, replace(arms[1], version="3")).canary is None
    until_measured(source, *arms)
    canary.serve(3)
    shown, canary.pod.text = canary.pod.text, None
    until(lambda: source.counts(*arms).canary is None)
    stable.serve(2)
    assert source.counts(*arms).stable.answered == 2
    canary.pod.text = shown
    canary.serve(4, 400)
    until(lambda: source.counts(*arms).canary is not None)
    counts = source.counts(*arms)
    assert (counts.canary.answered, counts.canary.rejected) == (3, 4)


@pytest.fixture
def own_prometheus(tmp_path):
    if not EXECUTABLE:
        pytest.skip("there is no prometheus to run: apt install prometheus")
    pods = [Pod("stable"), Pod("canary")]
    with running_prometheus(tmp_path / "prometheus") as server:
        yield server, *pods
    for pod in pods:
        pod.exposition.close()


@pytest.mark.slow
def test_what_went_while_prometheus_was_away_or_forgot_is_told_from_what_runs(own_prometheus, arms, monkeypatch):
    server, *pods = own_prometheus
    stable, canary = (Replica(pod, arm) for pod, arm in zip(pods, arms))
    server.scrape({**pods[0].target, **pods[1].target})
    source = PrometheusSource(Prometheus(server.url), PredictorVocabulary())
    until_measured(source, *arms)
    stable.serve(5)
    canary.serve(3)
    assert source.counts(*arms).canary.answered == 3
    # Scaled to zero in good order: Prometheus is told, and what was counted stands.
    server.scrape(pods[0].target)
    until(lambda: not Prometheus(server.url).ask(PredictorVocabulary().presence(arms[1])))
    stable.serve(1)
    counts = source.counts(*arms)
    assert (counts.stable.answered, counts.canary.answered) == (6, 3)
    # Somebody who counts anew knows that it is there to be counted, too.
    assert PrometheusSource(Prometheus(server.url), PredictorVocabulary()).counts(*arms).canary.requests == 0
    # Away, and without its samples: it has to find again what runs.
    server.stop()
    server.forget()
    stable.serve(2)
    server.start()
    assert source.counts(*arms).canary is None
    until(lambda: source.counts(*arms).stable is not None)
    stable.serve(4)
    assert source.counts(*arms).stable.answered == 12
    monkeypatch.setattr(prometheus_source, "_LEAST_PATIENCE_SECONDS", 2.0)
    # Away, and what it scraped is gone meanwhile, without a word: for minutes its last samples look like those of the living.
    server.stop(kill=True)
    server.scrape(pods[1].target)
    server.start()
    until(lambda: Prometheus(server.url).ask(PredictorVocabulary().presence(arms[1])))
    assert source.counts(*arms).stable is None
    server.stop(kill=True)
    server.scrape({})
    server.start()
    with pytest.raises(NotAvailable, match=r"has measured nothing for .* of what runs: shop/stable/models/"):
        source.counts(arms[0], None)
