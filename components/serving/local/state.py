"""What the local target is to serve, and what it does serve: two files of JSON, each written whole or not at all.

| file in ``HOME/serving`` | written by | says |
|---|---|---|
| ``state.json`` | the verbs, one at a time under ``state.lock`` | what is to be served: it outlives stops and reboots |
| ``observed.json`` | the supervisor | what runs, what is ready, which traffic goes where |

A verb changes the first and waits until the second says that it is so.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.serving.local.processes import ProcessIdentity
from modelyard.components.serving.target import ServedModel
from modelyard.components.storage.files import atomic_file

FORMAT_VERSION = 1
STATE_FILE = "state.json"
OBSERVED_FILE = "observed.json"
PROXY_FOLDER = "proxy"
SUPERVISOR_LOG = "supervisor.log"


@dataclass(frozen=True)
class DesiredArm:
    """One predictor that is to run.

    Attributes:
        name: what it is called everywhere: its backend, its files. Each start of a version under trial gets a new name, so
            that its counts begin at zero.
        model: what it serves.
        directory: the signed directory on this machine.
        environment: whose signatures count for it, and where it logs its predictions.
        refused: why it must not be started; empty if it may.
    """

    name: str
    model: ServedModel
    directory: str
    environment: dict[str, str] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class DesiredModel:
    """What is to be served for one model.

    Attributes:
        incoming: a version that takes over from the stable one in one step, once it is ready.
        share: percent of the live traffic that the canary is to get, or to get a copy of if ``mirror``.
    """

    stable: DesiredArm | None = None
    canary: DesiredArm | None = None
    incoming: DesiredArm | None = None
    previous: ServedModel | None = None
    share: int = 0
    mirror: bool = False

    @property
    def arms(self) -> list[DesiredArm]:
        return [arm for arm in (self.stable, self.canary, self.incoming) if arm]


@dataclass(frozen=True)
class Desired:
    """All that is to be served.

    Attributes:
        generation: grows with every change.
        running: whether anything is to run at all.
        port: of the proxy, on 127.0.0.1.
    """

    generation: int = 0
    running: bool = False
    port: int = 0
    models: dict[str, DesiredModel] = field(default_factory=dict)

    def with_model(self, name: str, model: DesiredModel) -> "Desired":
        """The state with one model changed; one that has nothing left to serve is gone."""
        models = {**self.models, name: model}
        if not model.arms:
            del models[name]
        return replace(self, models=models)


@dataclass(frozen=True)
class ObservedArm:
    """One predictor, as the supervisor sees it.

    Attributes:
        state: ``starting``, ``ready``, ``restarting`` (it crashed), ``failed`` (it will not come up by itself) or ``leaving``.
        reason: why it is not ready.
        port: on 127.0.0.1; 0 if it has none yet.
        pid: of its process; 0 if none runs.
        crashes: how often it ended without being asked to, as long as this supervisor knows.
    """

    state: str
    reason: str = ""
    port: int = 0
    pid: int = 0
    crashes: int = 0


@dataclass(frozen=True)
class ObservedRoute:
    """Where a model's live traffic goes: names of arms."""

    stable: str
    canary: str = ""
    share: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Observed:
    """What the supervisor sees.

    Attributes:
        generation: of the last state that is in force but for arms that are not ready; 0 if this supervisor has not looked yet.
        tried: generation of the last state that was read.
        supervisor: who wrote this.
        proxy: Envoy, when it was last seen.
        problem: why what is wanted cannot be done, as ``describe_problem`` gives it; None if nothing hinders.
    """

    generation: int = 0
    tried: int = 0
    supervisor: ProcessIdentity | None = None
    proxy: ProcessIdentity | None = None
    arms: dict[str, ObservedArm] = field(default_factory=dict)
    routes: dict[str, ObservedRoute] = field(default_factory=dict)
    problem: dict[str, str] | None = None


def read_desired(folder: Path) -> Desired | None:
    """What is to be served; None if nothing ever was.

    Raises:
        InvalidInput: the file is damaged, or of a newer release.
    """
    path = folder / STATE_FILE
    content = _read(path)
    if content is None:
        return None
    try:
        models = {name: _model(model) for name, model in content["models"].items()}
        return Desired(int(content["generation"]), bool(content["running"]), int(content["port"]), models)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def write_desired(folder: Path, desired: Desired) -> Desired:
    """Writes what is to be served as a new generation, and returns it. The caller holds the lock of ``state.lock``."""
    # By the clock, so that it grows even if the file was removed meanwhile.
    desired = replace(desired, generation=max(time.time_ns(), desired.generation + 1))
    write_json(folder / STATE_FILE, asdict(desired))
    return desired


def read_observed(folder: Path) -> Observed:
    """What the supervisor saw last. What it wrote is only told, so what cannot be read counts as nothing."""
    try:
        content = _read(folder / OBSERVED_FILE)
        if content is None:
            return Observed()
        return Observed(
            int(content["generation"]),
            int(content["tried"]),
            ProcessIdentity.from_json(content["supervisor"]),
            ProcessIdentity.from_json(content["proxy"]) if content["proxy"] else None,
            {name: ObservedArm(**arm) for name, arm in content["arms"].items()},
            {name: ObservedRoute(**route) for name, route in content["routes"].items()},
            content["problem"],
        )
    except (InvalidInput, AttributeError, KeyError, TypeError, ValueError):
        return Observed()


def write_observed(folder: Path, observed: Observed) -> None:
    """Writes what the supervisor sees."""
    write_json(folder / OBSERVED_FILE, asdict(observed))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a document of this release's format, whole or not at all, for this user alone to read."""
    with atomic_file(path) as partial:
        partial.chmod(0o600)
        text = json.dumps({"format_version": FORMAT_VERSION, **content}, indent=1, sort_keys=True, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def damaged(path: Path, why: str) -> InvalidInput:
    """The error for a file of state that cannot be read: what runs is left as it is."""
    remedy = (
        f"it is damaged ({why}). What is served goes on as it is. Put a good copy back, or remove the file and serve each "
        f"model again: modelyard serve NAME"
    )
    return InvalidInput("serving state", str(path), remedy)


def describe_problem(error: Exception) -> dict[str, str]:
    """An error as the supervisor tells it to the verbs."""
    if isinstance(error, InvalidInput):
        return {"field": error.field, "value": str(error.value), "remedy": error.remedy}
    return {"message": str(error) or type(error).__name__}


def as_error(problem: Mapping[str, str]) -> ModelyardError:
    """The error that ``describe_problem`` described."""
    if "field" in problem:
        value: str | int = int(problem["value"]) if problem["value"].isdecimal() else problem["value"]
        return InvalidInput(problem["field"], value, problem["remedy"])
    return NotAvailable(problem["message"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format_version")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if found != FORMAT_VERSION:
        remedy = f"this release reads version {FORMAT_VERSION}; use the one that wrote {path}"
        raise InvalidInput("format_version of the serving state", found, remedy)
    return content


def _model(content: dict[str, Any]) -> DesiredModel:
    arms = {name: _arm(content[name]) for name in ("stable", "canary", "incoming")}
    previous = content["previous"] and ServedModel(**content["previous"])
    return DesiredModel(**arms, previous=previous, share=int(content["share"]), mirror=bool(content["mirror"]))


def _arm(content: dict[str, Any] | None) -> DesiredArm | None:
    return DesiredArm(**{**content, "model": ServedModel(**content["model"])}) if content else None


def make_folder(folder: Path) -> None:
    """Makes the folder of all serving state, for this user alone."""
    settings.make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("arms", "logs", "records", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    os.chmod(folder, 0o700)  # noqa: PTH101
