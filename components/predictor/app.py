"""The predictor's HTTP interface, as a bare ASGI application: which path is answered by what, and how a refusal looks.

    GET  /v1/models                    POST /v1/models/NAME:predict
    GET  /v1/models/NAME               POST /v2/models/NAME[/versions/V]/infer
    GET  /v2, /v2/health/live|ready    POST /v2/repository/models/NAME/load
    GET  /v2/models/NAME[/versions/V][/ready]
    GET  /metrics

What a client does wrong is answered 4xx with ``{"error": what and what to do}``, never 5xx. Every answer names the version of
the model in ``x-model-version``, and the request in ``x-request-id``: as the request called itself, else a name of our own.

| header of a request | means |
|---|---|
| ``x-request-id`` | its name, 1 to 256 visible characters; one that is not like that is ignored |
| ``x-modelyard-key`` | what the traffic is split by, up to 256 printable characters |
| ``x-modelyard-check`` | it is nobody's: answered as any other, but neither counted nor logged |
| ``host`` that ends in ``-shadow`` | it is the copy of a mirrored request, as Envoy marks it; the log says so |
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import orjson

from modelyard.components.errors import InvalidInput
from modelyard.components.predictor import protocol_v1, protocol_v2
from modelyard.components.predictor.logged import LoggedPredictions
from modelyard.components.predictor.metrics import CONTENT_TYPE, Metrics
from modelyard.components.predictor.protocol import JSON, Answer, TooManyRows
from modelyard.components.predictor.served_model import LoadedModel, ServedModel
from modelyard.components.signing.provenance import package_version

# A body of this size takes milliseconds to read and score: longer than others should wait for it.
_LARGE_BODY = 2**18
_THREADS = 2
_INFERENCE = re.compile(r"/v1/models/[^/]*:predict|/v2/models/[^/]*(/versions/[^/]*)?/infer")
# Bodies above that size which may be held at a time, in multiples of the largest one.
_LARGEST_BODIES = 8
_RETRY_SECONDS = 1
# What is a sound value of a header, and no burden to those who log it.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,256}")
_KEY = re.compile(rb"[\x20-\x7e]{0,256}")
_MIRRORED = re.compile(rb".*-shadow(:\d+)?", re.DOTALL)

logger = logging.getLogger("modelyard.predictor")

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = list[tuple[bytes, bytes]]
Infer = Callable[[LoadedModel, bytes, int | None], Answer]


class _Refused(Exception):
    """A request that gets another status than 400."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or []


class _ClientGone(Exception):
    """The connection ended before the request did."""


class _Request:
    """The headers of a request that matter here, and how far it is.

    Attributes:
        is_check: whether it is to be answered only.
        is_mirrored: whether it is a copy.
        held: bytes of a large body that are in memory.
        complete_at: when the body was there, or it was clear that it need not be; what a client takes to send it is not ours.
        answered_at: when the answer was ready to be sent; what a client takes to fetch it is not ours either.
    """

    __slots__ = (
        "answered_at",
        "complete_at",
        "content_encoding",
        "content_type",
        "held",
        "is_check",
        "is_mirrored",
        "json_length",
        "key",
        "length",
        "request_id",
    )

    def __init__(self, headers: Headers) -> None:
        self.content_type = self.content_encoding = self.request_id = self.key = b""
        self.length = self.json_length = None
        self.is_check = self.is_mirrored = False
        self.held = 0
        self.complete_at = self.answered_at = 0.0
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value
            elif name == b"content-length":
                self.length = value
            elif name == b"x-request-id":
                self.request_id = value if _REQUEST_ID.fullmatch(value) else b""
            elif name == b"x-modelyard-key":
                self.key = value
            elif name == b"content-encoding":
                self.content_encoding = value
            elif name == b"inference-header-content-length":
                self.json_length = value
            elif name == b"x-modelyard-check":
                self.is_check = True
            elif name == b"host":
                self.is_mirrored = _MIRRORED.fullmatch(value) is not None


class App:
    """Answers the requests to one model.

    Attributes:
        draining: whether the process is about to end: it still answers, and asks each client to connect anew.

    Args:
        model: what is served.
        metrics: counts it.
        log: keeps what was answered.
        reload: loads the model again; says why not if it was not.
        max_request_bytes: largest body that is read.
        offers_reload: whether clients may ask for a reload.
    """

    def __init__(
        self,
        model: ServedModel,
        metrics: Metrics,
        log: LoggedPredictions,
        reload: Callable[[], Awaitable[str]],
        max_request_bytes: int,
        offers_reload: bool,
    ) -> None:
        self.draining = False
        self._offers_reload = offers_reload
        self._held = 0
        self._model, self._metrics, self._log, self._reload = model, metrics, log, reload
        self._max_bytes = max_request_bytes
        self._pool = ThreadPoolExecutor(_THREADS, "inference")
        process = secrets.token_hex(8)
        self._ids = (f"{process}-{number:x}".encode() for number in count())
        name, version = model.name, model.loaded.version
        self._version = (b"x-model-version", version.encode())
        v1, v2, this = f"/v1/models/{name}", f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"
        self._infer_by_path: dict[str, Infer] = {
            f"{v1}:predict": protocol_v1.predict,
            f"{v2}/infer": protocol_v2.infer,
            f"{this}/infer": protocol_v2.infer,
        }
        self._load_path = f"/v2/repository/models/{name}/load"
        self._get_by_path: dict[str, Callable[[], tuple[int, Any]]] = {
            "/v1/models": lambda: (200, {"models": [name]}),
            v1: lambda: (200, {"name": name, "ready": self._ready}),
            "/v2": self._server_metadata,
            "/v2/": self._server_metadata,
            "/v2/health/live": lambda: (200, {"live": True}),
            "/v2/health/ready": lambda: (200 if self._ready else 503, {"ready": self._ready}),
            **dict.fromkeys((v2, this), lambda: (200, protocol_v2.metadata(model.loaded))),
            **dict.fromkeys(
                (f"{v2}/ready", f"{this}/ready"), lambda: (200 if self._ready else 503, {"name": name, "ready": self._ready})
            ),
        }

    @property
    def _ready(self) -> bool:
        return self._model.ready and not self.draining

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        path, method = scope["path"], scope["method"]
        request = _Request(scope["headers"])
        infer = self._infer_by_path.get(path)
        if infer is None and not _INFERENCE.fullmatch(path):
            await self._answer_other(path, method, request, receive, send)
            return
        self._metrics.in_flight += 1
        try:
            status = await self._answer_inference(infer, path, method, request, receive, send)
            if not request.is_check:
                self._metrics.count_request(status, request.answered_at - (request.complete_at or request.answered_at))
        except _ClientGone:
            pass
        finally:
            self._metrics.in_flight -= 1
            self._held -= request.held

    async def _answer_inference(
        self, infer: Infer | None, path: str, method: str, request: _Request, receive: Receive, send: Send
    ) -> int:
        came = time.time_ns()
        try:
            if infer is None:
                raise self._not_found(path)
            if method != "POST":
                raise _Refused(405, f"{method} is not allowed here; use POST", [(b"allow", b"POST")])
            json_length = _check_headers(request)
            body = await self._read(request, receive)
            request.complete_at = time.perf_counter()
            model = self._model.loaded
            if len(body) <= _LARGE_BODY:
                answer = infer(model, body, json_length)
            else:
                answer = await asyncio.get_running_loop().run_in_executor(self._pool, infer, model, body, json_length)
        except (_Refused, InvalidInput) as error:
            return await self._send_error(request, error, send)
        except _ClientGone:
            raise
        except Exception as error:
            logger.exception("a request could not be answered")
            await self._send(500, _error(f"the server failed ({type(error).__name__}); its log says why"), [], request, send)
            return 500
        if not request.request_id and answer.request_id:
            own = answer.request_id.encode()
            request.request_id = own if _REQUEST_ID.fullmatch(own) else b""
        headers = [(b"content-type", JSON)]
        if answer.json_length is not None:
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"inference-header-content-length", str(answer.json_length).encode()),
            ]
        await self._send(200, answer.body, headers, request, send)
        if not request.is_check:
            self._metrics.count_rows(answer.scores, answer.decisions)
            self._log.append(model, request.request_id, request.key, came, answer, mirrored=request.is_mirrored)
        return 200

    async def _answer_other(self, path: str, method: str, request: _Request, receive: Receive, send: Send) -> None:
        try:
            if path == self._load_path:
                if method != "POST":
                    raise _Refused(405, f"{method} is not allowed here; use POST", [(b"allow", b"POST")])
                if not self._offers_reload:
                    raise _Refused(403, "a reload is offered on a loopback address only; send the process SIGHUP")
                await self._read(request, receive)
                if reason := await self._reload():
                    raise _Refused(409, f"{reason}. The model that was loaded before goes on answering")
                status, content = 200, {"name": self._model.name, "load": True}
            elif path == "/metrics" and method in ("GET", "HEAD"):
                await self._send(200, self._metrics.exposition(), [(b"content-type", CONTENT_TYPE)], request, send)
                return
            else:
                respond = self._get_by_path.get(path)
                if respond is None and path != "/metrics":
                    raise self._not_found(path)
                if respond is None or method not in ("GET", "HEAD"):
                    raise _Refused(405, f"{method} is not allowed here; use GET", [(b"allow", b"GET, HEAD")])
                status, content = respond()
        except (_Refused, InvalidInput) as error:
            await self._send_error(request, error, send)
            return
        except _ClientGone:
            return
        finally:
            self._held -= request.held
        await self._send(status, orjson.dumps(content), [(b"content-type", JSON)], request, send)

    def _not_found(self, path: str) -> _Refused:
        model = self._model.loaded
        named = re.match(r"/v[12]/(?:repository/)?models/([^/:]+)(?:/versions/([^/]+))?", path)
        if named and named[1] != model.name:
            return _Refused(404, f"there is no model {named[1][:200]!r} here; this server has {model.name!r}")
        if named and named[2] not in (None, model.version):
            return _Refused(404, f"there is no version {named[2][:200]!r} here; this server has {model.version!r}")
        offered = f"/v1/models/{model.name}:predict and /v2/models/{model.name}/infer take requests"
        return _Refused(404, f"there is nothing at {path[:200]!r}; {offered}")

    async def _read(self, request: _Request, receive: Receive) -> bytes:
        """The whole body, if it is not too large. What is not read is thrown away by the server below."""
        if request.length is not None and int(request.length) > self._max_bytes:
            raise self._too_large()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        if not message.get("more_body"):
            parts = [message["body"]]
            length = len(message["body"])
            self._hold(request, length)
        else:
            parts, length = [], 0
            while True:
                parts.append(message["body"])
                length += len(message["body"])
                self._hold(request, length)
                if length > self._max_bytes or not message.get("more_body"):
                    break
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGone
        if length > self._max_bytes:
            raise self._too_large()
        return b"".join(parts)

    def _hold(self, request: _Request, length: int) -> None:
        """Takes account of what a large body has brought so far. Small ones are answered as they come."""
        if length > _LARGE_BODY:
            self._held += length - request.held
            request.held = length
            if self._held > _LARGEST_BODIES * self._max_bytes:
                message = f"{self._held} bytes of large requests wait here already; send it again, or fewer rows in a request"
                raise _Refused(429, message, [(b"retry-after", str(_RETRY_SECONDS).encode())])

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body is larger than {self._max_bytes} bytes; send fewer rows in a request")

    async def _send_error(self, request: _Request, error: _Refused | InvalidInput, send: Send) -> int:
        if isinstance(error, _Refused):
            status, headers = error.status, error.headers
        else:
            status, headers = 413 if isinstance(error, TooManyRows) else 400, []
        await self._send(status, _error(str(error)), [(b"content-type", JSON), *headers], request, send)
        return status

    async def _send(self, status: int, body: bytes, headers: Headers, request: _Request, send: Send) -> None:
        request.answered_at = time.perf_counter()
        if not request.request_id:
            request.request_id = next(self._ids)
        length = str(len(body)).encode()
        headers += ((b"content-length", length), self._version, (b"x-request-id", request.request_id))
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _server_metadata(self) -> tuple[int, dict[str, Any]]:
        return 200, {"name": "modelyard", "version": package_version(), "extensions": ["binary_tensor_data"]}

    def close(self) -> None:
        """Ends the threads that score large requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _check_headers(request: _Request) -> int | None:
    """Checks what the body is said to be; returns the length of the JSON in it if that is given."""
    if request.content_encoding not in (b"", b"identity"):
        raise _Refused(415, "the body is compressed; send it as it is, without Content-Encoding")
    kind = request.content_type.partition(b";")[0].strip().lower()
    if kind not in (b"application/json", b"") and not (kind == b"application/octet-stream" and request.json_length is not None):
        shown = request.content_type.decode("latin-1")[:200]
        raise _Refused(415, f"Content-Type is {shown!r}; send application/json")
    if not _KEY.fullmatch(request.key):
        remedy = "give up to 256 printable characters of ASCII, such as a customer's number"
        raise InvalidInput("x-modelyard-key", request.key.decode("latin-1"), remedy)
    if request.json_length is None:
        return None
    if not request.json_length.isdigit() or len(request.json_length) > 18:
        shown = request.json_length.decode("latin-1")
        raise InvalidInput("Inference-Header-Content-Length", shown, "give the length of the JSON that the body begins with")
    return int(request.json_length)


def _error(message: str) -> bytes:
    # What came from a client may hold half a surrogate pair, which UTF-8 cannot.
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})
