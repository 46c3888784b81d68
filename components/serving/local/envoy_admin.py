"""What a running Envoy says of itself, asked through its admin socket, which only this user can open."""

import http.client
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.components.errors import NotAvailable

# What a Unix socket's path may have on the strictest system (macOS), with the zero at its end.
_PATH_BYTES = 104


class AdminConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        with _short(self._path) as path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(path)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A path to the same socket that the kernel takes: homes may lie deeper than it allows."""
    if len(os.fsencode(path)) < _PATH_BYTES:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="modelyard-", dir="/tmp") as folder:
        link = Path(folder, "to")
        link.symlink_to(path.parent, target_is_directory=True)
        try:
            yield str(link / path.name)
        finally:
            link.unlink()


@dataclass(frozen=True)
class Server:
    """One server of a cluster, as Envoy sees it.

    Attributes:
        priority: 0 for the backend itself, 1 for who answers in its place.
        port: its port on 127.0.0.1.
        healthy: whether it gets requests.
        active: requests in flight.
    """

    priority: int
    port: int
    healthy: bool
    active: int


@dataclass(frozen=True)
class Admin:
    """Envoy's administration interface.

    Attributes:
        path: its socket.
        timeout: seconds that an answer may take.
    """

    path: Path
    timeout: float = 5.0

    def ask(self, path: str, method: str = "GET") -> bytes:
        """The answer to one request.

        Raises:
            NotAvailable: there is none, or it is no success.
        """
        connection = AdminConnection(self.path, self.timeout)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotAvailable(f"the proxy does not answer at {self.path}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise NotAvailable(f"the proxy answers {answer.status} to {path}: {body[:500].decode(errors='replace')}")
        return body

    def statistics(self) -> dict[str, Any]:
        """Values by name."""
        return {
            entry["name"]: entry["value"] for entry in json.loads(self.ask("/stats?format=json"))["stats"] if "name" in entry
        }

    def servers(self) -> dict[str, list[Server]]:
        """The servers of each cluster that is in use; a new one comes into use when its servers' health is known."""
        content = json.loads(self.ask("/clusters?format=json"))
        return {
            cluster["name"]: [_server(host) for host in cluster.get("host_statuses", ())]
            for cluster in content.get("cluster_statuses", ())
        }


def _server(host: dict[str, Any]) -> Server:
    health = host["health_status"]
    ill = ("failed_active_health_check", "failed_outlier_check")
    return Server(
        priority=host.get("priority", 0),
        port=host["address"]["socket_address"]["port_value"],
        healthy=not any(health.get(flag) for flag in ill),
        active=sum(
            int(entry.get("value", 0)) for entry in host["stats"] if entry["name"] in ("rq_active", "rq_pending_active")
        ),
    )
