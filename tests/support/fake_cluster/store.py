"""The objects of a cluster, as the API server keeps them: versions, generations, owners of fields, checks at every write."""

import copy
import datetime as dt
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.fake_cluster import admission, ownership, schemas
from tests.support.fake_cluster.errors import ApiError
from tests.support.fake_cluster.ownership import Fields, Manager

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    has_status: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = {
    "configmaps": Resource("", "v1", "configmaps", "ConfigMap", has_status=False),
    "secrets": Resource("", "v1", "secrets", "Secret", has_status=False),
    "namespaces": Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    "serviceaccounts": Resource("", "v1", "serviceaccounts", "ServiceAccount", has_status=False),
    "pods": Resource("", "v1", "pods", "Pod"),
    "services": Resource("", "v1", "services", "Service"),
    "deployments": Resource("apps", "v1", "deployments", "Deployment"),
    "events": Resource("", "v1", "events", "Event", has_status=False),
    "horizontalpodautoscalers": Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    "scaledobjects": Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject"),
    "inferenceservices": Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService"),
    "servingruntimes": Resource("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime", has_status=False),
    "clusterservingruntimes": Resource(
        "serving.kserve.io", "v1alpha1", "clusterservingruntimes", "ClusterServingRuntime", namespaced=False, has_status=False
    ),
    "clusterstoragecontainers": Resource(
        "serving.kserve.io",
        "v1alpha1",
        "clusterstoragecontainers",
        "ClusterStorageContainer",
        namespaced=False,
        has_status=False,
    ),
    "httproutes": Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    "ksvcs": Resource("serving.knative.dev", "v1", "services", "Service"),
    "revisions": Resource("serving.knative.dev", "v1", "revisions", "Revision"),
}


@dataclass
class _Kept:
    content: Object
    owners: dict[Manager, Fields]
    _text: str = ""

    def read(self) -> Object:
        """A copy; by way of JSON, which is many times faster than copying item by item."""
        self._text = self._text or json.dumps(self.content)
        copied: Object = json.loads(self._text)
        return copied


def now() -> str:
    """The time as Kubernetes writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects. Not for two threads at once: whoever uses it holds the cluster's lock."""

    def __init__(self) -> None:
        self.version = 1000
        self.events: list[tuple[int, str, Resource, Object]] = []
        self._kept: dict[tuple[str, str, str], _Kept] = {}

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """A copy of an object, or None."""
        kept = self._kept.get((kind, namespace, name))
        return kept.read() if kept else None

    def all(self, kind: str, namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        """Copies of the objects of a kind, by name; of all namespaces if none is given."""
        return [
            kept.read()
            for (of, within, _), kept in sorted(self._kept.items())
            if of == kind
            and namespace in ("", within)
            and (labels or {}).items() <= kept.content["metadata"].get("labels", {}).items()
        ]

    def holds(self, found: Object, wanted: Object) -> bool:
        """Whether an object that was read is what it should be, metadata and status aside."""
        return {name: value for name, value in _of_generation(found).items() if name not in ("apiVersion", "kind")} == wanted

    def create(self, kind: str, content: Object, manager: str, *, dry_run: bool = False) -> Object:
        """Makes an object."""
        resource, content = RESOURCES[kind], copy.deepcopy(content)
        metadata = content.setdefault("metadata", {})
        if not metadata.get("name"):
            raise ApiError(422, "Invalid", f"{resource.kind}: metadata.name: Required value: name or generateName is required")
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        if key in self._kept:
            raise ApiError(409, "AlreadyExists", f'{resource.plural} "{key[2]}" already exists')
        if metadata.get("resourceVersion"):
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if resource.has_status and resource.group != "apps" and kind != "pods":
            content.pop("status", None)
        content = self._admitted(resource, content, None)
        owners = ownership.update({}, content, {}, Manager(manager, "Update"), self._schema(resource))
        return self._keep(key, resource, content, owners, None, dry_run)

    def replace(self, kind: str, name: str, namespace: str, content: Object, manager: str, *, dry_run: bool = False) -> Object:
        """Writes an object anew, its status aside; with a resourceVersion only over that one."""
        resource, key = RESOURCES[kind], (kind, namespace, name)
        old = self._existing(key, resource)
        content = copy.deepcopy(content)
        self._check_version(resource, old.content, content)
        content["metadata"] = {**content.get("metadata", {}), "name": name, **({"namespace": namespace} if namespace else {})}
        content.pop("status", None)
        if "status" in old.content:
            content["status"] = copy.deepcopy(old.content["status"])
        content = self._admitted(resource, content, old.content)
        owners = ownership.update(old.content, content, old.owners, Manager(manager, "Update"), self._schema(resource))
        return self._keep(key, resource, content, owners, old, dry_run)

    def merge(self, kind: str, name: str, namespace: str, patch: Object, manager: str, *, dry_run: bool = False) -> Object:
        """A merge patch: what is null goes, the rest is merged."""
        old = self._existing((kind, namespace, name), RESOURCES[kind])
        merged = copy.deepcopy(old.content)
        _merge(merged, patch)
        return self.replace(kind, name, namespace, merged, manager, dry_run=dry_run)

    def apply(
        self, kind: str, name: str, namespace: str, applied: Object, manager: str, *, force: bool, dry_run: bool = False
    ) -> tuple[Object, bool]:
        """Server-side apply; says too whether the object is new."""
        resource, key = RESOURCES[kind], (kind, namespace, name)
        applied = copy.deepcopy(applied)
        metadata = applied.setdefault("metadata", {})
        if metadata.get("managedFields"):
            raise ApiError(400, "BadRequest", "metadata.managedFields must be nil")
        if metadata.get("name", name) != name or metadata.get("namespace", namespace) != namespace:
            raise ApiError(400, "BadRequest", "the name or the namespace of the object does not match the URL")
        if (applied.get("apiVersion"), applied.get("kind")) != (resource.api_version, resource.kind):
            raise ApiError(400, "BadRequest", f"apiVersion and kind must be {resource.api_version} and {resource.kind}")
        metadata["name"] = name
        if namespace:
            metadata["namespace"] = namespace
        old = self._kept.get(key)
        if old:
            self._check_version(resource, old.content, applied)
        elif metadata.get("resourceVersion") or metadata.get("uid"):
            raise ApiError(
                409, "Conflict", f'{resource.plural} "{name}": uid or resourceVersion is given, but there is no such object'
            )
        by = Manager(manager, "Apply")
        schema = self._schema(resource)
        self._check(resource, applied, partial=True)
        merged, owners, conflicts = ownership.apply(
            old.content if old else {}, applied, old.owners if old else {}, by, schema, force=force
        )
        if conflicts:
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{conflict.manager}" using {resource.api_version}',
                    "field": conflict.field,
                }
                for conflict in conflicts
            ]
            told = "\n".join(f"- {cause['message']}: {cause['field']}" for cause in causes)
            counted = f"{len(causes)} conflict" + ("s" if len(causes) > 1 else "")
            raise ApiError(409, "Conflict", f"Apply failed with {counted}: {told.removeprefix('- ')}", {"causes": causes})
        merged = {"apiVersion": resource.api_version, "kind": resource.kind, **merged}
        merged["metadata"] = {**merged.get("metadata", {}), "name": name, **({"namespace": namespace} if namespace else {})}
        merged["metadata"].pop("resourceVersion", None)
        merged = self._admitted(resource, merged, old.content if old else None)
        return self._keep(key, resource, merged, owners, old, dry_run, applied_by=by), old is None

    def set_status(self, kind: str, name: str, namespace: str, status: Object, *, version: str = "") -> Object:
        """Writes an object's status alone."""
        resource, key = RESOURCES[kind], (kind, namespace, name)
        old = self._existing(key, resource)
        content = old.read()
        if version and version != content["metadata"]["resourceVersion"]:
            raise _changed_meanwhile(resource, name)
        content["status"] = copy.deepcopy(status)
        self._check(resource, content)
        return self._keep(key, resource, content, old.owners, old, False)

    def delete(self, kind: str, name: str, namespace: str = "", *, version: str = "", uid: str = "") -> Object:
        """Takes an object away, and what it owns."""
        resource, key = RESOURCES[kind], (kind, namespace, name)
        content = self._existing(key, resource).read()
        metadata = content["metadata"]
        if (version and version != metadata["resourceVersion"]) or (uid and uid != metadata["uid"]):
            raise ApiError(
                409, "Conflict", f'Operation cannot be fulfilled on {resource.plural} "{name}": the precondition failed'
            )
        del self._kept[key]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        self.events.append((self.version, "DELETED", resource, content))
        for of, within, owned in [
            at
            for at, kept in self._kept.items()
            if any(owner["uid"] == metadata["uid"] for owner in kept.content["metadata"].get("ownerReferences", ()))
        ]:
            self.delete(of, owned, within)
        return content

    def empty(self, namespace: str) -> None:
        """Takes away everything in a namespace."""
        for key in [key for key in self._kept if key[1] == namespace]:
            if key in self._kept:
                self.delete(key[0], key[2], namespace)

    def _existing(self, key: tuple[str, str, str], resource: Resource) -> _Kept:
        kept = self._kept.get(key)
        if kept is None:
            qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            raise ApiError(404, "NotFound", f'{qualified} "{key[2]}" not found', {"name": key[2], "kind": resource.plural})
        return kept

    def _schema(self, resource: Resource) -> schemas.Schema:
        return schemas.definitions().get(resource.kind, {}) if resource.group == "serving.kserve.io" else {}

    def _check(self, resource: Resource, content: Object, *, partial: bool = False) -> None:
        schema = self._schema(resource)
        if not schema and resource.kind == "ConfigMap":
            admission.check_config_map(content)
        unknown = schemas.unknown_fields(content, schema)
        if unknown:
            told = ", ".join(f'unknown field "{name}"' for name in unknown)
            raise ApiError(400, "BadRequest", f"strict decoding error: {told}")
        if not partial:
            found = schemas.violations(content, schema)
            if found:
                name = content["metadata"]["name"]
                told = ", ".join(f"{field}: Invalid value: {why}" for field, why in found)
                causes = [{"field": field, "message": why} for field, why in found]
                raise ApiError(422, "Invalid", f'{resource.kind} "{name}" is invalid: {told}', {"causes": causes})

    def _check_version(self, resource: Resource, old: Object, content: Object) -> None:
        metadata = content.get("metadata", {})
        if metadata.get("resourceVersion", old["metadata"]["resourceVersion"]) != old["metadata"]["resourceVersion"]:
            raise _changed_meanwhile(resource, old["metadata"]["name"])
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise ApiError(409, "Conflict", f'{resource.plural} "{old["metadata"]["name"]}": the object has another uid')

    def _admitted(self, resource: Resource, content: Object, old: Object | None) -> Object:
        schemas.fill_defaults(content, self._schema(resource))
        if resource.kind == "InferenceService":
            admission.fill_in(content)
        self._check(resource, content)
        if resource.kind == "InferenceService":
            refusal = admission.refusal(content, old)
            if refusal:
                raise ApiError(
                    400,
                    "BadRequest",
                    f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {refusal}',
                )
        return content

    def _keep(
        self,
        key: tuple[str, str, str],
        resource: Resource,
        content: Object,
        owners: dict[Manager, Fields],
        old: _Kept | None,
        dry_run: bool,
        applied_by: Manager | None = None,
    ) -> Object:
        content = {"apiVersion": resource.api_version, "kind": resource.kind, **content}
        metadata = content["metadata"]
        before = old.content["metadata"] if old else {}
        metadata["uid"] = before.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = before.get("creationTimestamp") or now()
        generation = before.get("generation", 0)
        if old is None or _of_generation(old.content) != _of_generation(content):
            generation += 1
        metadata["generation"] = generation
        if old is not None and owners == old.owners:
            metadata["managedFields"] = copy.deepcopy(before["managedFields"])
        else:
            metadata["managedFields"] = ownership.managed_fields(owners, resource.api_version, now())
        metadata["resourceVersion"] = before.get("resourceVersion", "")
        if old is not None and content == old.content:
            return copy.deepcopy(content)
        for entry in metadata["managedFields"]:
            if applied_by == Manager(entry["manager"], entry["operation"]):
                # Who applies is noted with the time of every change, also where the fields stay the same ones.
                entry["time"] = now()
        if dry_run:
            return copy.deepcopy(content)
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        self._kept[key] = _Kept(content, owners)
        self.events.append((self.version, "MODIFIED" if old else "ADDED", resource, content))
        return self._kept[key].read()

    def edit(self, kind: str, name: str, namespace: str, change: Callable[[Object], None], manager: str) -> Object:
        """Reads an object, changes it and writes it back."""
        changed = self._existing((kind, namespace, name), RESOURCES[kind]).read()
        change(changed)
        return self.replace(kind, name, namespace, changed, manager)


def _merge(into: Object, patch: Object) -> None:
    for name, value in patch.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict):
            if not isinstance(into.get(name), dict):
                into[name] = {}
            _merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def _of_generation(content: Object) -> Object:
    return {name: value for name, value in content.items() if name not in ("metadata", "status")}


def _changed_meanwhile(resource: Resource, name: str) -> ApiError:
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again",
    )
