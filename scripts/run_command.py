"""``modelyard run``: a compiled pipeline on this machine."""

import argparse

from modelyard.components import settings
from modelyard.scripts import cli, compiled
from modelyard.scripts.local_run import RunResult, run_pipeline
from modelyard.scripts.progress import Progress


def run_command(arguments: argparse.Namespace) -> int:
    path = compiled.find(arguments.pipeline)
    parameters = given_parameters(arguments)
    progress = Progress()
    result = run_pipeline(
        path,
        parameters,
        arguments.home or settings.home(),
        on_step=progress.step,
        on_start=lambda folder: progress.start(path.stem, folder),
    )
    progress.finish(result)
    return exit_code(result)


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
