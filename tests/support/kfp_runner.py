"""Runs one component as a pipeline step runs: from compiled YAML, in a subprocess, outside the checkout."""

import os
import typing
import warnings
from pathlib import Path
from typing import Any

from kfp import compiler, components, dsl, local

_ARTIFACTS = {
    f"{kind.schema_title}@{kind.schema_version}": kind
    for kind in (dsl.Artifact, dsl.ClassificationMetrics, dsl.Dataset, dsl.HTML, dsl.Markdown, dsl.Metrics, dsl.Model)
}
_PARAMETERS = {"String": str, "Integer": int, "Float": float, "Boolean": bool, "List": list, "Dict": dict}


def run_component(
    component: Any, folder: Path, inputs: dict[str, tuple[type, Path]] | None = None, **parameters: Any
) -> dict[str, Any]:
    """Runs ``component`` through ``kfp.local`` in ``folder`` and returns its outputs.

    Args:
        component: a KFP component.
        folder: where the compiled YAML and the artifacts go.
        inputs: artifact inputs by name, each its class and the path of its content.
        parameters: parameter inputs.

    Returns:
        Outputs by name: values, and for artifacts KFP's artifact objects (``.path``, ``.metadata``).

    Raises:
        RuntimeError: the step failed; its traceback is on standard output, where ``capfd`` finds it.
    """
    specs = component.component_spec.outputs or {}
    kinds = [(name, _ARTIFACTS.get(spec.type) or _PARAMETERS[spec.type]) for name, spec in specs.items()]
    results = typing.NamedTuple("Results", kinds)  # type: ignore[misc]

    def one_step():  # type: ignore[no-untyped-def]
        artifacts = {}
        for name, (kind, path) in (inputs or {}).items():
            task = dsl.importer(artifact_uri=str(path), artifact_class=kind, reimport=False)
            artifacts[name] = task.output
        step = component(**parameters, **artifacts)
        return results(**{name: step.outputs[name] for name in specs}) if specs else None

    if specs:
        one_step.__annotations__["return"] = results
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    package = folder / "one_step.yaml"
    compiler.Compiler().compile(dsl.pipeline(name="one-step")(one_step), str(package))
    previous = Path.cwd()
    # kfp.local puts the current folder on sys.path: a module of the checkout must not be what makes the step work.
    os.chdir(elsewhere)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You may be attemp", category=RuntimeWarning)
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"))
            return dict(components.load_component_from_file(str(package))().outputs)
    finally:
        os.chdir(previous)
