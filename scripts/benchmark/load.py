"""A load generator that is light enough not to be what is measured.

Requests are written before the clock starts and answers are read after it has stopped; in between a few blocking sockets, kept
alive, are served by one loop that looks at nothing but the status and the length of an answer.
"""

import re
import selectors
import socket
import time
from pathlib import Path
from typing import Any

from modelyard.scripts.benchmark.measuring import Clock, MeasurementFailed
from modelyard.scripts.benchmark.wire import FORMS

TOLERANCE = 1e-6
ROWS_FILE, SCORES_FILE = "rows.npy", "scores.npy"
_DIFFERENT_REQUESTS = 16
_WARMING = 4 * _DIFFERENT_REQUESTS
_SAMPLED_EVERY = 10
_TIMEOUT_SECONDS = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class _Connection:
    """One connection of a client that waits for each answer before it asks again."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, number: int, request: bytes) -> None:
        self.number, self.asked = number, time.perf_counter()
        self._answer = bytearray()
        # Where the body begins and ends; without an end it comes in chunks.
        self._body: int = 0
        self._end: int | None = None
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Takes in what has arrived; whether the answer is complete."""
        arrived = self.socket.recv(1 << 18)
        if not arrived:
            raise MeasurementFailed("the server closed a connection before it had answered")
        self._answer += arrived
        if not self._body and not self._read_head():
            return False
        complete = self._answer.endswith(_LAST_CHUNK) if self._end is None else len(self._answer) >= self._end
        if complete and not self._answer.startswith(b"HTTP/1.1 200 "):
            raise MeasurementFailed(f"a request was refused: {bytes(self._answer[:1000])!r}")
        return complete

    def _read_head(self) -> bool:
        head = self._answer.find(b"\r\n\r\n")
        if head < 0:
            return False
        self._body = head + 4
        if length := _LENGTH.search(self._answer, 0, head):
            self._end = self._body + int(length[1])
        elif not _CHUNKED.search(self._answer, 0, head):
            raise MeasurementFailed(f"an answer does not say how long it is: {bytes(self._answer[:head])!r}")
        return True

    def answer(self) -> tuple[bytes, bytes]:
        """Head and body."""
        body = bytes(self._answer[self._body : self._end])
        return bytes(self._answer[: self._body]), _join_chunks(body) if self._end is None else body


def _join_chunks(body: bytes) -> bytes:
    joined = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return joined
        joined, body = joined + body[:length], body[length + 2 :]


def send(
    clock: Clock, folder: str, port: int, processes: list[int], form: str, rows: int, clients: int, requests: int
) -> dict[str, Any]:
    """Sends requests to a server from several clients at once; each waits for its answer before it sends the next.

    Args:
        clock: counts the CPU time of ``processes``, not of this one.
        folder: where ``ROWS_FILE`` (its columns are the features ``f0``, ``f1``, …) and ``SCORES_FILE`` are.
        port: the server's.
        processes: the server's, those that they started aside.
        form: one of ``FORMS``.
        rows: rows in a request.
        clients: how many connections.
        requests: how many are timed; some more come before, so that the server is warm.

    Raises:
        MeasurementFailed: a request got no answer, another status than 200, or other scores than the model's.
    """
    import numpy as np

    matrix, scores = (np.load(Path(folder, name)) for name in (ROWS_FILE, SCORES_FILE))
    names = [f"f{position}" for position in range(matrix.shape[1])]
    starts = [(number * rows) % (len(matrix) - rows + 1) for number in range(_DIFFERENT_REQUESTS)]
    written = [FORMS[form].request(names, matrix[start : start + rows].tolist()) for start in starts]
    connections = [_Connection(port) for _ in range(clients)]
    _exchange(connections, written, _WARMING)
    clock.watch(processes)
    used = time.process_time()
    with clock:
        sampled, waited = _exchange(connections, written, requests)
    used = time.process_time() - used
    for connection in connections:
        connection.socket.close()
    for number, head, body in sampled:
        found, expected = FORMS[form].read(head, body), scores[starts[number] : starts[number] + rows]
        if len(found) != rows or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise MeasurementFailed(f"an answer holds other scores than the model's: {found[:5]} instead of {expected[:5]}")
    return {
        "requests": requests,
        "sampled": len(sampled),
        "client_cpu_seconds": round(used, 4),
        "median_ms": round(1000 * float(np.median(waited)), 3),
        "p99_ms": round(1000 * float(np.quantile(waited, 0.99)), 3),
    }


def _exchange(
    connections: list[_Connection], written: list[bytes], count: int
) -> tuple[list[tuple[int, bytes, bytes]], list[float]]:
    """Sends ``count`` requests; returns some of the answers, each with its request's number, and all waiting times in s."""
    sampled: list[tuple[int, bytes, bytes]] = []
    waited: list[float] = []
    sent = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections[:count]:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.ask(sent % len(written), written[sent % len(written)])
            sent += 1
        while len(waited) < count:
            ready = selector.select(_TIMEOUT_SECONDS)
            if not ready:
                raise MeasurementFailed(f"no answer within {_TIMEOUT_SECONDS:g} s")
            for key, _ in ready:
                connection = key.data
                if not connection.receive():
                    continue
                waited.append(time.perf_counter() - connection.asked)
                if len(waited) % _SAMPLED_EVERY == 0:
                    sampled.append((connection.number, *connection.answer()))
                if sent < count:
                    connection.ask(sent % len(written), written[sent % len(written)])
                    sent += 1
    return sampled, waited
