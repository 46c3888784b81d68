"""A compiled pipeline: where its YAML is, which parameters it takes, and values for them checked before anything starts.

Reading the YAML needs no kfp, so ``modelyard describe`` and bad parameters answer at once.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelyard.components.errors import InvalidInput, NotAvailable

KINDS = {
    "STRING": "text",
    "NUMBER_INTEGER": "whole number",
    "NUMBER_DOUBLE": "number",
    "BOOLEAN": "true or false",
    "LIST": "JSON list",
    "STRUCT": "JSON object",
}
# What only a recurring run expands, and only on a cluster.
SCHEDULE_PLACEHOLDERS = ("[[ScheduledTime", "[[CurrentTime", "[[Index", "{{$.scheduledTime", "{{$.currentTime")
# What kfp's local runner cannot fill in (it raises IndexError).
_CLUSTER_PLACEHOLDERS = (
    "{{$.pipeline_job_create_time_utc}}",
    "{{$.pipeline_job_schedule_time_utc}}",
    "{{$.pipeline_job_resource_name}}",
)
# What kfp's local runner cannot compare text with.
UNSAFE_IN_CONDITIONS = frozenset("'\\\n")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Parameter:
    """One pipeline parameter as the YAML declares it. ``kind`` is a key of ``KINDS``."""

    name: str
    kind: str
    required: bool
    default: Any
    description: str

    def shown_default(self) -> str:
        """The default as one would type it; empty for a required parameter."""
        if self.required or self.default is None:
            return ""
        return self.default if isinstance(self.default, str) else json.dumps(whole_numbers(self.default), sort_keys=True)


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: the YAML file.
        name: the pipeline's name.
        description: its docstring's summary.
        parameters: in the order of the YAML.
        conditions: names of the parameters that a branch of the pipeline asks about.
        text: the YAML itself.
    """

    path: Path
    name: str
    description: str
    parameters: tuple[Parameter, ...]
    conditions: frozenset[str]
    text: str


def compiled_folder() -> Path:
    """The folder of compiled pipelines that belongs to this installation: the checkout's, or the one inside the wheel."""
    import modelyard.pipelines

    return Path(next(iter(modelyard.pipelines.__path__))).parent / "compiled"


def available() -> list[str]:
    """Names of the pipelines that come with this installation."""
    return sorted(path.stem for path in compiled_folder().glob("*.yaml"))


def find(name_or_file: str) -> Path:
    """The compiled file of a pipeline, given by its name or as a path.

    Raises:
        InvalidInput: there is none.
    """
    given = Path(name_or_file).expanduser()
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        if given.is_file():
            return given.resolve()
        raise InvalidInput("pipeline", name_or_file, "there is no such file; give the path of a compiled pipeline")
    path = compiled_folder() / f"{name_or_file}.yaml"
    if path.is_file():
        return path
    known = ", ".join(available()) or "none is compiled yet, run `modelyard compile`"
    raise InvalidInput("pipeline", name_or_file, f"there is no pipeline of this name (known: {known}); a file's path works too")


def read(path: str | os.PathLike[str]) -> Package:
    """Reads a compiled pipeline.

    Raises:
        InvalidInput: the file is not one.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        document = load(text)
        name = document["pipelineInfo"]["name"]
        declared = document["root"].get("inputDefinitions", {})
    except (yaml.YAMLError, StopIteration, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("pipeline", str(path), f"it is not a compiled KFP pipeline ({error})") from error
    if "artifacts" in declared:
        named = ", ".join(sorted(declared["artifacts"]))
        raise InvalidInput("pipeline", str(path), f"it takes artifacts ({named}) and can only be a step of another pipeline")
    parameters = tuple(_parameter(name, spec) for name, spec in declared.get("parameters", {}).items())
    asked = {name.removeprefix("pipelinechannel--") for text in _conditions(document) for name in condition_names(text)}
    conditions = frozenset(parameter.name for parameter in parameters if parameter.name in asked)
    description = document["pipelineInfo"].get("description", "")
    return Package(Path(path).resolve(), name, description, parameters, conditions, text)


def load(text: str) -> dict[str, Any]:
    """The pipeline specification in a compiled YAML; its optional second document is Kubernetes settings."""
    return next(iter(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


def condition_names(condition: str) -> list[str]:
    """Names of the inputs that a branch's condition asks about."""
    return re.findall(r"parameter_values\['([^']+)'\]", condition)


def function_name(arguments: Sequence[str]) -> str:
    """The component's name, which KFP passes to its executor; empty where a container component runs something else."""
    words = list(arguments)
    return words[words.index("--function_to_execute") + 1] if "--function_to_execute" in words else ""


def component_names(document: dict[str, Any]) -> list[str]:
    """Names of all components that a pipeline can run, in every branch and nested pipeline, each once."""
    containers = [spec["container"] for spec in document["deploymentSpec"]["executors"].values() if "container" in spec]
    names = [function_name(container.get("args", ())) for container in containers]
    return list(dict.fromkeys(name for name in names if name))


def read_parameter_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters from a JSON or YAML file that holds one object.

    Raises:
        InvalidInput: the file is missing or holds something else.
    """
    try:
        # YAML is a superset of JSON.
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput("--params", str(path), f"it cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput("--params", str(path), f"it is neither JSON nor YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidInput("--params", str(path), "it must hold one object of parameter names and values")
    return content


def split_assignments(assignments: list[str]) -> dict[str, str]:
    """``["rows=3"]`` as ``{"rows": "3"}``.

    Raises:
        InvalidInput: one is not ``name=value``, or a name comes twice.
    """
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InvalidInput("-p", assignment, "write name=value")
        if name in values:
            raise InvalidInput("-p", assignment, "give each parameter once")
        values[name] = value
    return values


def check_parameters(package: Package, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a pipeline's parameters, each converted to its declared type.

    Args:
        package: the pipeline.
        given: values by name: as typed on a command line, or Python values of the declared types.

    Returns:
        The given parameters only; the pipeline fills in its own defaults.

    Raises:
        InvalidInput: a name is unknown, a value does not fit its type, or a required parameter is missing.
    """
    known = {parameter.name: parameter for parameter in package.parameters}
    for name, value in given.items():
        if name not in known:
            raise InvalidInput(name, value, f"{package.name} has no such parameter; it has {', '.join(known) or 'none'}")
    missing = [parameter.name for parameter in package.parameters if parameter.required and parameter.name not in given]
    if missing:
        raise InvalidInput(
            "parameters", sorted(given), f"{package.name} also needs {', '.join(missing)}; give each as -p name=value"
        )
    return {name: _convert(known[name], value) for name, value in given.items()}


def check_local_values(package: Package, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Parameters fit for a run on this machine.

    Steps run in a folder of their own, so a relative path in a parameter whose name ends with ``_uri`` is made absolute
    against ``folder``.

    Raises:
        InvalidInput: a value means something else locally than it says: a date placeholder that only a recurring run
            expands, a KFP placeholder, or a quote in text that the pipeline branches on (the local runner would silently skip
            every branch).
        NotAvailable: the pipeline uses a placeholder that only a cluster fills in.
    """
    for placeholder in _CLUSTER_PLACEHOLDERS:
        if placeholder in package.text:
            raise NotAvailable(f"{package.name} uses {placeholder}, which only a cluster fills in; submit it instead")
    check_one_off_values(values)
    local = dict(values)
    for name, value in values.items():
        for text in _texts(value):
            if "{{$" in text:
                raise InvalidInput(name, value, "KFP placeholders belong in the pipeline's source; give the value itself")
        if name in package.conditions and isinstance(value, str) and set(value) & UNSAFE_IN_CONDITIONS:
            raise InvalidInput(
                name,
                value,
                "the pipeline branches on it, and the local runner cannot compare text with quotes, "
                "backslashes or line ends; leave them out",
            )
        if name.endswith("_uri") and isinstance(value, str) and value and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value):
            local[name] = str(Path(folder, Path(value).expanduser()).resolve())
    return local


def check_one_off_values(values: Mapping[str, Any]) -> None:
    """Checks that no value waits for a date that only a recurring run fills in.

    Raises:
        InvalidInput: one does.
    """
    for name, value in values.items():
        if any(placeholder in text for text in _texts(value) for placeholder in SCHEDULE_PLACEHOLDERS):
            raise InvalidInput(name, value, "only a recurring run on a cluster expands it; give the date itself")


def _parameter(name: str, spec: Mapping[str, Any]) -> Parameter:
    kind = spec["parameterType"]
    default = spec.get("defaultValue")
    required = not spec.get("isOptional", False) and "defaultValue" not in spec
    if kind == "NUMBER_INTEGER" and default is not None:
        default = int(default)
    return Parameter(name, kind, required, default, spec.get("description", ""))


def _conditions(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["triggerPolicy"]["condition"]] if "condition" in (node.get("triggerPolicy") or {}) else []
        return own + [condition for value in node.values() for condition in _conditions(value)]
    if isinstance(node, list):
        return [condition for value in node for condition in _conditions(value)]
    return []


def _convert(parameter: Parameter, value: Any) -> Any:
    kind = parameter.kind
    converted = _from_text(kind, value) if isinstance(value, str) and kind != "STRING" else value
    fits = {
        "STRING": isinstance(converted, str),
        "BOOLEAN": isinstance(converted, bool),
        "NUMBER_INTEGER": isinstance(converted, int) and not isinstance(converted, bool),
        "NUMBER_DOUBLE": isinstance(converted, int | float) and not isinstance(converted, bool) and math.isfinite(converted),
        "LIST": isinstance(converted, list) and _is_json(converted),
        "STRUCT": isinstance(converted, dict) and _is_json(converted),
    }
    if not fits.get(kind, False):
        raise InvalidInput(parameter.name, value, f"it must be a {KINDS.get(kind, kind)}")
    return float(converted) if kind == "NUMBER_DOUBLE" else converted


def _from_text(kind: str, text: str) -> Any:
    """The value that a text stands for, or None where it stands for none of this kind."""
    try:
        if kind == "NUMBER_INTEGER":
            return int(text)
        if kind == "NUMBER_DOUBLE":
            return float(text)
        if kind == "BOOLEAN":
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(text.strip().lower())
        return json.loads(text)
    except ValueError:
        return None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return []


def whole_numbers(value: Any) -> Any:
    """The value with its whole floats as integers; KFP keeps every number as a float."""
    # From 1e21 on Go, which a cluster's KFP is written in, writes an exponent, and Python reads that as a float.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, dict):
        return {key: whole_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [whole_numbers(part) for part in value]
    return value
