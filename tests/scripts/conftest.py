"""Compiled pipelines to run, and the ``modelyard`` command as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Folder with the compiled YAML of every pipeline in ``tiny_pipelines``, by name."""
    from kfp import compiler

    from tests.scripts.tiny_pipelines import ALL

    folder = tmp_path_factory.mktemp("packages")
    for name, function in ALL.items():
        compiler.Compiler().compile(function, str(folder / f"{name}.yaml"))
    return folder


@pytest.fixture
def modelyard(tmp_path):
    """Starts ``modelyard`` in an empty folder and gives back its process, output captured as text."""
    started = []

    def start(*arguments, environment=None):
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [Path(sys.executable).with_name("modelyard"), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            # Scratch files of a run that a test kills for good must not pile up in the system's folder.
            env={**os.environ, "MODELYARD_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), **(environment or {})},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
