"""Which process is which: a process is known by its pid, when it started and what it runs, so that no pid that was given
to another program, or survived from before a reboot in a file, is ever mistaken for one of ours.

    >>> it = identify(process.pid)
    >>> it.alive()
    True
    >>> it.signal(signal.SIGTERM)
    True
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, told apart from every other that ever ran on this machine.

    Attributes:
        pid: its number.
        started: when it started, in the kernel's terms, the boot included.
        command: its program and arguments, separated by spaces.
    """

    pid: int
    started: str
    command: str

    def alive(self) -> bool:
        """Whether it still runs; one that ended and was not waited for does not."""
        return identify(self.pid) == self

    def signal(self, number: int) -> bool:
        """Sends a signal, if it still runs; returns whether it did."""
        with suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.pid, number)
                return True
        return False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "ProcessIdentity":
        return ProcessIdentity(int(content["pid"]), str(content["started"]), str(content["command"]))


def identify(pid: int) -> ProcessIdentity | None:
    """What runs under a pid; None if nothing does, or it is not this user's."""
    if pid <= 0:
        return None
    return _from_proc(pid) if sys.platform == "linux" else next(_from_ps("-p", str(pid)), None)


def find(*words: str) -> list[ProcessIdentity]:
    """This user's processes whose command holds ``words``, separated by spaces; the caller is not among them."""
    text = " ".join(words)
    if sys.platform == "linux":
        candidates: Iterator[ProcessIdentity | None] = (
            _from_proc(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdecimal()
        )
    else:
        candidates = _from_ps("-x")
    return [found for found in candidates if found and text in found.command and found.pid != os.getpid()]


def spawn_detached(command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> None:
    """Starts a process that outlives this one and everything that this one belongs to: an own session, nobody's child.

    Args:
        command: program and arguments.
        environment: its whole environment.
        folder: its current folder.
        log: file that its output is added to.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # The shell ends at once, so that the process is taken over by init and leaves no zombie with a caller that lives on.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" & ', "sh", *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


@cache
def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _from_proc(pid: int) -> ProcessIdentity | None:
    folder = _PROC / str(pid)
    try:
        if folder.stat().st_uid != os.getuid():
            return None
        # The program's name, in parentheses, may hold anything.
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        command = (folder / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # A process on its way out loses its command first, and may look alive for a while longer.
    if fields[0] in (b"Z", b"X") or not command:
        return None
    return ProcessIdentity(
        pid, f"{_boot()}/{fields[19].decode()}", command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    )


def _from_ps(*which: str) -> Iterator[ProcessIdentity]:
    command = ["ps", "-ww", *which, "-o", "pid=,uid=,stat=,lstart=,command="]
    environment = {"PATH": os.environ.get("PATH", "/bin:/usr/bin"), "LC_ALL": "C"}
    shown = subprocess.run(command, check=False, capture_output=True, text=True, env=environment).stdout
    for line in shown.splitlines():
        # The start is five words: weekday, month, day, time, year.
        pid, uid, state, *rest = line.split(None, 8)
        if int(uid) == os.getuid() and not state.startswith("Z") and len(rest) == 6:
            yield ProcessIdentity(int(pid), " ".join(rest[:5]), rest[5])
