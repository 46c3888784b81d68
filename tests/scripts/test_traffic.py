"""Live traffic counts what a caller sees: by version, with nothing that was sent forgotten."""

import asyncio
import http.server
import itertools
import threading
import time

import pytest

from modelyard.scripts.traffic import NO_VERSION, LiveTraffic


class _Answers(http.server.BaseHTTPRequestHandler):
    """In turn: version 1 answers, version 2 fails, a proxy refuses, nobody answers."""

    turns = itertools.count()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        turn = next(self.turns) % 4
        if turn == 3:
            self.connection.close()
            return
        self.send_response((200, 500, 503)[turn])
        if turn < 2:
            self.send_header("x-model-version", str(turn + 1))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_request_counts_once_under_the_version_that_answered(url):
    traffic = LiveTraffic(url, "fraud", [{"amount": 1.0}, {"amount": None}], per_second=200)
    traffic.start()
    deadline = time.monotonic() + 30
    while sum(count["sent"] for count in traffic.counts().values()) < 40 and time.monotonic() < deadline:
        time.sleep(0.02)
    traffic.stop()
    counts = traffic.counts()
    assert set(counts) == {"1", "2", NO_VERSION}
    assert counts["1"]["failed"] == 0
    assert counts["2"]["failed"] == counts["2"]["sent"] > 5
    assert counts[NO_VERSION]["failed"] == counts[NO_VERSION]["sent"] > 10


def test_a_server_that_is_not_there_is_a_failed_request_and_not_an_end():
    traffic = LiveTraffic("http://127.0.0.1:9", "fraud", [{}], per_second=200)
    traffic.start()
    deadline = time.monotonic() + 30
    while not traffic.counts() and time.monotonic() < deadline:
        time.sleep(0.02)
    traffic.stop()
    assert traffic.counts()[NO_VERSION]["failed"] > 0


def test_a_request_that_fails_in_an_unforeseen_way_is_counted_all_the_same():
    class Broken:
        def post(self, *_, **__):
            raise RuntimeError("unforeseen")

    traffic = LiveTraffic("http://127.0.0.1:9", "fraud", [{}], per_second=1)
    with pytest.raises(RuntimeError, match="unforeseen"):
        asyncio.run(traffic._send(Broken(), {}))
    assert traffic.counts() == {NO_VERSION: {"sent": 1, "failed": 1}}
