"""Requests to a served model, each answer of which is compared with what the version that it names must score."""

import http.client
import json
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from modelyard.components.artifacts.model import read_spec
from modelyard.components.artifacts.scoring import open_scorer
from tests.support.signed_models import FEATURES

TOLERANCE = 1e-6


class CheckedTraffic:
    """Sends single rows from a few threads until the block ends.

    Args:
        url: base URL of the live traffic.
        models: the model directory of each version that may answer.
        model_name: the model.
        threads: how many clients send at the same time.
        pause: seconds between two requests of a client.

    Attributes:
        answered: right answers by version.
        wrong: answers that their version would not give.
        failed: status codes, or the errors, of requests that were not answered with 200.
    """

    def __init__(
        self, url: str, models: dict[str, Path], *, model_name: str = "fraud", threads: int = 3, pause: float = 0.005
    ) -> None:
        self._address, self._path = urlsplit(url), f"/v1/models/{model_name}:predict"
        self._rows = np.random.default_rng(7).normal(size=(50, len(FEATURES))).astype(np.float32)
        self._expected = {
            version: open_scorer(folder, read_spec(folder)).score_matrix(self._rows) for version, folder in models.items()
        }
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[tuple[str, int, float]] = []
        self._pause = pause
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send_all, args=(seed,), daemon=True) for seed in range(threads)]

    def __enter__(self) -> "CheckedTraffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        return sum(self.answered.values())

    def ask(self, row: int = 0, timeout: float = 10.0) -> str:
        """One request on a connection of its own; returns the version that answered rightly, else raises."""
        connection = http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=timeout)
        try:
            version, right = self._ask(connection, row)
        finally:
            connection.close()
        assert right, f"version {version} answered wrongly"
        return version

    def _ask(self, connection: http.client.HTTPConnection, row: int) -> tuple[str, bool]:
        body = json.dumps({"instances": [[float(value) for value in self._rows[row]]]})
        connection.request("POST", self._path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"{answer.status} {content[:300].decode(errors='replace')}")
        version = answer.headers["x-model-version"]
        score = json.loads(content)["predictions"][0]["probability"]
        return version, abs(score - self._expected[version][row]) < TOLERANCE

    def _send_all(self, seed: int) -> None:
        order = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=20)
        while not self._stop.wait(self._pause):
            row = int(order.integers(len(self._rows)))
            try:
                version, right = self._ask(connection, row)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.failed[f"{type(error).__name__}: {error}"] += 1
                continue
            with self._lock:
                if right:
                    self.answered[version] += 1
                else:
                    self.wrong.append((version, row, seed))
        connection.close()
