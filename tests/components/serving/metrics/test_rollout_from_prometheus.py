"""A whole canary at real predictors behind a real Envoy, judged by what a real Prometheus scraped of them."""

import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.rollout.plan import parse_plan
from modelyard.components.rollout.record import CANARY, STABLE
from modelyard.components.rollout.rolling_out import run_rollout
from modelyard.components.serving.local.envoy_admin import Admin
from modelyard.components.serving.local.envoy_config import ADMIN_SOCKET
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.metrics.counting import PRESENT, outcome
from modelyard.components.serving.metrics.predictor import PredictorVocabulary
from modelyard.components.serving.metrics.prometheus import Prometheus
from modelyard.components.serving.metrics.prometheus_source import PrometheusSource
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import selector
from modelyard.components.serving.target import Arm, ArmCounts, Counts
from tests.components.rollout.conftest import _template, laptop, laptops, trial  # noqa: F401
from tests.components.serving.local.conftest import until
from tests.components.serving.metrics.conftest import CANARY as CANARY_ARM
from tests.components.serving.metrics.conftest import STABLE as STABLE_ARM
from tests.services.prometheus import Exposition, PrometheusServer, needs_prometheus, running_prometheus
from tests.services.servers import free_port
from tests.support.checked_traffic import CheckedTraffic

pytestmark = pytest.mark.server

PLAN = {
    "steps": [40, 100],
    "bake_seconds": 3,
    "min_samples": 20,
    "look_seconds": 0.5,
    "deadline_seconds": 120,
    "shadow_seconds": 0,
    # The two models have little in common, and two busy cores no steady latency.
    "limits": {"score_tolerance": 1.0, "max_latency_ratio": 64.0},
}


class EnvoyVocabulary:
    """What the laptop's proxy counts of a backend: a source more is this much."""

    seconds, apart, dated = 1.0, False, False
    present = "envoy_cluster_upstream_rq_active"

    def presence(self, workload):
        return selector([self.present])

    def everything(self, workload):
        # The backend that answered stands in the metric's name.
        name = re.sub(r"[^A-Za-z0-9_]", "_", workload.name)
        return selector([self.present, f"envoy_cluster_zone_modelyard_{name}_upstream_rq_xx"])

    def meaning(self, workload, labels):
        return PRESENT if labels["__name__"] == self.present else outcome(labels.get("envoy_response_code_class", ""))


def envoy_metrics(socket: Path) -> Exposition:
    """Envoy's statistics on a port: its admin interface is a socket that Prometheus cannot scrape."""

    def ask() -> str | None:
        try:
            return Admin(socket).ask("/stats/prometheus").decode()
        except NotAvailable:
            return None

    return Exposition(ask)


class ScrapedTarget(LocalTarget):
    """Models on this machine whose counts come from a Prometheus: how requests end from Envoy, the rest from the predictors."""

    def __init__(self, prometheus: PrometheusServer, envoy: str) -> None:
        super().__init__()
        self._prometheus, self._envoy = prometheus, envoy
        self._by_proxy, self._by_predictor = self.source(EnvoyVocabulary()), self.source(PredictorVocabulary())

    def source(self, vocabulary) -> PrometheusSource:
        return PrometheusSource(Prometheus(self._prometheus.url), vocabulary)

    def workloads(self, model_name: str) -> tuple[Workload | None, Workload | None]:
        """Both arms; a predictor is scraped as a pod would be, under the name of its arm."""
        state, predictors = self.state(model_name), self.health().predictors
        scraped = {f"127.0.0.1:{found['port']}": {"pod": name} for name, found in predictors.items() if found["port"]}
        self._prometheus.scrape({**scraped, f"{self._envoy}/stats/prometheus": {"pod": "envoy"}})

        def workload(arm: Arm | None) -> Workload | None:
            if arm is None:
                return None
            (name,) = [name for name in predictors if f"-v{arm.model.version}-" in name]
            return Workload(model_name, arm.model.version, "", model_name, name)

        return workload(state.stable), workload(state.canary)

    def counts(self, model_name: str) -> ArmCounts:
        workloads = self.workloads(model_name)
        proxy, predictor = self._by_proxy.counts(*workloads), self._by_predictor.counts(*workloads)
        return ArmCounts(_together(proxy.stable, predictor.stable), _together(proxy.canary, predictor.canary))


def _together(proxy: Counts | None, predictor: Counts | None) -> Counts | None:
    if proxy is None or predictor is None:
        return None
    return replace(predictor, answered=proxy.answered, rejected=proxy.rejected, failed=proxy.failed)


@needs_prometheus
@pytest.mark.slow
def test_a_whole_canary_is_judged_by_prometheus_though_it_is_killed_in_the_middle(laptop, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MODELYARD_SERVING_PORT", str(port := free_port()))
    folders = {number: Path(laptop.versions[number].uri) for number in ("1", "3")}
    socket = laptop.home / "serving" / "proxy" / ADMIN_SOCKET
    with running_prometheus(tmp_path / "prometheus") as prometheus, closing(envoy_metrics(socket)) as envoy:
        target = ScrapedTarget(prometheus, envoy.address)
        try:
            target.restore("fraud", laptop.versions["1"])
            witnesses = [target.source(EnvoyVocabulary()), target.source(PredictorVocabulary())]

            def witnessed(number: str) -> list[Counts | None]:
                """All that a version did, as the proxy and as the predictors counted it."""
                arms = target.workloads("fraud")
                arm = next(arm for arm in arms if arm is not None and arm.version == number)
                stable, canary = (arm, None) if number == "1" else (None, arm)
                return [getattr(one.counts(stable, canary), "stable" if stable else "canary") for one in witnesses]

            until(lambda: None not in witnessed("1"))
            looks = []

            def sleep(seconds: float) -> None:
                looks.append(seconds)
                if len(looks) == 4:
                    prometheus.stop(kill=True)
                if len(looks) == 8:
                    prometheus.start()
                time.sleep(seconds)

            start, promote = target.start_canary, target.promote

            def start_measured(name, model):
                start(name, model)
                until(lambda: None not in witnessed(model.version))

            last = []

            def promote_witnessed(name, digest):
                # At all the traffic nothing reaches the version before.
                last.extend([traffic.answered["1"], *witnessed("1")])
                promote(name, digest)

            target.start_canary, target.promote = start_measured, promote_witnessed
            with CheckedTraffic(f"http://127.0.0.1:{port}", folders, threads=2, pause=0.01) as traffic:
                done = run_rollout(
                    target,
                    parse_plan(**PLAN),
                    model_name="fraud",
                    **vars(laptop.versions["3"]),
                    on_this_machine=True,
                    sleep=sleep,
                )
            third = witnessed("3")
        finally:
            target.stop()
    assert (done.decision, done.outcome) == ("pass", "promoted"), done.reasons
    told = [event["text"] for event in done.events]
    assert any("cannot be reached: Prometheus at" in text for text in told)
    assert not any("began at zero" in text or "begin at zero" in text for text in told)
    assert not traffic.failed
    assert not traffic.wrong
    sent, *first = last
    assert [found.answered for found in first] == [sent, sent]
    assert [found.answered for found in third] == [traffic.answered["3"]] * 2
    for arm, found, number in ((STABLE, first[1], "1"), (CANARY, third[1], "3")):
        assert sum(found.latency) == sum(found.scores) == found.answered
        assert 0 < found.flagged < found.answered
        # What the rollout saw is a part of it: between two shares it does not look.
        assert 20 <= done.total(arm).answered <= traffic.answered[number]
        assert done.total(arm).failed == done.total(arm).rejected == 0
    # It was killed and came back before the end.
    assert len(looks) >= 8


@needs_prometheus
@pytest.mark.parametrize("reachable_first", [True, False])
def test_a_prometheus_that_cannot_be_reached_is_inconclusive(trial, reachable_first):  # noqa: F811
    at = trial()
    unreachable = PrometheusSource(Prometheus(f"http://127.0.0.1:{free_port()}"), PredictorVocabulary())
    counts, asked = at.target.counts, []

    def ask(name):
        asked.append(name)
        return counts(name) if reachable_first and len(asked) < 4 else unreachable.counts(STABLE_ARM, CANARY_ARM)

    at.target.counts = ask
    done = at.run()
    assert (done.decision, done.outcome, at.in_charge) == ("inconclusive", "rolled_back", "1")
    assert "Prometheus at http://127.0.0.1" in "; ".join(done.reasons)
    assert at.target.canary is None
