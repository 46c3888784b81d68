"""The life of a predictor's process: from its first status over loading and serving to the last answered request.

It answers nothing before its model is verified and loaded. SIGTERM ends it after the requests in flight; SIGHUP reloads the
model, and is ignored until there is one.
Exit statuses: 0 after SIGTERM, 2 if it was called wrongly, 3 if the model is refused.
"""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop

from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.predictor.app import App
from modelyard.components.predictor.configuration import Configuration
from modelyard.components.predictor.logged import LoggedPredictions
from modelyard.components.predictor.metrics import Metrics
from modelyard.components.predictor.served_model import ServedModel
from modelyard.components.predictor.status import StatusFile

CALLED_WRONGLY, REFUSED = 2, 3
DRAIN_SECONDS = 30
# From SIGTERM on, the prediction log included. Whoever stops a predictor may kill it soon after.
END_SECONDS = 37
_LOG_SECONDS = 20.0
# How long clients with a connection of their own get to send what they were about to, and to learn that it will be closed.
_LAST_CALL_SECONDS = 1.0
# Longer than the hour that Envoy keeps a connection which it does not use: the side that sends should be the one to close.
_KEEP_ALIVE_SECONDS = 3900

logger = logging.getLogger("modelyard.predictor")


@dataclass(frozen=True)
class Listening:
    """The socket that requests come by.

    Attributes:
        socket: bound; it listens already if it was inherited.
        inherited: whether somebody else keeps it open as well, so that connections wait there when this process ends.
    """

    socket: socket.socket
    inherited: bool

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.socket.getsockname()[1]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.socket.getsockname()[0]).is_loopback


def listen(host: str, port: int, descriptor: int | None) -> Listening:
    """Takes the inherited listening socket, or binds one, which does not listen yet.

    Raises:
        InvalidInput: the descriptor is no TCP socket, or the port cannot be bound.
    """
    if descriptor is not None:
        try:
            inherited = socket.socket(fileno=descriptor)
        except OSError as error:
            raise InvalidInput("fd", descriptor, f"pass an open listening socket ({error})") from error
        if inherited.family not in (socket.AF_INET, socket.AF_INET6) or inherited.type != socket.SOCK_STREAM:
            raise InvalidInput("fd", descriptor, "pass a listening TCP socket")
        return Listening(inherited, inherited=True)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InvalidInput("http_port", port, f"{host}:{port} cannot be bound ({error}); choose another port") from error
    return Listening(bound, inherited=False)


class _Server(uvicorn.Server):
    """Uvicorn's server without its own handling of signals, which would end the process by the signal it got."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Predictor:
    """One model, served by one process."""

    def __init__(self, model: ServedModel, configuration: Configuration, listening: Listening, status: StatusFile) -> None:
        self._model, self._configuration, self._listening, self._status = model, configuration, listening, status
        self._reason = ""
        self._ends_at = 0.0
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()

    def run(self) -> int:
        """Loads the model and serves it until SIGTERM; returns the exit status."""
        try:
            self._model.load()
            self._log = LoggedPredictions(self._configuration.prediction_log)
            self._log.open(self._model.loaded)
        except (ModelyardError, OSError) as error:
            logger.error("%s is refused: %s", self._model.name, error)
            self._status.write("failed", str(error))
            return REFUSED
        loaded = self._model.loaded
        if not self._configuration.digest:
            logger.warning(
                "MODEL_DIGEST is not set: any signed version of %s is served, this time %s", loaded.name, loaded.digest
            )
        self._status.version, self._status.digest = loaded.version, loaded.digest
        self._metrics = Metrics(loaded.name, loaded.version, loaded.digest)
        self._metrics.logged_rows = self._log.rows
        self._app = App(
            self._model,
            self._metrics,
            self._log,
            self.reload,
            self._configuration.max_request_bytes,
            self._listening.is_loopback,
        )
        # What is loaded by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())
        # The loop's own handling of signals has ended with it: another one must not cost what is still to be logged.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._app.close()
        self._log.close(min(_LOG_SECONDS, self._ends_at - time.monotonic()))
        return 0

    async def reload(self) -> str:
        """Verifies and loads the model again; returns why it was refused, or nothing if it was not."""
        if self._reloading.locked():
            return "a reload is under way already"
        async with self._reloading:
            try:
                await asyncio.to_thread(self._model.load)
            except (ModelyardError, OSError) as error:
                self._reason = f"the reload was refused: {error}"
                self._metrics.reload_failures += 1
                logger.error("%s: %s", self._model.name, self._reason)
            else:
                self._reason = ""
                self._status.digest = self._metrics.digest = self._model.loaded.digest
                logger.info("%s is loaded again, digest %s", self._model.name, self._model.loaded.digest)
            if not self._app.draining:
                self._status.write("ready", self._reason)
            return self._reason

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._server = _Server(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: self._start(self._drain()))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self.reload()))
        self._start(self._announce())
        await self._server.serve(sockets=[self._listening.socket])

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announce(self) -> None:
        while not self._server.started:
            await asyncio.sleep(0.001)
        self._status.write("ready")
        logger.info("%s version %s answers on port %d", self._model.name, self._status.version, self._listening.port)

    async def _drain(self) -> None:
        """Lets clients finish: every answer asks them to connect anew, and idle connections are closed after a last call."""
        if self._app.draining:
            return
        self._app.draining = True
        self._ends_at = time.monotonic() + END_SECONDS
        self._status.write("draining", self._reason)
        if self._listening.inherited:
            # New connections wait where whoever keeps the socket open will have them answered.
            for server in self._server.servers:
                server.close()
        # A socket of our own would turn away what waits in it: it is closed last, when nobody sends here any more.
        await asyncio.sleep(_LAST_CALL_SECONDS)
        self._server.should_exit = True
