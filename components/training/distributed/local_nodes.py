"""Runs the nodes of a job as processes of this machine: ``python -m …local_nodes FOLDER LOCK TRAINER NODES``.

They learn for as long as the step holds the lock that it was given: when it is released, because the step was stopped or
died, they are asked to stop, and leave a checkpoint. When one node fails the others are ended. Every line they print is
passed on, behind the node's name.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

from modelyard.components.storage.locks import is_locked
from modelyard.components.training.distributed.node import STOPPED
from modelyard.components.training.distributed.team import LOOPBACK

STARTED = "[nodes]"
_POLL_SECONDS = 0.1
# A node that was asked to stop finishes its round, and writes a checkpoint.
_GRACE_SECONDS = 60.0
# One whose peer failed finds its connection closed.
_AFTERMATH_SECONDS = 5.0
_LAST_LINES_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Runs the nodes; returns the exit status of the first that failed, 75 if they were stopped, else 0."""
    folder, lock, trainer, nodes = arguments[0], Path(arguments[1]), arguments[2], int(arguments[3])
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    with tempfile.TemporaryDirectory(prefix="modelyard-nodes-") as aside:
        environments = _environments(trainer, nodes, Path(aside, "meeting"))
        # What a node that was ended leaves, such as its rows, goes with the folder.
        for environment in environments:
            environment["TMPDIR"] = aside
        print(f"{STARTED} {nodes} processes", flush=True)
        processes: list[subprocess.Popen[str]] = []
        readers: list[threading.Thread] = []
        try:
            for rank, environment in enumerate(environments):
                processes.append(_start(folder, environment))
                readers.append(threading.Thread(target=_pass_on, args=(processes[-1], rank), daemon=True))
                readers[-1].start()
            while None in (statuses := [process.poll() for process in processes]):
                if any(statuses):
                    _end(processes, _AFTERMATH_SECONDS)
                elif asked or not is_locked(lock):
                    _end(processes, _GRACE_SECONDS)
                    return STOPPED
                time.sleep(_POLL_SECONDS)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            # The last lines say why a node failed; a child of its own may keep them from ending.
            for reader in readers:
                reader.join(_LAST_LINES_SECONDS)
    failed = [process.returncode for process in processes if process.returncode]
    # Those that were ended because of another say nothing about why.
    own = [status for status in failed if status > 0]
    return (own or [1 for _ in failed] or [0])[0]


def _environments(trainer: str, nodes: int, meeting: Path) -> list[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = str(probe.getsockname()[1])
    common = {name: value for name, value in os.environ.items() if not name.startswith(("DMLC_", "PET_"))}
    common["PYTHONUNBUFFERED"] = "1"
    found = []
    for rank in range(nodes):
        if trainer == "xgboost":
            own = {"DMLC_TASK_ID": str(rank), "DMLC_NUM_WORKER": str(nodes), "DMLC_TRACKER_URI": LOOPBACK}
            own["DMLC_TRACKER_PORT"] = port
        else:
            own = {"PET_NODE_RANK": str(rank), "PET_NNODES": str(nodes), "PET_MASTER_ADDR": LOOPBACK}
            own |= {"PET_MASTER_PORT": port, "MODELYARD_MEETING_FILE": str(meeting)}
        devices = common.get("CUDA_VISIBLE_DEVICES", "").split(",") if common.get("CUDA_VISIBLE_DEVICES") else []
        own["CUDA_VISIBLE_DEVICES"] = devices[rank] if rank < len(devices) else str(rank)
        found.append({**common, **own})
    return found


def _start(folder: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "modelyard.components.training.distributed.node", folder],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _pass_on(process: "subprocess.Popen[str]", rank: int) -> None:
    for line in process.stdout or ():
        print(f"[node-{rank}] {line.rstrip()}", flush=True)


def _end(processes: "list[subprocess.Popen[str]]", grace: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    ends = time.monotonic() + grace
    while time.monotonic() < ends and any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)
    for process in processes:
        if process.poll() is None:
            process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
