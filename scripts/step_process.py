"""One step of a local run as a process group that cannot outlive the run.

A step starts as the leader of its own session. Beside it a watcher in the same group reads from a pipe whose other end
only the run's process holds: when that process dies, however it dies, the pipe ends and the watcher kills the whole group. A
rerun therefore never races with a step of the run before.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from modelyard.scripts.compiled import whole_numbers

# The watcher's parent is not the step (hence two subshells), so that a step sees no child it did not start. SIGTERM to the
# group must not end it.
_GUARDED = 'exec 3<&0 </dev/null; ( ( trap "" TERM INT HUP; read -r _ <&3; kill -KILL 0 ) & ); exec 3<&-; exec "$@"'
_EXECUTOR = "python3 -m kfp.dsl.executor_main"


class Lifeline:
    """The pipe that tells the watchers that this process is gone."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


def guarded(command: Sequence[str]) -> list[str]:
    """``command`` with its watcher: to be started as the leader of a session, with a lifeline's reader as its input."""
    return ["/bin/sh", "-c", _GUARDED, "sh", *command]


class StepProcess:
    """Runs a step's command to its end.

    Args:
        command: the container's command and arguments, placeholders resolved.
        environment: the step's whole environment.
        log: file that gets the step's output; appended to.
        scratch: existing folder for temporary files; a fresh folder in it is the step's current one.
        lifeline: the run's.
        lock: the run's lock, which the step inherits.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], *, log: Path, scratch: Path, lifeline: Lifeline, lock: int
    ) -> None:
        self._command, self._environment, self._log = numbers_as_on_a_cluster(local_command(command)), environment, log
        self._scratch, self._lifeline, self._lock = scratch, lifeline, lock
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False

    def run(self) -> int:
        """Starts the step, waits for it, ends whatever it left running in its group, and returns its exit status."""
        own = Path(tempfile.mkdtemp(prefix="step-", dir=self._scratch))
        # KFP puts the current folder on sys.path: an empty one, so that no module is found by chance.
        work, temporary = own / "work", own / "tmp"
        work.mkdir()
        temporary.mkdir()
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    guarded(self._command),
                    stdin=self._lifeline.reader,
                    # A file, not a pipe: a server that the step leaves behind would keep a pipe open and the run waiting.
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=work,
                    env={**self._environment, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                    pass_fds=(self._lock,),
                )
            if self._asked_to_stop:
                self.ask_to_stop()
            status = self._process.wait()
            self.kill()
            return status
        finally:
            shutil.rmtree(own, ignore_errors=True)

    # Both are called from a signal handler: no lock may be taken here.

    def ask_to_stop(self) -> None:
        """Sends SIGTERM to the step itself, as Kubernetes does; a trainer writes its checkpoint then."""
        self._asked_to_stop = True
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the step's whole group at once."""
        if self._process is not None:
            # macOS answers EPERM for a group of zombies.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def local_command(command: Sequence[str]) -> list[str]:
    """The command with this interpreter in the place of ``python3``.

    Only the shell scripts that KFP wraps around a component are changed: KFP's own runner replaces the word everywhere, in
    parameter values too. The interpreter takes the last shell's place, so that it is the one to get SIGTERM.
    """
    command = list(command)
    for index, part in enumerate(command):
        if _EXECUTOR in part and '"$program_path/ephemeral_component.py"' in part:
            scripts = [*command[:index], part.replace(_EXECUTOR, f"exec {_EXECUTOR}")]
            return [script.replace("python3", sys.executable) for script in scripts] + command[index + 1 :]
    return command


def numbers_as_on_a_cluster(command: Sequence[str]) -> list[str]:
    """The command with whole numbers among the parameters' values written as such.

    KFP keeps every number as a float. On a cluster ``[128.0]`` reaches the step as ``[128]``, because Go writes it so; here it
    would stay a float, and a step that works on one of the two would fail on the other.
    """
    command = list(command)
    with suppress(ValueError):
        index = command.index("--executor_input") + 1
        executor_input = json.loads(command[index])
        inputs = executor_input.get("inputs", {})
        inputs["parameterValues"] = whole_numbers(inputs.get("parameterValues", {}))
        command[index] = json.dumps(executor_input)
    return command
