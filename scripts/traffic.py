"""Live traffic for a served model: a steady stream of single-row requests, counted by the version that answered.

It measures what a caller sees through the proxy: every request that is sent is answered, or counts as failed.
"""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

NO_VERSION = "none"
_TIMEOUT_SECONDS = 10.0


class LiveTraffic:
    """Sends requests from a thread of its own until it is stopped.

    Args:
        url: base URL of the live traffic.
        model_name: the served model.
        rows: what to ask for, feature values by name; sent in turn, again and again.
        per_second: requests started each second, whether or not earlier ones were answered.
    """

    def __init__(self, url: str, model_name: str, rows: Sequence[dict[str, Any]], *, per_second: float) -> None:
        self._address = f"{url}/v1/models/{model_name}:predict"
        self._rows, self._pause = rows, 1 / per_second
        self._sent: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()), name="live-traffic", daemon=True)

    def start(self) -> None:
        """Starts sending."""
        self._thread.start()

    def stop(self) -> None:
        """Stops sending, and returns once every request was answered or given up."""
        self._stop.set()
        self._thread.join()

    def counts(self) -> dict[str, dict[str, int]]:
        """``sent`` and ``failed`` by version; what no version answered is under ``none``."""
        versions = sorted(self._sent)
        return {version: {"sent": self._sent[version], "failed": self._failed[version]} for version in versions}

    async def _send_all(self) -> None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        under_way: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            began = asyncio.get_running_loop().time()
            for number in itertools.count():
                if self._stop.is_set():
                    break
                task = asyncio.create_task(self._send(session, self._rows[number % len(self._rows)]))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                await asyncio.sleep(max(0.0, began + (number + 1) * self._pause - asyncio.get_running_loop().time()))
            await asyncio.gather(*under_way)

    async def _send(self, session: Any, row: dict[str, Any]) -> None:
        import aiohttp

        version, answered = NO_VERSION, False
        try:
            async with session.post(self._address, json={"instances": [row]}) as response:
                await response.read()
                version, answered = response.headers.get("x-model-version", NO_VERSION), response.ok
        except (aiohttp.ClientError, TimeoutError):
            # A request without an answer is a failed one, whatever the cause.
            answered = False
        finally:
            self._sent[version] += 1
            self._failed[version] += not answered
