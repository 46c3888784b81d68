"""A cluster's API as this package uses it: objects as dicts, server-side apply, and every failure as one of few.

Dicts rather than the client's typed models, because those drop what is ``None`` and so cannot clear a field.

| the API server says | then |
|---|---|
| 429, 500, 502, 503, 504, nothing | again for a minute, after ``Retry-After`` or a growing pause; then ``NotAvailable`` |
| 404 | None; at a write, again for some seconds, for a kind that was just installed is not served at once |
| 409, another resource version | ``Stale``: read again and decide again |
| 409, fields of another manager | ``FieldsTaken``, which names them |
| 401, 403 | ``NotAvailable``: what is not allowed, and to whom |
| any other refusal | ``NotAvailable``, with its words |
"""

import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.components.errors import ModelyardError, NotAvailable
from modelyard.components.serving.kserve.names import FIELD_MANAGER

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

INFERENCE_SERVICE = ("apis/serving.kserve.io/v1beta1", "inferenceservices")
REVISION = ("apis/serving.knative.dev/v1", "revisions")
HTTP_ROUTE = ("apis/gateway.networking.k8s.io/v1", "httproutes")
DEPLOYMENT = ("apis/apps/v1", "deployments")
SERVICE = ("api/v1", "services")
POD = ("api/v1", "pods")
CONFIG_MAP = ("api/v1", "configmaps")
EVENT = ("api/v1", "events")
POD_AUTOSCALER = ("apis/autoscaling/v2", "horizontalpodautoscalers")
SCALED_OBJECT = ("apis/keda.sh/v1alpha1", "scaledobjects")

Kind = tuple[str, str]
Object = dict[str, Any]

_TIMEOUT_SECONDS = (5, 30)
_PATIENCE_SECONDS = 60.0
_NEW_KIND_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0
_PASSING = (429, 500, 502, 503, 504)
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Stale(ModelyardError):
    """The object is not what it was when it was read."""


class FieldsTaken(ModelyardError):
    """Fields that somebody else has set to something else since.

    Attributes:
        fields: by the field's path, who set it.
    """

    def __init__(self, name: str, fields: Mapping[str, str]) -> None:
        self.fields = dict(fields)
        told = ", ".join(f"{field} (by {manager})" for field, manager in self.fields.items())
        super().__init__(f"somebody else changed {name}: {told}")


class Cluster:
    """The objects of one namespace.

    Args:
        client: an open client of the API.
        namespace: the namespace.
        patience: seconds for which a request that fails in passing is repeated.
    """

    def __init__(self, client: "ApiClient", namespace: str, *, patience: float = _PATIENCE_SECONDS) -> None:
        self.namespace = namespace
        self._client, self._patience = client, patience

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object; None if there is none."""
        return self._ask("GET", kind, name)

    def select(
        self, kind: Kind, labels: Mapping[str, str] | None = None, *, fields: Mapping[str, str] | None = None
    ) -> list[Object]:
        """The objects that have these labels and, where the API server selects by them, these fields.

        None where it has no such kind.
        """
        query = [
            (name, ",".join(f"{path}={value}" for path, value in wanted.items()))
            for name, wanted in (("labelSelector", labels), ("fieldSelector", fields))
            if wanted
        ]
        found = self._ask("GET", kind, "", query=query) or {}
        items: list[Object] = found.get("items") or []
        return items

    def apply(self, kind: Kind, content: Object, *, force: bool = False) -> Object:
        """Server-side apply: the object has the fields of ``content`` then, and of ours no others.

        Raises:
            Stale: ``content`` gives a resource version that the object no longer has.
            FieldsTaken: somebody else has set a field to something else, and this does not ``force``.
        """
        query = [("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict"), ("force", "true" if force else "false")]
        name = content["metadata"]["name"]
        return self._write("PATCH", kind, name, content, query, "application/apply-patch+yaml")

    def create(self, kind: Kind, content: Object) -> Object:
        """Makes an object.

        Raises:
            Stale: there is one already.
        """
        return self._write("POST", kind, "", content, [("fieldManager", FIELD_MANAGER)])

    def replace(self, kind: Kind, content: Object) -> Object:
        """Writes an object anew.

        Raises:
            Stale: it is not of the resource version that ``content`` gives, or gone.
        """
        return self._write("PUT", kind, content["metadata"]["name"], content, [("fieldManager", FIELD_MANAGER)])

    def delete(self, kind: Kind, content: Object, *, changed_too: bool = False) -> None:
        """Takes away an object that was read, if it is still as it was; one that is gone already is fine.

        Args:
            kind: its kind.
            content: as it was read.
            changed_too: whether it also goes if it was changed since, as long as it is the same object.

        Raises:
            Stale: it is not as it was, or another one.
        """
        metadata = content["metadata"]
        preconditions = {"uid": metadata["uid"]}
        if not changed_too:
            preconditions["resourceVersion"] = metadata["resourceVersion"]
        options = {"preconditions": preconditions, "propagationPolicy": "Background"}
        self._ask("DELETE", kind, metadata["name"], body=options)

    def _write(
        self, method: str, kind: Kind, name: str, body: Object, query: list[tuple[str, str]], media: str = "application/json"
    ) -> Object:
        deadline = time.monotonic() + min(_NEW_KIND_SECONDS, self._patience)
        while True:
            written = self._ask(method, kind, name, query=query, body=body, media=media)
            if written is not None:
                return written
            if method == "PUT":
                raise Stale(f"{kind[1]} {name!r} is gone")
            if time.monotonic() > deadline:
                raise NotAvailable(
                    f"the cluster has no namespace {self.namespace!r}, or no {kind[1]}: install KServe there, or name another"
                )
            time.sleep(1.0)

    def _ask(
        self,
        method: str,
        kind: Kind,
        name: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        media: str = "application/json",
    ) -> Object | None:
        """The answer to one request, repeated while it fails in passing; None for 404."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        path = f"/{kind[0]}/namespaces/{self.namespace}/{kind[1]}" + (f"/{name}" if name else "")
        what = f"{method} {kind[1]} {name}".rstrip()
        deadline, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311
            try:
                answer: Object = self._client.call_api(
                    path,
                    method,
                    query_params=query or [],
                    header_params={"Accept": "application/json", "Content-Type": media},
                    body=body,
                    response_type="object",
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _request_timeout=_TIMEOUT_SECONDS,
                )
                return answer
            except ApiException as error:
                if error.status == 404:
                    return None
                # Status 0 is a TLS connection that did not come about.
                if error.status not in (0, *_PASSING):
                    raise _refusal(what, name or kind[1], error) from error
                told, wait = _message(error), max(wait, _retry_after(error))
            except (HTTPError, OSError) as error:
                told = str(error) or type(error).__name__
            if time.monotonic() + wait > deadline:
                raise NotAvailable(f"the cluster's API does not do it ({what}): {told}")
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


def own_namespace() -> str:
    """The namespace of this pod, if it is the pod's cluster that is used; else empty."""
    if os.environ.get("KUBECONFIG") or not (_ACCOUNT / "token").is_file():
        return ""
    return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()


def open_cluster(namespace: str = "") -> Cluster:
    """The cluster that ``KUBECONFIG`` names, else the one that this pod runs in, else the kubeconfig's.

    Args:
        namespace: empty for the pod's own, or that of the kubeconfig's context.

    Raises:
        NotAvailable: no cluster is configured.
    """
    import yaml
    from kubernetes import client, config

    configuration = client.Configuration()
    # The client looks at this variable only once, when it is imported.
    path = os.environ.get("KUBECONFIG") or None
    try:
        if own := own_namespace():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(path, client_configuration=configuration)
            own = config.list_kube_config_contexts(path)[1]["context"].get("namespace") or "default"
    except (config.ConfigException, OSError, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise NotAvailable(
            f"no cluster is configured ({error}): run this in a pod with a service account, or name a kubeconfig in KUBECONFIG"
        ) from error
    # Whether something may be repeated is decided here.
    configuration.retries = False
    return Cluster(client.ApiClient(configuration), namespace or own)


def _refusal(what: str, name: str, error: "ApiException") -> ModelyardError:
    told = _message(error)
    if error.status == 409:
        causes = (_status(error).get("details") or {}).get("causes") or []
        taken = {
            cause["field"].lstrip("."): _manager(cause.get("message", ""))
            for cause in causes
            if cause.get("reason") == "FieldManagerConflict"
        }
        return FieldsTaken(name, taken) if taken else Stale(told)
    if error.status == 401:
        return NotAvailable(f"the cluster does not know who asks ({what}): renew the credentials")
    if error.status == 403:
        return NotAvailable(f"the cluster does not allow it ({what}): {told}. Bind the Role that manifests/ has for it")
    return NotAvailable(f"the cluster refuses it ({what}): {told}")


def _manager(message: str) -> str:
    """Who is named in ``conflict with "kubectl-edit" using …``."""
    parts = message.split('"')
    return parts[1] if len(parts) > 1 else message


def _status(error: "ApiException") -> Object:
    try:
        status = json.loads(error.body or "")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _message(error: "ApiException") -> str:
    return str(_status(error).get("message") or error.reason or error.status)[:1000]


def _retry_after(error: "ApiException") -> float:
    try:
        return float((error.headers or {}).get("Retry-After", 0))
    except ValueError:
        return 0.0
