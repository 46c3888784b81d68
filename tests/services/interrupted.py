"""A TCP proxy that breaks off answers in the middle, between a client and a real HTTP server."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 65_536


@dataclass
class Interruptions:
    """What is broken off.

    Attributes:
        victim: part of the path of the requests whose answers are broken off.
        left: how many more are.
        body_bytes: bytes of the body that still pass.
        done: how many were.
    """

    victim: str = ""
    left: int = 0
    body_bytes: int = 100
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: bytes) -> bool:
        line = request.split(b"\r\n", 1)[0].decode(errors="replace")
        with self._lock:
            hit = bool(self.victim) and line.startswith("GET ") and self.victim in line and self.left > 0
            self.left -= hit
            self.done += hit
        return hit


@contextlib.contextmanager
def interrupted(url: str) -> Iterator[tuple[str, Interruptions]]:
    """Runs the proxy in front of ``url``; yields its own URL, and what it is to break off."""
    target = urlsplit(url)
    address = (str(target.hostname), int(target.port or 80))
    interruptions = Interruptions()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_serve, args=(client, address, interruptions), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", interruptions
        # A blocked accept() does not notice that its socket is closed.
        listening.shutdown(socket.SHUT_RDWR)


def _serve(client: socket.socket, address: tuple[str, int], interruptions: Interruptions) -> None:
    with client, socket.create_connection(address) as server:
        cut = threading.Event()

        def send_on() -> None:
            with contextlib.suppress(OSError):
                while request := client.recv(_CHUNK):
                    if interruptions.take(request):
                        cut.set()
                    server.sendall(request)
                server.shutdown(socket.SHUT_WR)

        threading.Thread(target=send_on, daemon=True).start()
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := server.recv(_CHUNK):
                if not cut.is_set():
                    client.sendall(chunk)
                    continue
                answer += chunk
                head, end, body = answer.partition(b"\r\n\r\n")
                if end and len(body) >= interruptions.body_bytes:
                    client.sendall(head + end + body[: interruptions.body_bytes])
                    # Closing alone would wait for the other thread, which is reading.
                    client.shutdown(socket.SHUT_RDWR)
                    return
