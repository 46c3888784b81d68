"""What outlives a step, in a ConfigMap beside the InferenceService: the rollout's notes, and how each version is run.

| key | holds |
|---|---|
| ``record`` | the rollout's own notes, as ``write_record`` got them |
| ``versions`` | the versions in charge, on trial and in charge before, each with its whole predictor |

So a rollback brings back where and how a version ran, too. What *is* served stands in the cluster alone; here is only what the
cluster does not keep. A change is written over what was read, and decided again where somebody else was faster. Every version
is written down before the cluster is told to run it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.kserve.api import CONFIG_MAP, Cluster, Object, Stale
from modelyard.components.serving.kserve.names import MANAGED_BY_LABEL, MODEL_LABEL, notes_name, service_name
from modelyard.components.serving.target import RecordChanged, ServedModel

FORMAT_VERSION = 1
_RECORD, _VERSIONS = "record", "versions"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Version:
    """A version and how it is run.

    Attributes:
        model: what it is.
        predictor: its predictor, as it is when it is in charge.
    """

    model: ServedModel
    predictor: Object

    @property
    def digest(self) -> str:
        return self.model.digest


@dataclass(frozen=True)
class Memory:
    """What was asked for last.

    Attributes:
        stable: the version in charge; None before the first one was promoted.
        canary: the version on trial.
        previous: the version in charge before.
        share: percent that a first version was given: with nobody beside it, it gets all there is.
        replicas: how many replicas answered all the traffic when the trial began.
    """

    stable: Version | None = None
    canary: Version | None = None
    previous: Version | None = None
    share: int = 0
    replicas: int = 1

    def find(self, digest: str) -> Version | None:
        """The version with this digest, whatever it is at."""
        versions = (self.stable, self.canary, self.previous)
        return next((version for version in versions if version and version.digest == digest), None)


class Notes:
    """The ConfigMap of one model."""

    def __init__(self, cluster: Cluster, model_name: str) -> None:
        self._cluster, self._model_name = cluster, model_name
        self._name = notes_name(service_name(model_name))

    def memory(self) -> Memory:
        """What was asked for last."""
        return self._memory(self._data(self._cluster.get(CONFIG_MAP, self._name)))

    def change(self, change: Callable[[Memory], Memory]) -> Memory:
        """Writes down what ``change`` makes of what is there, and returns it."""
        changed = Memory()

        def edit(data: dict[str, str]) -> None:
            nonlocal changed
            changed = change(self._memory(data))
            data[_VERSIONS] = json.dumps({"format_version": FORMAT_VERSION, **asdict(changed)}, sort_keys=True)

        self._edit(edit)
        return changed

    def swap(self, read: Memory, wanted: Memory) -> bool:
        """Writes down ``wanted`` in the place of what was ``read``; whether that was, or ``wanted`` is, still there."""
        return self.change(lambda found: wanted if found == read else found) == wanted

    def record(self) -> dict[str, Any] | None:
        """The rollout's own notes."""
        return self._record(self._data(self._cluster.get(CONFIG_MAP, self._name)))

    def write_record(self, record: dict[str, Any] | None, revision: int | None) -> None:
        """Keeps the rollout's notes; None removes them.

        Raises:
            RecordChanged: what is there is not of ``revision``.
        """

        def edit(data: dict[str, str]) -> None:
            found = (self._record(data) or {}).get("revision", 0)
            wanted = json.dumps(record, sort_keys=True, allow_nan=False)
            if revision is not None and revision != found and data.get(_RECORD) != wanted:
                raise RecordChanged(f"the record of {self._model_name!r} was read at revision {revision} and is at {found} now")
            if record is None:
                data.pop(_RECORD, None)
            else:
                data[_RECORD] = wanted

        self._edit(edit)

    def _edit(self, edit: Callable[[dict[str, str]], None]) -> None:
        for _ in range(_ATTEMPTS):
            found = self._cluster.get(CONFIG_MAP, self._name)
            before = self._data(found)
            data = dict(before)
            edit(data)
            if found is not None and data == before:
                return
            try:
                if found is None:
                    self._cluster.create(CONFIG_MAP, self._new(data))
                else:
                    self._cluster.replace(CONFIG_MAP, {**found, "data": data})
                return
            except Stale:
                continue
        raise NotAvailable(f"ConfigMap {self._name} is changed by others all the time")

    def _new(self, data: dict[str, str]) -> Object:
        labels = {MANAGED_BY_LABEL: "modelyard", MODEL_LABEL: service_name(self._model_name)}
        metadata = {"name": self._name, "namespace": self._cluster.namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    def _data(self, found: Object | None) -> dict[str, str]:
        return dict((found or {}).get("data") or {})

    def _memory(self, data: dict[str, str]) -> Memory:
        if _VERSIONS not in data:
            return Memory()
        try:
            content = json.loads(data[_VERSIONS])
            found = content.pop("format_version")
            if found != FORMAT_VERSION:
                raise InvalidInput("format_version", found, f"this release reads {FORMAT_VERSION}; use the one that wrote it")
            versions = {name: _version(content[name]) for name in ("stable", "canary", "previous")}
            return Memory(**versions, share=int(content["share"]), replicas=int(content["replicas"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(_VERSIONS, error) from error

    def _record(self, data: dict[str, str]) -> dict[str, Any] | None:
        if _RECORD not in data:
            return None
        try:
            record = json.loads(data[_RECORD])
            if not isinstance(record, dict):
                raise TypeError("no object")
        except (ValueError, TypeError) as error:
            raise self._damaged(_RECORD, error) from error
        return record

    def _damaged(self, key: str, error: Exception) -> InvalidInput:
        remedy = f"its key {key} cannot be read ({error}); remove that key: what is served goes on, only these notes are lost"
        return InvalidInput("ConfigMap", f"{self._cluster.namespace}/{self._name}", remedy)


def _version(content: dict[str, Any] | None) -> Version | None:
    return Version(ServedModel(**content["model"]), content["predictor"]) if content else None
