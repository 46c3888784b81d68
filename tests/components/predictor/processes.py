"""Predictors as processes, and requests to them or to the application in this process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def wait_until(condition, what: str) -> None:
    """Waits until ``condition()`` is true; fails after a minute."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.01)


@dataclass
class PredictorProcess:
    """A predictor that runs; what it says of itself is in ``status``."""

    folder: Path
    process: subprocess.Popen
    listener: socket.socket | None = None
    arguments: list[str] = field(default_factory=list)

    @property
    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": ""}

    @property
    def port(self) -> int:
        return self.status["port"]

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text()

    def wait_for(self, state: str) -> "PredictorProcess":
        wait_until(lambda: self.status["state"] == state or self.process.poll() is not None, f"{state}, but {self.status}")
        assert self.status["state"] == state, self.output
        return self

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def predict(self, instances: list[Any], **headers: str) -> Reply:
        body = json.dumps({"instances": instances}).encode()
        return self.request("POST", "/v1/models/fraud:predict", body, {"Content-Type": "application/json", **headers})

    def metrics(self) -> dict[tuple[str, ...], float]:
        """All samples by name and label values."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.request("GET", "/metrics").body.decode())
        return {
            (
                sample.name,
                *(value for name, value in sorted(sample.labels.items()) if name not in ("model", "version")),
            ): sample.value
            for family in families
            for sample in family.samples
        }

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Ends it and returns its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


def start_predictor(
    folder: Path,
    model: Path,
    *,
    name: str = "fraud",
    listener: socket.socket | None = None,
    python: str = sys.executable,
    **environment: str,
) -> PredictorProcess:
    """Starts a predictor of a signed directory; it listens on ``listener`` or on a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    # Of the fixtures' pids, so that nothing is left over if a test is killed: the group ends with its leader's session.
    arguments = ["--model_name", name, "--model_dir", str(model), "--status_file", str(folder / "status.json")]
    arguments += ["--http_port", "0"] if listener is None else ["--fd", str(listener.fileno())]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODEL_")}
    process = subprocess.Popen(
        [python, "-m", "modelyard.components.predictor", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=(folder / "output.log").open("ab"),
        stderr=subprocess.STDOUT,
        env={**kept, **environment},
        pass_fds=() if listener is None else (listener.fileno(),),
    )
    return PredictorProcess(folder, process)


def call(
    app: Any,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    pieces: int = 1,
) -> Reply:
    """Sends one request to an ASGI application in this process, its body in so many pieces."""
    size = max(1, -(-len(body) // pieces))
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": position < len(parts) - 1} for position, part in enumerate(parts)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(app(scope, receive, send))
    start, *rest = sent
    answered = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], answered, b"".join(message["body"] for message in rest))
