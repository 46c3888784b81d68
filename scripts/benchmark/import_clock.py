"""Says, at the end of a pipeline step's process, what its imports took.

A copy of this file named ``sitecustomize.py`` in a folder of ``PYTHONPATH`` is imported by Python itself before anything else.
Only outermost imports are counted, a module's own being part of it. Those up to the first of this package's are KFP's: its
executor starts before the component's body does.
"""

import atexit
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "MODELYARD_IMPORT_CLOCK"
_FUNCTION = "--function_to_execute"


def own_peak_gib() -> float:
    """The largest resident memory of this process so far.

    Linux's ``getrusage`` begins with what the process was before it became this program: its parent, as large as that was.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    # Counted in KiB, but on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _install(folder: str) -> None:
    # The module is Python's own, older than any file; every import of a module not loaded yet goes through it.
    bootstrap: Any = sys.modules["_frozen_importlib"]
    load = bootstrap._find_and_load
    depth = threading.local()
    imports: list[tuple[str, float, float]] = []

    def find_and_load(name, import_):  # type: ignore[no-untyped-def]
        if getattr(depth, "value", 0):
            return load(name, import_)
        depth.value = 1
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return load(name, import_)
        finally:
            imports.append((name, time.perf_counter() - began, time.thread_time() - cpu))
            depth.value = 0

    def write() -> None:
        if _FUNCTION in sys.argv:
            component = sys.argv[sys.argv.index(_FUNCTION) + 1]
            content = {"component": component, "imports": imports, "peak_gib": own_peak_gib()}
            Path(folder, f"{component}-{os.getpid()}.json").write_text(json.dumps(content), encoding="utf-8")

    bootstrap._find_and_load = find_and_load
    atexit.register(write)


if __name__ == "sitecustomize" and FOLDER_VARIABLE in os.environ:
    _install(os.environ[FOLDER_VARIABLE])
