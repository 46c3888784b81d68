"""Plays Kubeflow Trainer's controller on a ``FakeTrainer``: the pods of a TrainJob are processes of this machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.services.servers import free_port
from tests.support.fake_trainer import FakeTrainer

_VARIABLES = {
    "xgboost-distributed": ("DMLC_TASK_ID", "DMLC_NUM_WORKER", "DMLC_TRACKER_URI", "DMLC_TRACKER_PORT"),
    "torch-distributed": ("PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
}


class TrainerPods:
    """Starts a process for each node of every TrainJob that is created, with the variables that Trainer gives it.

    Attributes:
        processes: of every job that ever was, its nodes' processes, in order.

    Args:
        cluster: the API.
        folder: for the pods' logs.
        environment: what the pods have besides, such as what their service account lets them do.
    """

    def __init__(self, cluster: FakeTrainer, folder: Path, environment: dict[str, str]) -> None:
        self.processes: list[list[subprocess.Popen[bytes]]] = []
        self._of: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._cluster, self._folder, self._environment = cluster, folder, environment
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "TrainerPods":
        self._cluster.on_create, self._cluster.on_delete = self._start, self._stop
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        for process in [process for pods in self.processes for process in pods]:
            process.kill()
            process.wait(60)

    def _start(self, job: dict[str, Any]) -> None:
        trainer, port = job["spec"]["trainer"], free_port()
        given = {entry["name"]: entry["value"] for entry in trainer["env"]}
        nodes = trainer["numNodes"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "MODELYARD_"))}
        pods = []
        for rank in range(nodes):
            if job["spec"]["runtimeRef"]["name"].startswith("xgboost"):
                told = {
                    "DMLC_TASK_ID": rank,
                    "DMLC_NUM_WORKER": nodes,
                    "DMLC_TRACKER_URI": "127.0.0.1",
                    "DMLC_TRACKER_PORT": port,
                }
            else:
                told = {"PET_NODE_RANK": rank, "PET_NNODES": nodes, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
            environment = {**clean, **self._environment, **given, **{name: str(value) for name, value in told.items()}}
            with self._log(job["metadata"]["name"], rank).open("wb") as log:
                command = [sys.executable, *trainer["command"][1:]]
                pods.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        self.processes.append(pods)
        self._of[job["metadata"]["name"]] = pods
        self._cluster.run(job["metadata"]["name"], ["Running"] * nodes)

    def signal(self, number: int) -> None:
        """Sends a signal to every pod."""
        for process in [process for pods in self.processes for process in pods]:
            process.send_signal(number)

    def _stop(self, job: dict[str, Any]) -> None:
        # As the kubelet does: SIGTERM, and nobody waits for the end.
        for process in self._of.pop(job["metadata"]["name"], []):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _watch(self) -> None:
        while not self._ended.is_set():
            for name, pods in list(self._of.items()):
                job = self._cluster.jobs.get(name)
                if job is None or "status" in job:
                    continue
                statuses = [process.poll() for process in pods]
                bad = [rank for rank, status in enumerate(statuses) if status]
                if bad:
                    self._cluster.fail(name, bad[0], self._log(name, bad[0]).read_text(errors="replace"))
                    self._stop(job)
                elif all(status == 0 for status in statuses):
                    self._cluster.complete(name)
            time.sleep(0.05)

    def _log(self, name: str, rank: int) -> Path:
        return self._folder / f"{name}-{rank}.log"
