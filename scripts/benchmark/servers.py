"""Servers that are measured: each a process group that cannot outlive this process, on a port of its own on 127.0.0.1."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.scripts.benchmark.measuring import MeasurementFailed, cpu_seconds_of, end_of
from modelyard.scripts.step_process import Lifeline

_START_SECONDS = 120.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        port: where.
        pid: the process that was started, which may have others under it.
        seconds: from its start until it was ready.
        cpu_seconds: what it used until then.
        resident_gib: its resident memory then.
    """

    port: int
    pid: int
    seconds: float
    cpu_seconds: float
    resident_gib: float


@contextlib.contextmanager
def running(
    command: Callable[[int], Sequence[str]], *, ready: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and ends it with all that it started.

    Args:
        command: from a port to program and arguments. It must end when its input does (see ``step_process.guarded``).
        ready: path that it answers with status 200 once it is ready.
        folder: its current folder, made if need be; its output is kept there.
        environment: its whole environment.

    Raises:
        MeasurementFailed: it ended, or did not become ready in time.
    """
    import psutil

    folder.mkdir(parents=True, exist_ok=True)
    log, port, lifeline = folder / "log", free_port(), Lifeline()
    try:
        began = time.perf_counter()
        with log.open("ab") as output:
            process = subprocess.Popen(
                command(port),
                stdin=lifeline.reader,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                start_new_session=True,
            )
        try:
            while not _answers(port, ready):
                if process.poll() is not None:
                    raise MeasurementFailed(f"a server ended with status {process.returncode}:\n{end_of(log)}")
                if time.perf_counter() - began > _START_SECONDS:
                    raise MeasurementFailed(f"a server was not ready after {_START_SECONDS:g} s:\n{end_of(log)}")
                time.sleep(0.01)
            seconds, resident = time.perf_counter() - began, psutil.Process(process.pid).memory_info().rss
            yield Server(port, process.pid, seconds, cpu_seconds_of([process.pid]), resident / 2**30)
        finally:
            _end(process)
    finally:
        lifeline.close()


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    # Its watcher and whatever else is left; macOS answers EPERM for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
