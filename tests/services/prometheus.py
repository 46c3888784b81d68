"""A real Prometheus on loopback, which can be restarted, and what it scrapes."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.services.servers import START_SECONDS, free_port

EXECUTABLE = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(not EXECUTABLE, reason="there is no prometheus to run: apt install prometheus")


class PrometheusServer:
    """A Prometheus that scrapes what ``scrape`` names; it keeps its samples over a restart.

    Args:
        folder: for its configuration and samples.
        interval: between two scrapes, as Prometheus writes it. It is also how long one may take, and a stall of the tests' own
            process, which serves most of what is scraped, must not look like the end of a pod.
    """

    def __init__(self, folder: Path, interval: str = "1s") -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._targets = folder / "targets.json"
        self._written = 0
        self.scrape({})
        configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [
                {"job_name": "models", "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}]}
            ],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(configuration))

    def scrape(self, targets: dict[str, dict[str, str]]) -> None:
        """What is scraped from now on: labels by ``host:port``, or by ``host:port/path``."""
        content = []
        for name, labels in targets.items():
            address, slash, path = name.partition("/")
            content.append({"targets": [address], "labels": {**labels, **({"__metrics_path__": slash + path} if path else {})}})
        self._written += 1
        partial = self._folder / f"targets-{self._written}"
        partial.write_text(json.dumps(content))
        partial.replace(self._targets)

    def start(self) -> None:
        """Runs it, and returns when it answers."""
        command = [EXECUTABLE or "prometheus", f"--config.file={self._folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address=127.0.0.1:{self._port}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "GOMAXPROCS": "2"}
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).close()
                return
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.05)
        raise AssertionError("Prometheus did not answer in time")

    def stop(self, *, kill: bool = False) -> None:
        """Ends it, gently or not."""
        if self._process:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Removes all samples, as where they are on a volume that ends with the pod."""
        shutil.rmtree(self._folder / "data")


@contextmanager
def running_prometheus(folder: Path, interval: str = "1s") -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes nothing yet."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PrometheusServer(folder, interval)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Exposition:
    """An HTTP server that gives a text to whoever scrapes it.

    Args:
        text: makes what it gives; None to fail.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, text: Callable[[], str | None]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = text()
                body = (given or "").encode()
                # Prometheus may have been killed meanwhile.
                with suppress(ConnectionError):
                    self.send_response(500 if given is None else 200)
                    self.send_header("Content-Type", "text/plain; version=0.0.4")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody answers at the address any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
