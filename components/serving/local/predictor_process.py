"""One predictor under the supervisor's care: started, watched, started again when it dies, and ended.

A predictor inherits a socket that the supervisor listens on. The supervisor keeps the socket open, so the port stays the same
when the predictor is started again, and connections made meanwhile wait instead of being refused. A predictor outlives its
supervisor; the next one finds it by the name of its status file, which stands in its command line.
"""

import http.client
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelyard.components.serving.local.metrics import read_metrics
from modelyard.components.serving.local.processes import ProcessIdentity, find
from modelyard.components.serving.local.state import DesiredArm, ObservedArm

MODULE = "modelyard.components.predictor"
START_SECONDS = 120.0
# A predictor that dies this often in a row without having been ready, or this often within the window, has failed, unless it
# was in charge of live traffic: then it is started again for ever, ever more slowly.
CRASHES = 5
CRASH_WINDOW_SECONDS = 30.0
# Without any answer for this long, checked this often in vain, it hangs.
HUNG_SECONDS = 12.0
_HUNG_CHECKS = 3
_CHECK_TIMEOUT_SECONDS = 3.0
_LONGEST_PAUSE_SECONDS = 30.0
_DRAIN_SECONDS = 30.0
# A predictor's last call, what is in flight, and what it still has to log.
_END_SECONDS = 45.0
# Connections that wait for a predictor while it is started, or busy.
_BACKLOG = 1024
_SETTLE_SECONDS = 1.0
_REFUSED = 3
_LOG_BYTES = 4 * 2**20
_LOG_TAIL_LINES = 5

_log = logging.getLogger("supervisor")


class PredictorProcess:
    """One arm's predictor.

    Args:
        arm: what to run.
        model_name: the model it is a version of.
        folder: of all serving state.
        adopted: the process that runs for it already, if any.
        port: the port that it had before, if any.
        routed: whether live traffic may be routed to it already.

    Attributes:
        in_charge: whether it is the stable arm, which is not given up however often it crashes.
    """

    def __init__(
        self,
        arm: DesiredArm,
        model_name: str,
        folder: Path,
        *,
        adopted: ProcessIdentity | None = None,
        port: int = 0,
        routed: bool = False,
    ) -> None:
        self.arm, self.model_name, self.port = arm, model_name, port
        self.state, self.reason, self.crashes = "starting", "", 0
        # Once it was ready it keeps its route while it is started again: the proxy sees for itself that it is not there.
        self.routed = routed
        self.in_charge = False
        self._adopted = adopted
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._started = self._answered = time.monotonic()
        self._unanswered = 0
        self._recent: deque[float] = deque(maxlen=CRASHES)
        self._vain_starts = 0
        self._next_start = 0.0
        self._leaving_since = self._asked_to_end = 0.0
        if arm.refused:
            self._fail(arm.refused)
        elif adopted:
            self.port = port or int(read_status(self.status_file).get("port") or 0)
            _log.info("%s is adopted (pid %d)", arm.name, adopted.pid)
        elif (told := read_status(self.status_file)).get("state") == "failed":
            self._fail(told.get("reason", ""))

    @property
    def status_file(self) -> Path:
        return status_file(self._folder, self.arm.name)

    @property
    def pid(self) -> int:
        """Of its process; 0 if none runs."""
        if self._child is not None:
            return self._child.pid
        return self._adopted.pid if self._adopted else 0

    @property
    def log_file(self) -> Path:
        return self._folder / "logs" / f"{self.arm.name}.log"

    def observed(self) -> ObservedArm:
        """What the supervisor tells of it."""
        return ObservedArm(self.state, self.reason, self.port, self.pid, self.crashes)

    def watch(self) -> None:
        """Brings it one step closer to being ready: starts it, sees how it is, notices that it died or hangs."""
        if self.state == "failed":
            self._turn_away()
            return
        now = time.monotonic()
        if not self._running:
            if now >= self._next_start:
                self._start()
            return
        if not self._alive():
            self._ended(now)
            return
        if self.state == "ready":
            if self._unanswered >= _HUNG_CHECKS and now - self._answered > HUNG_SECONDS:
                _log.warning("%s has not answered for %.0f s: it is killed", self.arm.name, now - self._answered)
                self._unanswered = 0
                self._signal(signal.SIGKILL)
            return
        told = read_status(self.status_file)
        if told.get("pid") == self.pid:
            self.port = self.port or int(told.get("port") or 0)
            if told.get("state") == "ready":
                _log.info("%s is ready on port %d", self.arm.name, self.port)
                self.state, self.reason, self.routed = "ready", "", True
                self._vain_starts, self._answered, self._unanswered = 0, now, 0
        if self.state != "ready" and now - self._started > START_SECONDS:
            self._signal(signal.SIGKILL)
            self._fail(f"it was not ready within {START_SECONDS:.0f} s{self._last_words()}")

    def check(self) -> None:
        """Asks it for a sign of life; called from another thread than ``watch``."""
        if self.state != "ready" or not self.port:
            return
        try:
            get(self.port, "/v2/health/live", timeout=_CHECK_TIMEOUT_SECONDS)
        except (OSError, http.client.HTTPException):
            self._unanswered += 1
        else:
            self._answered, self._unanswered = time.monotonic(), 0

    def leave(self) -> bool:
        """Ends it, which has no route now, once nothing is in flight; returns whether it is gone. To be called until it is."""
        now = time.monotonic()
        if self._leaving_since == 0.0:
            self.state, self.reason, self._leaving_since = "leaving", "", now
        if not self._alive():
            self._clean_up()
            return True
        if self._asked_to_end == 0.0:
            waited = now - self._leaving_since
            if waited > _DRAIN_SECONDS or (waited > _SETTLE_SECONDS and self._idle()):
                self.end()
        elif now - self._asked_to_end > _END_SECONDS:
            self._signal(signal.SIGKILL)
        return False

    def end(self) -> None:
        """Asks it to finish what is in flight and to end."""
        if self._asked_to_end == 0.0:
            self._asked_to_end = time.monotonic()
            if self._running:
                _log.info("%s is asked to end (pid %d)", self.arm.name, self.pid)
                self._signal(signal.SIGTERM)

    def bound_log(self) -> None:
        """Keeps the newest part of a log that has grown too long."""
        bound_log(self.log_file)

    def _start(self) -> None:
        self._listen()
        self.status_file.unlink(missing_ok=True)
        scratch = self._folder / "scratch" / self.arm.name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, mode=0o700)
        assert self._socket is not None  # noqa: S101
        descriptor = self._socket.fileno()
        arguments = ["--model_name", self.model_name, "--model_dir", self.arm.directory, "--fd", str(descriptor)]
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, *arguments, "--status_file", str(self.status_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment(scratch),
                start_new_session=True,
                pass_fds=(descriptor,),
            )
        self._started = time.monotonic()
        _log.info("%s is started (pid %d, port %d)", self.arm.name, self._child.pid, self.port)

    def _listen(self) -> None:
        if self._socket is not None:
            return
        try:
            self._socket = _listener(self.port)
        except OSError as error:
            _log.warning("%s gets another port than %d: %s", self.arm.name, self.port, error)
            self._socket = _listener(0)
        self.port = self._socket.getsockname()[1]

    def _environment(self, scratch: Path) -> dict[str, str]:
        return {
            **kept_environment(cloud=logs_elsewhere(self.arm)),
            **self.arm.environment,
            "MODELYARD_HOME": str(self._folder.parent),
            "MODEL_VERSION": self.arm.model.version,
            "MODEL_DIGEST": self.arm.model.digest,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(scratch),
        }

    @property
    def _running(self) -> bool:
        """Whether a process was started or adopted, whose end was not noticed yet."""
        return self._child is not None or self._adopted is not None

    def _alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._adopted is not None and self._adopted.alive()

    def _signal(self, number: int) -> None:
        # The pid of a child that was not waited for is nobody else's.
        if self._child is not None:
            self._child.send_signal(number)
        elif self._adopted is not None:
            self._adopted.signal(number)

    def _ended(self, now: float) -> None:
        status = self._child.returncode if self._child else None
        told = read_status(self.status_file)
        self._child = self._adopted = None
        if status == _REFUSED or told.get("state") == "failed":
            self._fail(told.get("reason") or f"it refused its model{self._last_words()}")
            return
        self.crashes += 1
        self._vain_starts += self.state != "ready"
        self._recent.append(now)
        often = len(self._recent) == CRASHES and now - self._recent[0] < CRASH_WINDOW_SECONDS
        how = _ending(status)
        _log.warning("%s ended by itself (%s)", self.arm.name, how)
        hopeless = often or self._vain_starts >= CRASHES
        if hopeless and not (self.in_charge and self.routed):
            self._fail(f"it crashed {self.crashes} times, last {how}{self._last_words()}")
            return
        # The first time at once; then ever more slowly, so that a model that cannot run does not take the machine.
        again = max(sum(now - at < CRASH_WINDOW_SECONDS for at in self._recent) - 1, self._vain_starts)
        self._next_start = now + (min(0.25 * 2**again, _LONGEST_PAUSE_SECONDS) if again else 0.0)
        self.state, self.reason = "restarting", f"it crashed ({how}) and is started again"
        if hopeless:
            self.reason += f", for the {self.crashes}th time{self._last_words()}"

    def _fail(self, reason: str) -> None:
        _log.error("%s has failed: %s", self.arm.name, reason)
        # It keeps its route, if it has one: the proxy sees that it is not there, and who is to answer in its place.
        self.state, self.reason = "failed", reason or "it gave no reason"
        # It keeps its port too: whoever else got it would be asked in its name.
        if self._socket is None and self.port:
            try:
                self._socket = _listener(self.port)
            except OSError as error:
                _log.warning("port %d of %s is somebody else's by now: %s", self.port, self.arm.name, error)
        if self._socket is not None:
            self._socket.setblocking(False)

    def _turn_away(self) -> None:
        """Breaks off connections to one that has failed, instead of letting them wait for nobody."""
        with suppress(BlockingIOError):
            while self._socket is not None:
                connection, _ = self._socket.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    def _idle(self) -> bool:
        """Whether it has no request in flight, as far as it answers."""
        try:
            return read_metrics(get(self.port, "/metrics", timeout=2.0)).in_flight == 0
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _last_words(self) -> str:
        lines = _tail(self.log_file)
        return f". The end of {self.log_file}:\n" + "\n".join(lines) if lines else ""

    def _clean_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._child = self._adopted = None
        self.status_file.unlink(missing_ok=True)
        shutil.rmtree(self._folder / "scratch" / self.arm.name, ignore_errors=True)


# What supervisor and predictors take over from the environment of whoever starts them: where programs and libraries are found.
# Everything else is left out, for it may be secret.
_KEPT = frozenset(("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH"))
# In addition, how the object store of a prediction log is reached.
_KEPT_FOR_CLOUD = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def kept_environment(*, cloud: bool) -> dict[str, str]:
    """The part of this process's environment that is for supervisor and predictors, with credentials only if need be."""
    prefixes = _KEPT_FOR_CLOUD if cloud else ()
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(prefixes)}


def logs_elsewhere(arm: DesiredArm) -> bool:
    """Whether an arm's prediction log is not on this machine."""
    return "://" in arm.environment.get("MODELYARD_PREDICTION_LOG", "")


def status_file(folder: Path, name: str) -> Path:
    """Where the predictor of an arm tells how it is."""
    return folder / "arms" / f"{name}.json"


def read_status(path: Path) -> dict[str, Any]:
    """What a predictor told last; empty if nothing."""
    with suppress(FileNotFoundError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}


def _listener(port: int) -> socket.socket:
    """A socket that listens on a port of this machine; 0 lets the kernel choose."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def find_predictors(folder: Path) -> dict[str, ProcessIdentity]:
    """Every predictor that runs for a folder of serving state, by the name of its arm."""
    place = f"--status_file {folder / 'arms'}{os.sep}"
    found = [identity for identity in find(place) if f" -m {MODULE} " in identity.command]
    return {identity.command.rpartition(place)[2].removesuffix(".json"): identity for identity in found}


def end_predictors(folder: Path) -> None:
    """Ends every predictor that runs for a folder of serving state, and returns when none is left."""
    deadline = time.monotonic() + _END_SECONDS
    for identity in find_predictors(folder).values():
        identity.signal(signal.SIGTERM)
    while left := find_predictors(folder):
        if time.monotonic() > deadline:
            for identity in left.values():
                identity.signal(signal.SIGKILL)
        time.sleep(0.1)


def get(port: int, path: str, *, timeout: float) -> str:
    """The body of what is answered on a port of this machine, whatever the status.

    Raises:
        OSError, http.client.HTTPException: there is no answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().read().decode("utf-8", errors="replace")
    finally:
        connection.close()


def bound_log(path: Path) -> None:
    """Halves a log that its writers append to once it is too long; the newest part stays."""
    with suppress(FileNotFoundError):
        if path.stat().st_size <= _LOG_BYTES:
            return
        with path.open("r+b") as log:
            log.seek(-_LOG_BYTES // 2, os.SEEK_END)
            newest = log.read().partition(b"\n")[2]
            log.truncate(0)
        with path.open("ab") as log:
            log.write(newest)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if line.strip()][-_LOG_TAIL_LINES:]


def _ending(status: int | None) -> str:
    if status is None:
        return "nobody knows how"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
