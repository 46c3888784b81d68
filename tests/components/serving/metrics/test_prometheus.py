import base64
import http.server
import json
import threading
from urllib.parse import parse_qs

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.metrics import prometheus as module
from modelyard.components.serving.metrics.prometheus import Prometheus
from tests.services.servers import free_port

NUMBER = {"status": "success", "data": {"resultType": "scalar", "result": [1.5, "1.25"]}}


@pytest.fixture
def gate():
    """A server in front of Prometheus, such as a proxy that checks who asks; a test says what it answers."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        status, body = 200, json.dumps(NUMBER)
        headers_to_send = ()

        def do_POST(self):
            content = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked.append((self.path, dict(self.headers), content))
            self.send_response(Handler.status)
            for name, value in Handler.headers_to_send:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(Handler.body.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", Handler, asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("url", ["prometheus:9090", "ftp://prometheus", "http://", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InvalidInput, match="MODELYARD_PROMETHEUS_URL"):
        Prometheus(url)


def test_a_password_in_what_is_no_url_is_not_shown():
    with pytest.raises(InvalidInput) as caught:
        Prometheus("htps://me:secret@prometheus")
    assert "secret" not in str(caught.value)


def test_it_asks_below_the_path_of_its_url_with_what_credentials_there_are(gate, monkeypatch, tmp_path):
    address, _, asked = gate
    assert Prometheus(f"http://{address}/prometheus/").now() == 1.25
    path, headers, content = asked[-1]
    assert (path, content["query"]) == ("/prometheus/api/v1/query", ["time()"])
    assert "Authorization" not in headers
    Prometheus(f"http://me:s%40cret@{address}").now()
    assert asked[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"me:s@cret").decode()
    monkeypatch.setenv("MODELYARD_PROMETHEUS_TOKEN", "one")
    client = Prometheus(f"http://{address}")
    client.now()
    assert asked[-1][1]["Authorization"] == "Bearer one"
    # A token that is renewed while the rollout goes on.
    file = tmp_path / "token"
    monkeypatch.setenv("MODELYARD_PROMETHEUS_TOKEN_FILE", str(file))
    with pytest.raises(NotAvailable, match=r"MODELYARD_PROMETHEUS_TOKEN_FILE: .* cannot be read"):
        client.now()
    for token in ("two", "three"):
        file.write_text(f"{token}\n")
        client.now()
        assert asked[-1][1]["Authorization"] == f"Bearer {token}"
    file.write_text("a\nb")
    with pytest.raises(NotAvailable, match="is no token"):
        client.now()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, "Unauthorized", "answers 401 .*MODELYARD_PROMETHEUS_TOKEN"),
        (400, '{"status": "error", "error": "bad_data"}', r"answers 400 \(bad_data\)"),
        (503, "Service Unavailable", "answers 503"),
        (302, "", "answers 302"),
        (200, "<html>", "answers 200"),
        (200, "[]", "answers 200"),
        (200, '{"status": "success", "data": {"result": []}, "warnings": ["store a: timeout"]}', "may not be whole.*store a"),
        (200, '{"status": "success", "data": {"result": [{"metric": {}, "values": [["x", "y"]]}]}}', "in another form"),
        (200, '{"status": "success", "data": {}}', "in another form"),
    ],
)
def test_an_answer_that_is_not_whole_and_right_is_none(gate, monkeypatch, status, body, says):
    address, handler, _ = gate
    monkeypatch.setattr(handler, "status", status)
    monkeypatch.setattr(handler, "body", body)
    monkeypatch.setattr(handler, "headers_to_send", [("Location", f"http://{address}/elsewhere")])
    monkeypatch.setenv("MODELYARD_PROMETHEUS_TOKEN", "sesame")
    with pytest.raises(NotAvailable, match=says) as caught:
        Prometheus(f"http://me:secret@{address}").ask("up")
    assert "secret" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_values_that_are_no_numbers_are_left_out(gate, monkeypatch):
    address, handler, _ = gate
    values = [[1, "2"], [2, "NaN"], [3, "+Inf"], [4.5, "7"]]
    answer = {"status": "success", "data": {"result": [{"metric": {"a": "b"}, "values": values}]}}
    monkeypatch.setattr(handler, "body", json.dumps(answer))
    (series,) = Prometheus(f"http://{address}").ask("x[5m]")
    assert (series.labels, series.samples) == ({"a": "b"}, ((1.0, 2.0), (4.5, 7.0)))


def test_one_that_is_not_there_or_does_not_answer_is_not_available(gate, monkeypatch):
    with pytest.raises(NotAvailable, match=r"cannot be reached: .*refused"):
        Prometheus(f"http://127.0.0.1:{free_port()}").now()
    address, handler, _ = gate
    release = threading.Event()
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(handler, "do_POST", lambda self: release.wait(20))
    with pytest.raises(NotAvailable, match="cannot be reached: timed out"):
        Prometheus(f"http://{address}").now()
    release.set()
