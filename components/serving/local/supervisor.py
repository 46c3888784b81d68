"""The process that keeps serving as it is wanted: one for each home, detached from whoever started it.

It compares, many times a second, what is wanted (``state.json``) with what there is, and takes the next step: it starts a
predictor, lets the proxy route to those that are ready, ends one that has no route any more. Nothing depends on a message that
could be lost. If it dies, the predictors and the proxy go on answering; the next supervisor takes them over.

    python -m modelyard.components.serving.local.supervisor --home HOME
"""

import argparse
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.serving.local.envoy_admin import Admin
from modelyard.components.serving.local.envoy_config import ADMIN_SOCKET
from modelyard.components.serving.local.predictor_process import (
    PredictorProcess,
    bound_log,
    end_predictors,
    find_predictors,
)
from modelyard.components.serving.local.processes import ProcessIdentity, find, identify
from modelyard.components.serving.local.proxy import Backend, Proxy, Route
from modelyard.components.serving.local.state import (
    OBSERVED_FILE,
    PROXY_FOLDER,
    STATE_FILE,
    SUPERVISOR_LOG,
    Desired,
    DesiredArm,
    DesiredModel,
    Observed,
    ObservedArm,
    ObservedRoute,
    describe_problem,
    read_desired,
    read_observed,
    write_observed,
)
from modelyard.components.serving.target import ServedModel
from modelyard.components.storage.locks import exclusive_lock

LOCK_FILE = "supervisor.lock"
_TICK_SECONDS = 0.1
_CHECK_SECONDS = 2.0
_HOUSEKEEPING_SECONDS = 15.0
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_GIVE_UP_SECONDS = 30.0
_KEPT_LOGS = 20

_log = logging.getLogger("supervisor")


class AnotherSupervises(Exception):
    """This home has a supervisor already."""


class _Change(threading.Thread):
    """Tells the proxy what is wanted of it.

    Attributes:
        desired: what was to be served when it began.
        wanted: the routes that are to come in force.
        routes: the same in the proxy's own terms.
        error: why it failed; None if it did not, or has not ended yet.
    """

    def __init__(
        self,
        apply: Callable[..., None],
        desired: Desired,
        wanted: dict[str, ObservedRoute],
        routes: list[Route],
        *,
        alive: bool,
    ) -> None:
        super().__init__(daemon=True)
        self.desired, self.wanted, self.routes = desired, wanted, routes
        self.error: Exception | None = None
        self._apply, self._alive = apply, alive

    def run(self) -> None:
        try:
            self._apply(self.desired.port, self.routes, alive=self._alive)
        except Exception as error:  # noqa: BLE001
            # The supervisor's to judge.
            self.error = error


class Supervisor:
    """Serves what ``state.json`` wants, until that says to stop, or its folder is gone.

    Args:
        folder: ``HOME/serving``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = folder.stat()
        myself = identify(os.getpid())
        assert myself is not None  # noqa: S101
        self._myself = myself
        self._state_seen: tuple[int, int, int] | None = None
        self._desired = Desired()
        self._proxy: Proxy | None = None
        self._proxy_port = 0
        self._envoy: ProcessIdentity | None = None
        self._next_proxy_try = self._next_housekeeping = 0.0
        self._pause, self._refused_since = _PAUSE_SECONDS, 0.0
        before = read_observed(folder)
        self._observed_before = before
        self._routes = dict(before.routes)
        self._applied: list[Route] | None = None
        # What the proxy is being told, in a thread of its own: it waits for slow clients, for whom nothing else has to wait.
        self._change: _Change | None = None
        self._arms: dict[str, PredictorProcess] = {}
        # Arms in charge that the proxy has found healthy since they were last ready.
        self._healthy: set[str] = set()
        self._problem: Exception | None = None
        self._written: Observed | None = None
        self._place_written: tuple[int, int, int] | None = None
        # Nothing, until this supervisor has made sure of it.
        self._in_force = 0
        self._asked_to_end = False

    def run(self) -> None:
        """Serves until there is nothing left to do."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        threading.Thread(target=self._check_health, daemon=True).start()
        while not self._asked_to_end:
            if self._folder_is_gone():
                _log.warning("%s is gone: everything is ended", self._folder)
                self._end_all()
                return
            try:
                self._read_desired()
                if self._state_seen is not None and not self._desired.running:
                    _log.info("asked to stop")
                    self._end_all()
                    self._in_force = self._desired.generation
                    self._tell()
                    return
                self._step()
                if self._in_vain:
                    _log.error("nothing can be served: everything is ended until serving is asked for again")
                    self._end_all()
                    return
            except OSError as error:
                # Such as a full disk, or a folder that is just being removed: the next look may find it otherwise.
                _log.error("cannot go on: %s", error)
                time.sleep(_PAUSE_SECONDS)
            time.sleep(_TICK_SECONDS)
        _log.info("asked to end: predictors and proxy go on")

    def _step(self) -> None:
        if self._state_seen is not None:
            self._reconcile()
        self._tell()
        if time.monotonic() >= self._next_housekeeping:
            self._keep_house()
            self._next_housekeeping = time.monotonic() + _HOUSEKEEPING_SECONDS

    def _end(self, *_: object) -> None:
        self._asked_to_end = True

    def _folder_is_gone(self) -> bool:
        try:
            return not os.path.samestat(self._folder.stat(), self._place)
        except FileNotFoundError:
            return True

    def _read_desired(self) -> None:
        """Takes up what is wanted if it changed. A file that is gone or damaged changes nothing."""
        seen = _signature(self._folder / STATE_FILE)
        if seen in (None, self._state_seen):
            return
        try:
            desired = read_desired(self._folder)
        except InvalidInput as error:
            if str(error) != str(self._problem):
                _log.error("%s", error)
            self._problem = error
            return
        if desired is not None:
            first = self._state_seen is None
            self._problem = None
            self._next_proxy_try, self._pause, self._refused_since = 0.0, _PAUSE_SECONDS, 0.0
            self._state_seen, self._desired = seen, desired
            if first:
                self._adopt()
                self._tell()

    def _adopt(self) -> None:
        """Takes over every predictor that runs for this home, also one that is not wanted any more, to end it."""
        wanted = {arm.name: (name, arm) for name, model in self._desired.models.items() for arm in model.arms}
        routed = {arm for route in self._routes.values() for arm in (route.stable, route.canary) if arm}
        running = find_predictors(self._folder)
        for arm_name in {*running, *wanted}:
            model_name, arm = wanted.get(arm_name) or ("", DesiredArm(arm_name, ServedModel("", "", ""), ""))
            before = self._observed_before.arms.get(arm_name)
            self._arms[arm_name] = PredictorProcess(
                arm,
                model_name,
                self._folder,
                adopted=running.get(arm_name),
                port=before.port if before else 0,
                routed=arm_name in routed,
            )
        self._routes = {
            name: route for name, route in self._routes.items() if {route.stable, route.canary} <= {"", *self._arms}
        }

    def _reconcile(self) -> None:
        wanted: dict[str, DesiredArm] = {}
        for name, model in self._desired.models.items():
            for arm in model.arms:
                wanted[arm.name] = arm
                if arm.name not in self._arms:
                    self._arms[arm.name] = PredictorProcess(arm, name, self._folder)
                self._arms[arm.name].in_charge = arm == model.stable
        for arm_name, process in self._arms.items():
            if arm_name in wanted:
                process.watch()
        self._route()
        self._look_from_the_proxy()
        routes = [*self._routes.values(), *(self._change.wanted.values() if self._change else ())]
        in_use = {arm for route in routes for arm in (route.stable, route.canary)}
        for arm_name in [name for name in self._arms if name not in wanted and name not in in_use]:
            if self._arms[arm_name].leave():
                _log.info("%s is gone", arm_name)
                del self._arms[arm_name]

    def _route(self) -> None:
        """Lets the proxy route as wanted, as far as those it would route to are, or were, ready."""
        wanted = {}
        for name, model in self._desired.models.items():
            route = self._wanted_route(name, model)
            if route is not None:
                wanted[name] = route
        alive = self._envoy is not None and self._proxy_port == self._desired.port and self._envoy.alive()
        if not alive:
            self._healthy.clear()
        if self._change is not None:
            self._wait_for(self._change)
            return
        if time.monotonic() < self._next_proxy_try:
            return
        try:
            routes = [self._proxy_route(name, route) for name, route in sorted(wanted.items())]
        except InvalidInput as error:
            self._hinder(error)
            return
        if alive and routes == self._applied:
            self._in_force = self._desired.generation
            return
        self._change = _Change(self._apply, self._desired, wanted, routes, alive=alive)
        self._change.start()
        self._wait_for(self._change)

    def _wait_for(self, change: "_Change") -> None:
        """Notes how it went to tell the proxy what is wanted, once it has ended; that is seldom long."""
        change.join(_TICK_SECONDS)
        if change.is_alive():
            return
        self._change, error = None, change.error
        if error is None:
            self._problem, self._pause, self._refused_since = None, _PAUSE_SECONDS, 0.0
            if change.wanted != self._routes:
                told = "; ".join(_described(name, route) for name, route in change.wanted.items())
                _log.info("routes in force: %s", told or "none")
            self._routes, self._applied, self._in_force = change.wanted, change.routes, change.desired.generation
        elif not isinstance(error, (ModelyardError, OSError)):
            raise error
        elif change.desired.generation == self._desired.generation:
            self._hinder(error)

    def _hinder(self, error: Exception) -> None:
        """Tells what hinders, once, and waits before the next try: longer and longer for what only somebody else can change."""
        if str(error) != str(self._problem):
            _log.error("the proxy does not do as it should: %s", error)
        now = time.monotonic()
        self._problem, self._next_proxy_try = error, now + self._pause
        if isinstance(error, InvalidInput):
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            self._refused_since = self._refused_since or now

    @property
    def _in_vain(self) -> bool:
        """Whether nothing was ever served, nor can be: whoever asked for it was told why."""
        came_up = self._applied is not None or self._observed_before.routes
        return not came_up and 0.0 < self._refused_since < time.monotonic() - _GIVE_UP_SECONDS

    def _look_from_the_proxy(self) -> None:
        """Asks the proxy about those in charge that became ready: live traffic reaches them only once it has seen so, too."""
        in_charge = {route.stable for route in self._routes.values()}
        ready = {name for name in in_charge if self._arms[name].state == "ready"}
        self._healthy &= ready
        if self._healthy != ready and self._applied is not None:
            try:
                servers = Admin(self._folder / PROXY_FOLDER / ADMIN_SOCKET).servers()
            except NotAvailable:
                return
            self._healthy |= {
                name
                for name in ready
                if any(server.healthy and server.port == self._arms[name].port for server in servers.get(name, ()))
            }

    def _seen(self, name: str) -> ObservedArm:
        """How an arm is, as those who ask through the proxy find it."""
        observed = self._arms[name].observed()
        in_charge = any(name == route.stable for route in self._routes.values())
        if observed.state != "ready" or not in_charge or name in self._healthy:
            return observed
        return replace(observed, state="restarting", reason="the proxy does not reach it yet")

    def _wanted_route(self, name: str, model: DesiredModel) -> ObservedRoute | None:
        canary = model.canary.name if model.canary and self._arms[model.canary.name].routed else ""
        taking_over = model.stable or model.incoming
        if taking_over is None:
            # The only arm there is: whatever its share, all of the traffic that there is goes to it.
            return ObservedRoute(canary) if canary and model.share and not model.mirror else None
        if model.stable is None or not self._arms[model.stable.name].routed:
            # Until it is ready, what was routed to before goes on, if it is still there.
            before = self._routes.get(name)
            return before if before and {before.stable, before.canary} <= {"", *self._arms} else None
        return ObservedRoute(model.stable.name, canary, model.share if canary else 0, model.mirror and bool(canary))

    def _proxy_route(self, name: str, route: ObservedRoute) -> Route:
        def backend(arm: str) -> Backend:
            return Backend(arm, self._arms[arm].port)

        canary = backend(route.canary) if route.canary else None
        return Route(name, backend(route.stable), canary, route.share, route.mirror)

    def _apply(self, port: int, routes: list[Route], *, alive: bool) -> None:
        if self._proxy is None or self._proxy_port != port:
            if self._proxy is not None:
                _log.info("the proxy moves from port %d to %d", self._proxy_port, port)
                self._proxy.stop()
            self._proxy, self._proxy_port = Proxy(self._folder / PROXY_FOLDER, port), port
        elif not alive:
            _log.warning("the proxy is not there: it is started again")
        if not alive:
            try:
                self._proxy.start()
            except InvalidInput:
                # Either somebody else has the port, or the proxy that runs has another: then it moves.
                if not self._proxy.alive():
                    raise
                self._proxy.stop()
                self._proxy.start()
            self._envoy = identify(self._proxy.pid() or 0)
        self._proxy.apply(routes)

    def _tell(self) -> None:
        observed = Observed(
            self._in_force,
            self._desired.generation,
            self._myself,
            self._envoy,
            {name: self._seen(name) for name in self._arms},
            self._routes,
            describe_problem(self._problem) if self._problem else None,
        )
        # Also if what was told is lost, or somebody else's.
        if (observed != self._written or self._told() != self._place_written) and not self._folder_is_gone():
            write_observed(self._folder, observed)
            self._written, self._place_written = observed, self._told()

    def _told(self) -> tuple[int, int, int] | None:
        """Which file tells what this supervisor sees; None if there is none."""
        return _signature(self._folder / OBSERVED_FILE)

    def _end_all(self) -> None:
        if self._change is not None:
            self._change.join()
            self._change = None
        if self._folder_is_gone():
            for envoy in find(str(self._folder / PROXY_FOLDER / "bootstrap.json")):
                envoy.signal(signal.SIGTERM)
        elif self._proxy is not None:
            self._proxy.stop()
        end_predictors(self._folder)
        self._arms, self._routes, self._applied, self._proxy = {}, {}, None, None

    def _check_health(self) -> None:
        while True:
            time.sleep(_CHECK_SECONDS)
            for process in list(self._arms.values()):
                process.check()

    def _keep_house(self) -> None:
        bound_log(self._folder / SUPERVISOR_LOG)
        for process in self._arms.values():
            process.bound_log()
        logs = sorted((self._folder / "logs").glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
        for log in logs[_KEPT_LOGS:]:
            if log.stem not in self._arms:
                log.unlink(missing_ok=True)
        # What supervisors left that were killed, or stopped.
        for status in (self._folder / "arms").glob("*.json"):
            if status.stem not in self._arms:
                status.unlink(missing_ok=True)
        for scratch in (self._folder / "scratch").iterdir():
            if scratch.name not in self._arms:
                shutil.rmtree(scratch, ignore_errors=True)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever a file is written anew; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _described(name: str, route: ObservedRoute) -> str:
    if not route.canary:
        return f"{name} to {route.stable}"
    what = "a copy of " if route.mirror else ""
    return f"{name} to {route.stable}, {what}{route.share} % to {route.canary}"


def _another() -> None:
    raise AnotherSupervises


def main() -> None:
    """Supervises the home that the command line names, unless another process does already."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    folder = parser.parse_args().home / "serving"
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        with exclusive_lock(folder / LOCK_FILE, on_wait=_another):
            _log.info("supervises %s (pid %d)", folder, os.getpid())
            Supervisor(folder).run()
    except AnotherSupervises:
        _log.info("pid %d leaves it to the supervisor that is there already", os.getpid())


if __name__ == "__main__":
    main()
