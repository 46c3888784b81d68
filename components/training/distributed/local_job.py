"""A job on this machine, through the Kubeflow SDK's local-process backend.

That backend runs one function of one process, in a virtual environment that it makes for it and installs pip into. Here nothing
is installed while a step runs: an empty ``ensurepip`` stands before Python's own, and the function goes over at once to the
interpreter of this step, which starts the nodes (``local_nodes``). Other ways of the backend that are met here: it gives the
process no environment but what it is told, it changes the working directory of the whole program while the job runs, and
its cancelling waits for the job's next line of output.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from modelyard.components.errors import NotAvailable
from modelyard.components.storage.locks import exclusive_lock
from modelyard.components.training.distributed.job import JobState
from modelyard.components.training.distributed.local_nodes import STARTED

# A slow machine takes its time for Python's start; a job that fails is not waited for.
_START_SECONDS = 300.0
_STOP_SECONDS = 90.0
_SHOWN_LINES = 60


def _start_nodes(told: dict) -> None:
    # The backend copies this function's source into a file of its own, which has nothing else of this module.
    import os

    os.environ.pop("VIRTUAL_ENV", None)
    for name, value in told["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.execv(told["interpreter"], [told["interpreter"], "-m", *told["command"]])  # noqa: S606


class LocalJob:
    """See ``job.Job``.

    Args:
        name: of the job.
        trainer: ``xgboost`` or ``torch``.
        nodes: how many.
        folder: URI of the job's folder.
        stop_if_asked: raises if the step was asked to stop; ``start`` calls it while it waits.
    """

    def __init__(self, name: str, trainer: str, nodes: int, folder: str, stop_if_asked: Callable[[], None]) -> None:
        self.name = name
        self._command = (trainer, str(nodes))
        self._folder = folder
        self._stop_if_asked = stop_if_asked
        self._held = ExitStack()
        self._client: Any = None
        self._id = ""

    def start(self) -> None:
        from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient

        # What keeps the nodes going. Nobody else asks for it, and nothing of it is left.
        lock = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-lock-")), "lock")
        self._held.enter_context(exclusive_lock(lock))
        self._client = TrainerClient(backend_config=LocalProcessBackendConfig())
        # The backend knows one runtime; only by its framework does it choose between torchrun and python.
        (runtime,) = self._client.list_runtimes()
        runtime.trainer.framework = "python"
        here = Path.cwd()
        own = {name: os.environ.get(name) for name in ("PYTHONPATH", "PATH")}
        with tempfile.TemporaryDirectory(prefix="modelyard-job-") as aside, _own_python_first():
            Path(aside, "ensurepip.py").touch()
            told = {
                "interpreter": sys.executable,
                "command": [
                    "modelyard.components.training.distributed.local_nodes",
                    self._folder,
                    str(lock),
                    *self._command,
                ],
                "environment": own,
            }
            environment = {**os.environ, "PYTHONPATH": aside}
            try:
                self._id = self._client.train(
                    runtime=runtime, trainer=CustomTrainer(func=_start_nodes, func_args=told, env=environment)
                )
                self._until_running()
            finally:
                os.chdir(here)

    def state(self) -> JobState:
        status = self._client.get_job(self._id).status
        if status not in ("Failed", "Complete"):
            return JobState("running")
        self._held.close()
        # The backend removes its environment only where all went well.
        for left in Path(tempfile.gettempdir()).glob(f"{self._id}*"):
            shutil.rmtree(left, ignore_errors=True)
        return JobState("completed") if status == "Complete" else JobState("failed", "\n".join(self._lines()[-_SHOWN_LINES:]))

    def stop(self) -> None:
        self._held.close()
        if self._client is None or not self._id:
            return
        ends = time.monotonic() + _STOP_SECONDS
        while self.state().status == "running" and time.monotonic() < ends:
            time.sleep(0.1)
        self._client.delete_job(self._id)
        self._client = None

    def _lines(self) -> list[str]:
        return list(self._client.get_job_logs(self._id))

    def _until_running(self) -> None:
        """Waits until the interpreter of this step has taken over: until then the backend's files are needed."""
        ends = time.monotonic() + _START_SECONDS
        while not any(line.startswith(STARTED) for line in self._lines()):
            if self._client.get_job(self._id).status == "Failed":
                return
            if time.monotonic() > ends:
                raise NotAvailable("the local job does not start:\n" + "\n".join(self._lines()[-_SHOWN_LINES:]))
            self._stop_if_asked()
            time.sleep(0.05)


@contextmanager
def _own_python_first() -> Iterator[None]:
    """Lets the backend find this step's Python under the name ``python``: elsewhere there may be none, or another."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before
