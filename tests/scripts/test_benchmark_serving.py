import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil
import pytest

from modelyard.scripts.benchmark import load, servers
from modelyard.scripts.benchmark.measuring import Clock, MeasurementFailed, clean_environment
from modelyard.scripts.benchmark.wire import FORMS, MODEL_NAME
from modelyard.scripts.step_process import guarded

NAMES = ("f0", "f1")
ANSWERS_OK = (
    "import http.server, sys\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200)\n"
    "        self.end_headers()\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
)


class _Server(BaseHTTPRequestHandler):
    """Scores a row by its first value, in whatever form it is asked, written from the protocols and not from the client."""

    protocol_version = "HTTP/1.1"
    # Else the body of an answer waits for its head to be acknowledged.
    disable_nagle_algorithm = True
    status, offset, chunked, closing = 200, 0.0, False, False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.closing:
            self.close_connection = True
            return
        headers, answer = self._answer(body)
        self.send_response(self.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", str(len(answer)))))
        self.end_headers()
        self.wfile.write(_in_chunks(answer) if self.chunked else answer)

    def _answer(self, body):
        if self.path == f"/v1/models/{MODEL_NAME}:predict":
            rows = json.loads(body)["instances"]
            scores = [(row["f0"] if isinstance(row, dict) else row[0]) + self.offset for row in rows]
            return {}, json.dumps({"predictions": [{"probability": score, "decision": 0} for score in scores]}).encode()
        if self.path == "/invocations":
            frame = json.loads(body)["dataframe_split"]
            place = frame["columns"].index("f0")
            return {}, json.dumps({"predictions": [row[place] + self.offset for row in frame["data"]]}).encode()
        assert self.path == f"/v2/models/{MODEL_NAME}/infer"
        return self._answer_tensor(body)

    def _answer_tensor(self, body):
        length = int(self.headers.get("inference-header-content-length", len(body)))
        (tensor,) = json.loads(body[:length])["inputs"]
        size = tensor.get("parameters", {}).get("binary_data_size", 0)
        assert len(body) == length + size
        values = np.frombuffer(body[length:], "<f4") if size else np.array(tensor["data"], np.float32)
        scores = values.reshape(tensor["shape"])[:, 0].astype(np.float64) + self.offset
        decisions = {"name": "decision", "datatype": "INT32", "shape": [len(scores)]}
        probability = {"name": "probability", "datatype": "FP64", "shape": [len(scores)]}
        if not size:
            outputs = [decisions | {"data": [0] * len(scores)}, probability | {"data": scores.tolist()}]
            return {}, json.dumps({"outputs": outputs}).encode()
        tensors = [decisions | _sized(4 * len(scores)), probability | _sized(8 * len(scores))]
        head = json.dumps({"outputs": tensors}).encode()
        answer = head + bytes(4 * len(scores)) + scores.astype("<f8").tobytes()
        return {"Inference-Header-Content-Length": str(len(head))}, answer

    def log_message(self, *_):
        """Says nothing."""


def _sized(size):
    return {"parameters": {"binary_data_size": size}}


def _in_chunks(body):
    middle = len(body) // 2
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:middle], body[middle:], b""))


@contextmanager
def _serving(**behaviour):
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (_Server,), behaviour)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _send(folder, port, form, *, rows=3, clients=2, requests=50):
    matrix = np.random.default_rng(0).random((40, len(NAMES))).round(3)
    np.save(folder / load.ROWS_FILE, matrix)
    np.save(folder / load.SCORES_FILE, matrix[:, 0])
    return load.send(Clock(), str(folder), port, [os.getpid()], form, rows, clients, requests)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunked", [False, True])
def test_every_form_asks_for_the_rows_and_reads_their_scores(tmp_path, form, chunked):
    with _serving(chunked=chunked) as port:
        facts = _send(tmp_path, port, form)
    assert (facts["requests"], facts["sampled"]) == (50, 5)
    assert 0 < facts["median_ms"] <= facts["p99_ms"]


@pytest.mark.parametrize("form", FORMS)
def test_another_score_than_the_model_s_is_no_measurement(tmp_path, form):
    with _serving(offset=1e-3) as port, pytest.raises(MeasurementFailed, match="other scores"):
        _send(tmp_path, port, form)


def test_a_refused_request_is_no_measurement(tmp_path):
    with _serving(status=503) as port, pytest.raises(MeasurementFailed, match="503"):
        _send(tmp_path, port, "V1 lists")


def test_a_connection_that_is_closed_without_an_answer_is_no_measurement(tmp_path):
    with _serving(closing=True) as port, pytest.raises(MeasurementFailed, match="closed"):
        _send(tmp_path, port, "V1 lists")


def test_fewer_requests_than_clients_are_all_answered(tmp_path):
    with _serving() as port:
        assert _send(tmp_path, port, "V1 lists", clients=8, requests=3)["requests"] == 3


# Servers.


def _command(port):
    return guarded([sys.executable, "-c", ANSWERS_OK, str(port)])


def test_a_server_runs_on_a_port_of_its_own_until_the_block_is_left(tmp_path):
    with servers.running(_command, ready="/", folder=tmp_path / "server", environment=os.environ) as server:
        assert psutil.pid_exists(server.pid)
        assert server.seconds > 0
        assert server.cpu_seconds > 0
        assert server.resident_gib > 0
    assert not psutil.pid_exists(server.pid)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
        pass


def test_a_server_that_ends_shows_the_end_of_its_output(tmp_path):
    def command(port):
        return [sys.executable, "-c", "raise SystemExit('no such luck')"]

    with (
        pytest.raises(MeasurementFailed, match="no such luck"),
        servers.running(command, ready="/", folder=tmp_path, environment=os.environ),
    ):
        pass


def test_a_server_ends_with_the_process_that_measures_it_however_that_ends(tmp_path):
    code = (
        "import os, time\nfrom pathlib import Path\n"
        "from tests.scripts import test_benchmark_serving as here\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with here.servers.running(here._command, ready='/', folder=folder, environment=os.environ) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=clean_environment(tmp_path)) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert psutil.pid_exists(server)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(server):
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.02)
