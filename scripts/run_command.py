"""``modelyard run``: a compiled pipeline on this machine."""

import argparse
from pathlib import Path

from modelyard.components import settings
from modelyard.scripts import cli, compiled
from modelyard.scripts.local_run import RunResult, run_pipeline
from modelyard.scripts.progress import Progress


def run_command(arguments: argparse.Namespace) -> int:
    path, home = compiled.find(arguments.pipeline), Path(arguments.home or settings.home())
    parameters = given_parameters(arguments)
    progress = Progress()
    result = run_pipeline(
        path,
        parameters,
        home,
        on_step=progress.step,
        on_start=lambda folder: progress.start(path.stem, folder),
        on_line=progress.line,
    )
    progress.finish(result)
    if any(step.component == "rollout_model" for step in result.steps):
        _tell_what_is_served(home, f" --home {arguments.home}" if arguments.home else "")
    return exit_code(result)


def _tell_what_is_served(home: Path, option: str) -> None:
    """A rollout leaves processes behind, which is what it is for; whoever started it must know how to end them."""
    from modelyard.components.serving.local.target import LocalTarget

    target = LocalTarget(home)
    if not target.health().wanted:
        return
    for name in target.model_names():
        print(f"  serving   {target.state(name).url}/v1/models/{name}:predict")
    print(f"            goes on after this run: modelyard status{option} shows it, modelyard stop{option} ends it")


def given_parameters(arguments: argparse.Namespace) -> dict[str, object]:
    """The parameters of ``--params`` and ``-p``, the latter winning."""
    from_file = compiled.read_parameter_file(arguments.params) if arguments.params else {}
    return {**from_file, **compiled.split_assignments(arguments.assignments)}


def exit_code(result: RunResult) -> int:
    """What scripts learn of a run."""
    if result.state == "cancelled":
        return 128 + result.signal
    if result.state != "succeeded":
        return cli.FAILED
    return cli.OK if result.decision in ("", "pass") else cli.REFUSED
