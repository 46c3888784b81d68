"""A Prometheus, or whatever else answers its HTTP API, asked for the samples that it keeps.

| variable | means |
|---|---|
| ``MODELYARD_PROMETHEUS_URL`` | base URL, such as ``http://prometheus-operated.monitoring:9090``; may hold ``user:password@`` |
| ``MODELYARD_PROMETHEUS_TOKEN`` | bearer token, from a Secret |
| ``MODELYARD_PROMETHEUS_TOKEN_FILE`` | file that holds it, such as a service account's token: read again for each question |

Certificates are checked against the system's authorities, or those that ``SSL_CERT_FILE`` names.
"""

import base64
import http.client
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from modelyard.components.errors import InvalidInput, NotAvailable

URL_VARIABLE = "MODELYARD_PROMETHEUS_URL"
TOKEN_VARIABLE = "MODELYARD_PROMETHEUS_TOKEN"  # noqa: S105
TOKEN_FILE_VARIABLE = "MODELYARD_PROMETHEUS_TOKEN_FILE"  # noqa: S105

_TIMEOUT_SECONDS = 20.0
_SHOWN_CHARACTERS = 300

Labels = dict[str, str]


@dataclass(frozen=True)
class Series:
    """Samples with the same labels.

    Attributes:
        labels: its labels; ``__name__`` is the metric's name, where a query keeps it.
        samples: (Unix time in seconds by Prometheus' clock, value), in order of time; no stale ones.
    """

    labels: Labels
    samples: tuple[tuple[float, float], ...]


class Prometheus:
    """Asks one Prometheus.

    Args:
        url: its base URL, http or https, with what path it may have.

    Raises:
        InvalidInput: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            # A password may stand in what was given.
            given = url if "@" not in url else "…"
            raise InvalidInput(URL_VARIABLE, given, "give the base URL of Prometheus, http://… or https://…")
        self._place = place
        port = f":{place.port}" if place.port else ""
        self.address = f"{place.scheme}://{place.hostname}{port}{place.path.rstrip('/')}"

    def now(self) -> float:
        """Unix time by the clock that samples are stamped with, in seconds, not after the moment at which it answers."""
        found = self._ask("time()")
        try:
            return float(found["result"][1])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise NotAvailable(f"{self.address} does not tell its time ({type(error).__name__})") from error

    def ask(self, query: str) -> list[Series]:
        """What a query gives at this moment: an instant vector as series of one sample, a range selector as raw samples.

        Raises:
            NotAvailable: it cannot be reached, refuses, or knows but a part of the answer.
        """
        found = self._ask(query)
        try:
            return [
                Series(dict(entry["metric"]), _samples([entry["value"]] if "value" in entry else entry.get("values", ())))
                for entry in found["result"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise NotAvailable(f"{self.address} answers in another form ({type(error).__name__}: {error})") from error

    def _ask(self, query: str) -> dict[str, Any]:
        # Thanos leaves out what it cannot reach, unless told not to; Prometheus takes no notice.
        body = urlencode({"query": query, "partial_response": "false"})
        status, text = self._post("/api/v1/query", body)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or answer.get("status") != "success" or not isinstance(answer.get("data"), dict):
            said = answer.get("error") if isinstance(answer, dict) else text.decode(errors="replace")
            hint = f": check {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}" if status in (401, 403) else ""
            raise NotAvailable(f"{self.address} answers {status} ({str(said)[:_SHOWN_CHARACTERS].strip()}){hint}")
        if warnings := answer.get("warnings"):
            # Some of the samples are missing: the counts would be too small.
            raise NotAvailable(f"{self.address} gives an answer that may not be whole: {str(warnings)[:_SHOWN_CHARACTERS]}")
        data: dict[str, Any] = answer["data"]
        return data

    def _post(self, path: str, body: str) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._place.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._place.hostname or "", self._place.port, timeout=_TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json", **self._credentials()}
        try:
            connection.request("POST", self._place.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotAvailable(f"Prometheus at {self.address} cannot be reached: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _credentials(self) -> dict[str, str]:
        if path := os.environ.get(TOKEN_FILE_VARIABLE):
            try:
                token = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise NotAvailable(f"{TOKEN_FILE_VARIABLE}: {path} cannot be read ({type(error).__name__})") from error
        else:
            token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if token:
            if not (token.isascii() and token.isprintable()):
                raise NotAvailable(f"what {TOKEN_FILE_VARIABLE if path else TOKEN_VARIABLE} gives is no token")
            return {"Authorization": f"Bearer {token}"}
        if self._place.username is not None:
            pair = f"{unquote(self._place.username)}:{unquote(self._place.password or '')}"
            return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
        return {}


def _samples(given: Any) -> tuple[tuple[float, float], ...]:
    samples = ((float(at), float(value)) for at, value in given)
    return tuple((at, value) for at, value in samples if math.isfinite(value))
