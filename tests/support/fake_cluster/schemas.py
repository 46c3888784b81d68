"""What KServe's custom resource definitions say of an object: checks it as an API server does, unknown fields rejected.

The definitions are not part of this repository: ``MODELYARD_KSERVE_CRDS`` names the folder that holds them, else they are
looked for beside it. Without them the fake cluster still works, and takes any field.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = Path(os.environ.get("MODELYARD_KSERVE_CRDS", Path(__file__).parents[4] / "shared" / "crds" / "kserve"))

Schema = dict[str, Any]
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
_OF_EVERY_OBJECT = ("apiVersion", "kind", "metadata")


def require_definitions() -> None:
    """Skips the test where the definitions are absent."""
    if not CRDS.is_dir():
        pytest.skip(f"KServe's custom resource definitions are not here: {CRDS} (set MODELYARD_KSERVE_CRDS to their folder)")


@functools.lru_cache
def definitions() -> dict[str, Schema]:
    """The schema of each kind; empty where the definitions are absent."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Schema] = {}
    for file in sorted(CRDS.glob("*.yaml")):
        for document in yaml.load_all(file.read_text(), loader):
            spec = document["spec"]
            stored = next(version for version in spec["versions"] if version["storage"])
            found[spec["names"]["kind"]] = stored["schema"]["openAPIV3Schema"]
    return found


def child(schema: Schema, name: str) -> Schema:
    """The schema of an object's field; empty if nothing is known."""
    known = schema.get("properties", {}).get(name)
    return known if known is not None else schema.get("additionalProperties") or {}


def unknown_fields(value: Any, schema: Schema, path: str = "", *, root: bool = True) -> list[str]:
    """The fields that the schema does not have."""
    if not schema or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, list):
        items = schema.get("items", {})
        return [name for at, item in enumerate(value) for name in unknown_fields(item, items, f"{path}[{at}]", root=False)]
    if not isinstance(value, dict) or ("properties" not in schema and "additionalProperties" not in schema):
        return []
    found = []
    for name, inner in value.items():
        below = f"{path}.{name}".lstrip(".")
        if root and name in _OF_EVERY_OBJECT:
            continue
        if name not in schema.get("properties", {}) and "additionalProperties" not in schema:
            found.append(below)
        else:
            found += unknown_fields(inner, child(schema, name), below, root=False)
    return found


def violations(value: Any, schema: Schema, path: str = "", *, root: bool = True) -> list[tuple[str, str]]:
    """Where the value is not what the schema asks for, and why."""
    if not schema:
        return []
    if value is None:
        return [] if schema.get("nullable") else [(path, f"must be of type {schema.get('type', 'integer or string')}: null")]
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            return [(path, "must be an integer or a string")]
        if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
            return [(path, f"must match {schema['pattern']}: {value!r}")]
        return []
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))):
        return [(path, f"must be of type {kind}: {value!r}")]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append((path, f"must be one of {schema['enum']}: {value!r}"))
    if "minimum" in schema and value < schema["minimum"]:
        found.append((path, f"must be at least {schema['minimum']}: {value!r}"))
    if "maximum" in schema and value > schema["maximum"]:
        found.append((path, f"must be at most {schema['maximum']}: {value!r}"))
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append((path, f"must match {schema['pattern']}: {value!r}"))
    if isinstance(value, dict):
        found += [(f"{path}.{name}".lstrip("."), "is required") for name in schema.get("required", ()) if name not in value]
        for name, inner in value.items():
            if not (root and name in _OF_EVERY_OBJECT):
                found += violations(inner, child(schema, name), f"{path}.{name}".lstrip("."), root=False)
    if isinstance(value, list):
        for at, inner in enumerate(value):
            found += violations(inner, schema.get("items", {}), f"{path}[{at}]", root=False)
    return found


def fill_defaults(value: Any, schema: Schema) -> None:
    """Puts in the schema's defaults, in place."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = inner["default"]
            elif name in value:
                fill_defaults(value[name], inner)
        if isinstance(schema.get("additionalProperties"), dict):
            for inner in value.values():
                fill_defaults(inner, schema["additionalProperties"])
    elif isinstance(value, list):
        for inner in value:
            fill_defaults(inner, schema.get("items", {}))
