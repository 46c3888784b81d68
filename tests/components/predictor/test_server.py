import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.predictor.server import listen
from tests.components.predictor.processes import wait_until


@pytest.fixture
def copy(models, tmp_path):
    """A copy of ``first`` that a test may spoil."""
    return shutil.copytree(models["first"], tmp_path / "model")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _refusal(predictor):
    assert predictor.process.wait(60) == 3
    assert predictor.status["state"] == "failed"
    assert predictor.status["pid"] == predictor.process.pid
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", predictor.status["port"]))
    assert predictor.status["reason"] in predictor.output
    return predictor.status["reason"]


def test_a_predictor_says_what_it_serves_and_ends_when_asked(models, digest, start):
    predictor = start(models["first"], MODEL_VERSION="12", MODEL_DIGEST=digest(models["first"]), MODEL_THRESHOLD="1")
    predictor.wait_for("ready")
    status = predictor.status
    assert status == {
        "state": "ready", "reason": "", "pid": predictor.process.pid, "version": "12",
        "digest": digest(models["first"]), "port": status["port"],
    }  # fmt: skip
    reply = predictor.predict([[1, 2]])
    assert reply.headers["x-model-version"] == "12"
    # The model's own threshold is 0.5.
    assert reply.json["predictions"][0]["probability"] > 0.5
    assert reply.json["predictions"][0]["decision"] == 0
    assert _addresses(predictor.process.pid) == {("127.0.0.1", status["port"])}
    assert predictor.stop() == 0
    assert predictor.status["state"] == "draining"
    assert "Traceback" not in predictor.output


def _addresses(pid):
    import psutil

    return {tuple(found.laddr) for found in psutil.Process(pid).connections() if found.status == psutil.CONN_LISTEN}


def test_a_model_that_is_not_as_it_was_signed_is_never_served(copy, start):
    golden = copy / "golden_rows.json"
    golden.write_text(golden.read_text().replace("0.", "0.1", 1))
    assert "1 of its files was altered since it was signed: golden_rows.json" in _refusal(start(copy))


def test_an_older_version_is_not_served_as_the_newer_one(models, digest, start):
    assert "it is another version" in _refusal(start(models["first"], MODEL_DIGEST=digest(models["second"])))


def test_a_setting_that_cannot_be_used_is_named(models, start):
    predictor = start(models["first"], MODEL_THRESHOLD="2")
    assert predictor.process.wait(60) == 2
    assert predictor.status["state"] == "failed"
    assert "MODEL_THRESHOLD = '2'" in predictor.status["reason"]


def test_a_good_model_is_reloaded_and_a_bad_one_is_not(models, copy, digest, start):
    predictor = start(copy).wait_for("ready")
    assert "MODEL_DIGEST is not set" in predictor.output
    load_again = ("POST", "/v2/repository/models/fraud/load", b"{}")
    before = predictor.predict([[1, 2]]).json
    _replace(copy, models["second"])
    reply = predictor.request(*load_again)
    assert (reply.status, reply.json) == (200, {"name": "fraud", "load": True})
    after = predictor.predict([[1, 2]]).json
    assert after != before
    assert predictor.status["digest"] == digest(models["second"])

    (copy / "model.sig").unlink()
    reply = predictor.request(*load_again)
    assert reply.status == 409
    assert "is not signed" in reply.json["error"]
    assert predictor.predict([[1, 2]]).json == after
    assert predictor.status["state"] == "ready"
    assert "is not signed" in predictor.status["reason"]
    assert predictor.metrics()["modelyard_reload_failures_total",] == 1

    _replace(copy, models["first"])
    predictor.signal(signal.SIGHUP)
    wait_until(lambda: predictor.status["digest"] == digest(models["first"]), "the reload by SIGHUP")
    assert predictor.status["reason"] == ""
    assert predictor.predict([[1, 2]]).json == before
    assert predictor.metrics()["modelyard_model_info", digest(models["first"])] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_predictor_can_be_ended_and_asked_to_reload_before_it_is_ready(models, start, number):
    predictor = start(models["first"])
    wait_until(lambda: predictor.status["state"] == "starting", "the first status")
    predictor.signal(signal.SIGHUP)
    predictor.signal(number)
    assert predictor.process.wait(60) == 0
    assert (predictor.status["state"], predictor.status["reason"]) == ("draining", "it was ended before it was ready")


def _replace(directory, model):
    shutil.rmtree(directory)
    shutil.copytree(model, directory)


class _Traffic:
    """Clients with connections of their own, which ask one question after another and say how each went."""

    BODY = json.dumps({"instances": [[1, 2]] * 20}).encode()

    def __init__(self, port, clients=4):
        self.port, self.answered, self.lost, self.wrong = port, 0, [], []
        self.stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        connection = None
        while not self.stop.is_set():
            try:
                # ``http.client`` closes a connection when the answer says so, and connects anew for the next request.
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request("POST", "/v1/models/fraud:predict", self.BODY, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                self.answered += 1
                if response.status != 200:
                    self.wrong.append(response.status)
            except OSError as error:
                self.lost.append(repr(error))
                connection = None
            except http.client.HTTPException as error:
                self.lost.append(repr(error))
                connection = None

    def end(self):
        self.stop.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_when_one_process_follows_another_on_the_same_socket(models, start, listener):
    predictor = start(models["first"], listener=listener).wait_for("ready")
    assert predictor.port == listener.getsockname()[1]
    traffic = _Traffic(predictor.port)
    wait_until(lambda: traffic.answered > 20, "answers")
    predictor.signal(signal.SIGTERM)
    successor = start(models["first"], listener=listener)
    assert predictor.process.wait(60) == 0
    successor.wait_for("ready")
    seen = traffic.answered
    wait_until(lambda: traffic.answered > seen + 20, "answers of the successor")
    traffic.end()
    assert (traffic.lost, traffic.wrong) == ([], [])


def test_what_was_asked_before_the_end_is_answered(models, start):
    predictor = start(models["first"]).wait_for("ready")
    with socket.create_connection(("127.0.0.1", predictor.port)) as slow:
        body = b'{"instances": [[1, 2]]}'
        slow.sendall(b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        slow.sendall(body[:5])
        wait_until(lambda: predictor.metrics()["modelyard_requests_in_flight",] == 1, "the request in flight")
        predictor.signal(signal.SIGTERM)
        predictor.wait_for("draining")
        # Longer than idle connections are kept.
        time.sleep(2)
        assert predictor.process.poll() is None
        slow.sendall(body[5:])
        answer = slow.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert b'"probability"' in answer
    assert predictor.process.wait(60) == 0


def test_a_killed_predictor_leaves_nothing_that_the_next_one_trips_over(models, start, listener, tmp_path):
    for moment in (0.2, 0.8):
        predictor = start(models["first"], listener=listener, TMPDIR=str(tmp_path))
        time.sleep(moment)
        predictor.process.kill()
        predictor.process.wait()
    predictor = start(models["first"], listener=listener).wait_for("ready")
    assert predictor.predict([[1, 2]]).status == 200


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.0.0.9", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_a_socket_says_whether_strangers_can_connect(host, loopback):
    # Bound only: nothing listens.
    listening = listen(host, 0, None)
    assert listening.is_loopback == loopback
    listening.socket.close()


def test_a_port_in_use_is_named(models, listener):
    port = str(listener.getsockname()[1])
    arguments = ["--model_name", "fraud", "--model_dir", str(models["first"]), "--http_port", port]
    command = [sys.executable, "-m", "modelyard.components.predictor", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"http_port = {port}" in ended.stderr


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
        b"POST http://[::1/v1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_hardly_http_gets_a_4xx_or_no_answer_and_harms_nobody(served, sent):
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert served.predict([[1, 2]]).status == 200
    assert "Traceback" not in served.output, served.output


_WHOLE = st.tuples(
    st.just("good"), st.lists(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=2, max_size=2), min_size=1, max_size=9)
)
_BROKEN = st.tuples(
    st.sampled_from(["bad", "path", "type", "method", "cut"]), st.lists(st.lists(st.text(max_size=3), max_size=3))
)


@pytest.mark.parametrize("examples", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_bad_requests_among_good_ones_get_4xx_and_the_good_ones_their_scores(served, load, examples):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    scorer = load("first").loaded.scorer

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(_WHOLE | _BROKEN, max_size=4))
    def ask(requests):
        for kind, rows in requests:
            body = json.dumps({"instances": rows}).encode()
            path = "/v1/models/other:predict" if kind == "path" else "/v1/models/fraud:predict"
            headers = {"Content-Type": "text/html" if kind == "type" else "application/json"}
            connection.request("PUT" if kind == "method" else "POST", path, body[:-1] if kind == "cut" else body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if kind == "good":
                matrix = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float32)
                assert response.status == 200
                assert [entry["probability"] for entry in answer["predictions"]] == scorer.score_matrix(matrix).tolist()
            else:
                assert 400 <= response.status < 500
                assert answer["error"]

    ask()
    connection.close()


def test_a_body_in_chunks_is_read(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    chunks = iter([b'{"instances"', b": [[1, 2]", b"]}"])
    connection.request("POST", "/v1/models/fraud:predict", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    for _ in range(2):
        connection.request("POST", "/v1/models/fraud:predict", b" " * 11_000_000, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 413
        assert "10485760" in json.loads(response.read())["error"]
    connection.close()


def test_a_client_that_goes_away_in_the_middle_harms_nobody(served):
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
    wait_until(lambda: served.metrics()["modelyard_requests_in_flight",] == 0, "nothing in flight")
    assert served.predict([[1, 2]]).status == 200


def test_head_is_answered_without_a_body(served):
    reply = served.request("HEAD", "/v2/health/ready")
    assert (reply.status, reply.body) == (200, b"")
    assert served.request("HEAD", "/v1/models/fraud:predict").status == 405
