"""Who owns which field of an object: field sets, and the merge and the conflicts of server-side apply.

A field set is a set of paths; a path is a tuple of the elements of ``fieldsV1``: ``f:name`` for a field, ``k:{…}`` for the item
of a list that has keys, ``v:…`` for an item of a set. Lists are atomic unless the schema says otherwise.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.support.fake_cluster.schemas import Schema, child

Path = tuple[str, ...]
Fields = frozenset[Path]
_MISSING = object()
_NOBODYS = {
    ("f:apiVersion",),
    ("f:kind",),
    *(("f:metadata", f"f:{name}") for name in ("name", "namespace", "uid", "resourceVersion", "generation", "selfLink")),
    *(("f:metadata", f"f:{name}") for name in ("creationTimestamp", "deletionTimestamp", "managedFields")),
}
_METADATA: Schema = {
    "properties": {
        "labels": {"type": "object", "additionalProperties": {}},
        "annotations": {"type": "object", "additionalProperties": {}},
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set"},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {},
        },
    }
}


@dataclass(frozen=True)
class Manager:
    """Who wrote: a name, and whether it applied or updated."""

    name: str
    operation: str


@dataclass(frozen=True)
class Conflict:
    """A field that somebody else owns, with another value."""

    manager: str
    path: Path

    @property
    def field(self) -> str:
        """The field as the API server writes it, ``.spec.predictor.canaryTrafficPercent``."""
        return "".join("." + part[2:] if part.startswith("f:") else f"[{part[2:]}]" for part in self.path)


def fields_of(value: dict[str, Any], schema: Schema) -> Fields:
    """The fields that an object sets, without its status and what the server alone writes."""
    return frozenset(_fields_in_order(value, schema))


def _fields_in_order(value: dict[str, Any], schema: Schema) -> list[Path]:
    rooted = {**schema, "properties": {**schema.get("properties", {}), "metadata": _METADATA}}
    content = {name: inner for name, inner in value.items() if name != "status"}
    return [path for path in _leaves(content, rooted, ()) if path not in _NOBODYS and path]


def _leaves(value: Any, schema: Schema, path: Path) -> Iterable[Path]:
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        for name, inner in value.items():
            yield from _leaves(inner, child(schema, name), (*path, f"f:{name}"))
    elif isinstance(value, list) and schema.get("x-kubernetes-list-type") == "map":
        for item in value:
            at = (*path, _key(item, schema))
            yield at
            if isinstance(item, dict):
                for name, inner in item.items():
                    yield from _leaves(inner, child(schema.get("items", {}), name), (*at, f"f:{name}"))
    elif isinstance(value, list) and schema.get("x-kubernetes-list-type") == "set":
        for item in value:
            yield (*path, "v:" + json.dumps(item))
    else:
        yield path


def _key(item: dict[str, Any], schema: Schema) -> str:
    return "k:" + json.dumps(
        {name: item[name] for name in schema["x-kubernetes-list-map-keys"] if name in item}, sort_keys=True
    )


def _item(items: list[Any], part: str) -> Any:
    wanted = json.loads(part[2:])
    if part.startswith("v:"):
        return wanted if wanted in items else _MISSING
    return next((item for item in items if all(item.get(name) == value for name, value in wanted.items())), _MISSING)


def _read(value: Any, path: Path) -> Any:
    for part in path:
        if isinstance(value, dict) and part.startswith("f:"):
            value = value.get(part[2:], _MISSING)
        elif isinstance(value, list) and not part.startswith("f:"):
            value = _item(value, part)
        else:
            return _MISSING
    return value


def _write(value: Any, path: Path, content: Any) -> None:
    for at, part in enumerate(path):
        last = at == len(path) - 1
        if part.startswith("f:"):
            name = part[2:]
            if last:
                value[name] = copy.deepcopy(content)
            else:
                inner = value.get(name)
                wanted = dict if path[at + 1].startswith("f:") else list
                if not isinstance(inner, wanted):
                    value[name] = inner = wanted()
                value = inner
        else:
            item = _item(value, part)
            if item is _MISSING:
                item = json.loads(part[2:])
                value.append(item)
            value = item


def _erase(value: Any, path: Path) -> None:
    holders = [value]
    for part in path[:-1]:
        inner = _read(holders[-1], (part,))
        if inner is _MISSING:
            return
        holders.append(inner)
    for holder, part in reversed(list(zip(holders, path, strict=True))):
        if isinstance(holder, dict):
            holder.pop(part[2:], None)
        else:
            item = _item(holder, part)
            if item is not _MISSING:
                holder.remove(item)
        # A parent that nothing is left of goes with it.
        if holder:
            return


def _touches(path: Path, others: Iterable[Path]) -> bool:
    return any(other[: len(path)] == path or path[: len(other)] == other for other in others)


def apply(
    live: dict[str, Any],
    applied: dict[str, Any],
    owners: dict[Manager, Fields],
    manager: Manager,
    schema: Schema,
    *,
    force: bool,
) -> tuple[dict[str, Any], dict[Manager, Fields], list[Conflict]]:
    """Server-side apply: the object after it, who owns what then, and what stands in the way (nothing with ``force``)."""
    in_order = _fields_in_order(applied, schema)
    mine = frozenset(in_order)
    others = {owner: paths for owner, paths in owners.items() if owner != manager}
    changed = [path for path in mine if _read(live, path) != _read(applied, path) and not path[-1].startswith("k:")]
    conflicts = [
        Conflict(owner.name, path) for path in sorted(changed) for owner, paths in others.items() if _touches(path, paths)
    ]
    if conflicts and not force:
        return live, owners, conflicts
    taken = {conflict.path for conflict in conflicts}
    others = {owner: frozenset(path for path in paths if not _touches(path, taken)) for owner, paths in others.items()}
    merged = copy.deepcopy(live)
    # Items of a list, such as a container's environment, stand in the order in which they were applied.
    for path in in_order:
        if path[-1].startswith(("k:", "v:")):
            if _read(merged, path) is _MISSING:
                _write(merged, path, None)
        else:
            _write(merged, path, _read(applied, path))
    kept = mine.union(*others.values())
    # An item of a list goes before its fields, by one of which it is found.
    for path in sorted(owners.get(manager, frozenset()) - kept, key=len):
        if not any(other[: len(path)] == path for other in kept):
            _erase(merged, path)
    return merged, {**{owner: paths for owner, paths in others.items() if paths}, manager: mine}, []


def update(
    old: dict[str, Any], new: dict[str, Any], owners: dict[Manager, Fields], manager: Manager, schema: Schema
) -> dict[Manager, Fields]:
    """Who owns what after an update: the writer what it changed, everybody else what is left of theirs."""
    before, after = fields_of(old, schema), fields_of(new, schema)
    changed = frozenset(path for path in after if path not in before or _read(old, path) != _read(new, path))
    gone = before - after
    left = {owner: paths - gone - (changed if owner != manager else frozenset()) for owner, paths in owners.items()}
    left[manager] = left.get(manager, frozenset()) | changed
    return {owner: paths for owner, paths in left.items() if paths}


def managed_fields(owners: dict[Manager, Fields], api_version: str, time: str) -> list[dict[str, Any]]:
    """The owners as ``metadata.managedFields`` shows them."""
    entries = []
    for manager, paths in sorted(owners.items(), key=lambda entry: (entry[0].operation, entry[0].name)):
        tree: dict[str, Any] = {}
        for path in sorted(paths):
            at = tree
            for part in path:
                at = at.setdefault(part, {})
            if path[-1].startswith("k:"):
                at["."] = {}
        entries.append(
            {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": api_version,
                "time": time,
                "fieldsType": "FieldsV1",
                "fieldsV1": tree,
            }
        )
    return entries
