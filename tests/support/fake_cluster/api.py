"""The API server itself: kmock's HTTP server and discovery, with the semantics that a target leans on put on top.

kmock 0.8 keeps objects as plain JSON: it has no resource versions, no server-side apply, no status apart and no checks. So what
it parses of a request is answered from ``Store`` here.
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp.web
import attrs
import kmock
import yaml

from tests.support.fake_cluster.errors import ApiError
from tests.support.fake_cluster.store import RESOURCES, Object, Resource

if TYPE_CHECKING:
    from tests.support.fake_cluster.cluster import FakeCluster

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_NAMESPACE = re.compile(r"/api/v1/namespaces(/(?P<name>[^/]+))?")
_BY_PATH = {(resource.group, resource.version, resource.plural): kind for kind, resource in RESOURCES.items()}


@dataclass
class Meeting:
    """What the next ``times`` requests of a kind meet with."""

    method: str
    path: str
    times: int
    status: int = 0
    retry_after: float | None = None
    message: str = ""
    drop: bool = False
    after_work: bool = False
    seconds: float = 0.0
    action: Callable[[], Any] | None = None
    skip: int = 0

    def concerns(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and self.path in path


@attrs.define(kw_only=True)
class _Handler(kmock.KubernetesScaffold):
    """kmock's parsing and discovery; objects are answered by ``Api``."""

    api: Any = None

    async def __call__(self, raw_request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        # kmock does not know the path of a namespace itself.
        found = _NAMESPACE.fullmatch(raw_request.path)
        if found:
            return await self.api.answer_namespace(raw_request, found["name"])
        return await super().__call__(raw_request)

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        return await self.api.answer(request, super()._handle)


class Api:
    """Answers requests about objects; discovery is kmock's."""

    token = "a-token-of-the-fake-cluster"

    def __init__(self, cluster: "FakeCluster") -> None:
        self._cluster = cluster
        self._meetings: list[Meeting] = []
        self._watches = 0
        self.url = ""

    async def serve(self, started: threading.Event, stopped: threading.Event) -> None:
        """Serves until it is stopped."""
        handler = _Handler(api=self)
        for resource in RESOURCES.values():
            subresources = {"status"} if resource.has_status else set()
            handler.resources[f"{resource.group}/{resource.version}/{resource.plural}".lstrip("/")] = {
                "kind": resource.kind,
                "singular": resource.kind.lower(),
                "namespaced": resource.namespaced,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                "subresources": subresources,
            }
        async with handler, kmock.Server(handler) as server:
            self.url = str(server.url).rstrip("/")
            started.set()
            while not stopped.is_set():
                await asyncio.sleep(0.02)
            self.end_watches()

    def meet(self, meeting: Meeting) -> None:
        """Plans what requests meet with."""
        with self._cluster.lock:
            self._meetings.append(meeting)

    def end_watches(self) -> None:
        """Every watch ends."""
        self._watches += 1

    async def answer(self, request: kmock.Request, discover: Callable[..., Any]) -> aiohttp.web.StreamResponse:
        """Answers a request."""
        method, path = request.method.value.upper(), request.url.path_qs
        cut, refused = False, None
        with self._cluster.lock:
            met = [meeting for meeting in self._meetings if meeting.concerns(method, path)]
            for meeting in list(met):
                if meeting.skip:
                    meeting.skip -= 1
                    met.remove(meeting)
                else:
                    meeting.times -= 1
        for meeting in met:
            await asyncio.sleep(meeting.seconds)
        try:
            for meeting in met:
                if meeting.action:
                    with self._cluster.lock:
                        meeting.action()
                if not meeting.after_work:
                    cut = cut or meeting.drop
                    _refuse(meeting)
            if cut:
                return self._cut(request, method, path)
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            if request.params.get("watch") in ("true", "1") and request.resource:
                return await self._watch(request)
            kind = self._kind(request)
            if kind is None:
                return await discover(request)
            with self._cluster.lock:
                status, content = self._work(kind, RESOURCES[kind], request)
            for meeting in met:
                if meeting.after_work:
                    if meeting.drop:
                        return self._cut(request, method, path)
                    _refuse(meeting)
        except ApiError as error:
            refused = error
            status, content = error.status, _failure(error)
        self._cluster.requests.append((method, path, status))
        return aiohttp.web.json_response(content, status=status, headers=refused.headers if refused else None)

    async def answer_namespace(self, request: aiohttp.web.BaseRequest, name: str | None) -> aiohttp.web.StreamResponse:
        """Answers a request about a namespace itself."""
        body = await request.read()
        with self._cluster.lock:
            store = self._cluster.store
            try:
                if request.method == "POST":
                    return aiohttp.web.json_response(store.create("namespaces", json.loads(body), "unknown"), status=201)
                if request.method == "DELETE" and name:
                    store.empty(name)
                    return aiohttp.web.json_response(store.delete("namespaces", name))
                found = store.get("namespaces", name or "")
                if found is None:
                    raise ApiError(404, "NotFound", f'namespaces "{name}" not found')
                return aiohttp.web.json_response(found)
            except ApiError as error:
                return aiohttp.web.json_response(_failure(error), status=error.status)

    def _cut(self, request: kmock.Request, method: str, path: str) -> aiohttp.web.StreamResponse:
        self._cluster.requests.append((method, path, 0))
        transport = request._raw_request.transport
        if transport is not None:
            transport.abort()
        return aiohttp.web.Response()

    def _kind(self, request: kmock.Request) -> str | None:
        resource = request.resource
        if resource is None or resource.plural is None:
            return None
        kind = _BY_PATH.get((resource.group, resource.version, resource.plural))
        if kind is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return kind

    def _work(self, kind: str, resource: Resource, request: kmock.Request) -> tuple[int, Object]:
        store, params = self._cluster.store, request.params
        method, name, namespace = request.method.value.upper(), request.name, request.namespace or ""
        manager = params.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
        dry_run = "dryRun" in params
        if request.subresource not in (None, "status") or (request.subresource == "status" and not resource.has_status):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if method == "GET" and name is None:
            return 200, self._list(kind, resource, namespace, params)
        if method == "GET":
            found = store.get(kind, name, namespace)
            if found is None:
                store.replace(kind, name, namespace, {}, manager)
            return 200, found
        if method == "POST" and name is None:
            body = _body(request)
            body.setdefault("metadata", {}).setdefault("namespace", namespace)
            if body["metadata"]["namespace"] != namespace:
                raise ApiError(400, "BadRequest", "the namespace of the provided object does not match the request")
            return 201, store.create(kind, body, manager, dry_run=dry_run)
        if method == "DELETE" and name is not None:
            preconditions = (_body(request) or {}).get("preconditions") or {}
            gone = store.delete(
                kind, name, namespace, version=preconditions.get("resourceVersion", ""), uid=preconditions.get("uid", "")
            )
            details = {"name": name, "kind": resource.plural, "uid": gone["metadata"]["uid"]}
            return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        if method == "PUT" and name is not None:
            body = _body(request)
            if request.subresource:
                version = body.get("metadata", {}).get("resourceVersion", "")
                return 200, store.set_status(kind, name, namespace, body.get("status", {}), version=version)
            return 200, store.replace(kind, name, namespace, body, manager, dry_run=dry_run)
        if method == "PATCH" and name is not None:
            return self._patch(kind, resource, request, manager, dry_run)
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _patch(self, kind: str, resource: Resource, request: kmock.Request, manager: str, dry_run: bool) -> tuple[int, Object]:
        store, name, namespace = self._cluster.store, request.name, request.namespace or ""
        content_type = request.headers.get("Content-Type", "").partition(";")[0]
        body = _body(request)
        if request.subresource:
            found = store.get(kind, name, namespace) or {}
            status = {**found.get("status", {}), **body.get("status", {})}
            return 200, store.set_status(
                kind, name, namespace, {key: value for key, value in status.items() if value is not None}
            )
        if content_type == "application/apply-patch+yaml":
            if not request.params.get("fieldManager"):
                raise ApiError(
                    422,
                    "Invalid",
                    "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch",
                )
            force = request.params.get("force") == "true"
            found, new = store.apply(kind, name, namespace, body, manager, force=force, dry_run=dry_run)
            return 201 if new else 200, found
        of_core = resource.group in ("", "apps")
        if content_type == "application/merge-patch+json" or (
            content_type == "application/strategic-merge-patch+json" and of_core
        ):
            return 200, store.merge(kind, name, namespace, body, manager, dry_run=dry_run)
        raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content_type}")

    def _list(self, kind: str, resource: Resource, namespace: str, params: Mapping[str, str]) -> Object:
        found = [
            content
            for content in self._cluster.store.all(kind, namespace)
            if _selected(content["metadata"].get("labels", {}), params.get("labelSelector", ""))
            and _named(content, params.get("fieldSelector", ""))
        ]
        version = str(self._cluster.store.version)
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": version},
            "items": found,
        }

    async def _watch(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        kind, params, number = self._kind(request), request.params, self._watches
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request._raw_request)
        self._cluster.requests.append(("GET", request.url.path_qs, 200))
        with self._cluster.lock:
            store = self._cluster.store
            seen = int(params.get("resourceVersion") or 0)
            first = [] if seen else store.all(kind, request.namespace or "")
            events = [("ADDED", content) for content in first]
            seen = seen or store.version
        end = asyncio.get_running_loop().time() + float(params.get("timeoutSeconds") or 300)
        while True:
            for event, content in events:
                if _selected(content["metadata"].get("labels", {}), params.get("labelSelector", "")) and _named(
                    content, params.get("fieldSelector", "")
                ):
                    await response.write(json.dumps({"type": event, "object": content}).encode() + b"\n")
            if asyncio.get_running_loop().time() > end or number != self._watches:
                break
            await asyncio.sleep(0.01)
            with self._cluster.lock:
                events = [
                    (event, content)
                    for version, event, resource, content in store.events
                    if version > seen
                    and resource == RESOURCES[kind]
                    and request.namespace in (None, content["metadata"]["namespace"])
                ]
                seen = store.version
        await response.write_eof()
        return response


def _refuse(meeting: Meeting) -> None:
    if meeting.status:
        reason = _REASONS.get(meeting.status, "InternalError")
        headers = {"Retry-After": str(meeting.retry_after)} if meeting.retry_after is not None else {}
        raise ApiError(meeting.status, reason, meeting.message or f"the test wants it: {reason}", headers=headers)


def _failure(error: ApiError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "details": error.details,
        "code": error.status,
    }


def _body(request: kmock.Request) -> Object:
    if not request.body:
        return {}
    try:
        return json.loads(request.body)
    except ValueError:
        return yaml.safe_load(request.body)


def _selected(labels: Mapping[str, str], selector: str) -> bool:
    for part in filter(None, (part.strip() for part in selector.split(","))):
        name, operator, value = part.partition("!=")
        if operator:
            if labels.get(name.strip()) == value.strip():
                return False
            continue
        name, operator, value = part.partition("=")
        if operator and labels.get(name.strip()) != value.lstrip("=").strip():
            return False
        if not operator and (part.lstrip("!") in labels) == part.startswith("!"):
            return False
    return True


def _named(content: Object, selector: str) -> bool:
    for part in filter(None, selector.split(",")):
        name, _, value = part.partition("=")
        at: Any = content
        for step in name.split("."):
            at = at.get(step, "") if isinstance(at, dict) else ""
        if at != value.lstrip("="):
            return False
    return True
