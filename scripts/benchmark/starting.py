"""What a component's imports take, against plainly importing the libraries that it stands on.

Pipelines are run, small ones, and each step's process says what it imported after KFP's executor had started, down to whatever
its work imports on the way. The peers' imports are measured in a process that has KFP's executor already, too.
"""

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelyard.scripts.benchmark import import_clock
from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import (
    Clock,
    Measurement,
    MeasurementFailed,
    Task,
    measure,
    measure_in_turn,
    median,
)

MOST = 1.0
_SHOWN_IMPORTS = 8
_SIMULATED = {"customers": 300, "terminals": 600, "days": 60}
_ACCEPTED = {"absolute": [{"metric": "roc_auc", "min": 0.0, "on": "value"}], "difference": [], "min_positives": 1}
_REFUSED = {**_ACCEPTED, "absolute": [{"metric": "roc_auc", "min": 1.0, "on": "value"}]}
_SMALL_NETWORK = {"hidden": [8], "epochs": 2}
# MLflow loads its store for local databases when it is first asked for something.
_MLFLOW = ("mlflow", "mlflow.store.tracking.sqlalchemy_store")
# What one would import to do each component's work.
_PEERS: dict[str, tuple[str, ...]] = {
    "simulate_transactions": ("feast", "pandas"),
    "fetch_features": ("feast", "feast.infra.offline_stores.duckdb"),
    "split_dataset": ("pandas", "sklearn.model_selection"),
    "train_xgboost": (*_MLFLOW, "mlflow.xgboost", "sklearn.metrics"),
    "train_torch": (*_MLFLOW, "mlflow.pytorch", "torch.onnx"),
    "train_distributed": (*_MLFLOW, "kubeflow.trainer", "xgboost", "sklearn.metrics"),
    "evaluate_model": (*_MLFLOW, "xgboost", "sklearn.metrics", "matplotlib.pyplot"),
    "write_model_card": (*_MLFLOW, "huggingface_hub", "cyclonedx.validation.json"),
    "sign_model": ("model_signing", "model_signing.signing"),
    "register_model": _MLFLOW,
    "rollout_model": (*_MLFLOW, "scipy.stats", "matplotlib.pyplot"),
    "record_refusal": _MLFLOW,
}


def _measure(setting: Setting) -> list[Row]:
    runs: list[tuple[str, dict[str, Any]]] = [("accepted", {"gates": _ACCEPTED})] * setting.size(3, 1) + [
        ("refused", {"gates": _REFUSED}),
        ("served", {"gates": _ACCEPTED, "target": "local", "bake_seconds": 0.0}),
        ("trained on two nodes", {"gates": _ACCEPTED, "trainer": "xgboost-distributed"}),
    ]
    if importlib.util.find_spec("torch"):
        runs.append(("trained by torch", {"gates": _ACCEPTED, "trainer": "torch", "training_parameters": _SMALL_NETWORK}))
    clocks = setting.scratch / "clocks"
    clocks.mkdir()
    hook = setting.scratch / "hook"
    hook.mkdir()
    shutil.copyfile(import_clock.__file__, hook / "sitecustomize.py")
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH", "")])),
        import_clock.FOLDER_VARIABLE: str(clocks),
    }
    for outcome, parameters in runs:
        setting.say(f"a small pipeline run, {outcome}")
        measure(Task(run_quickstart, {"parameters": {**_SIMULATED, **parameters}}, environment), setting.scratch)
    executor, components = _read(clocks.glob("*.json"))
    setting.say("the libraries by themselves")
    wanted = {", ".join(modules): modules for name, modules in _PEERS.items() if name in components}
    # As in a step: KFP then leaves out what only its client needs.
    runtime = {"_KFP_RUNTIME": "true"}
    tasks = {name: Task(import_plainly, {"modules": list(modules)}, runtime) for name, modules in wanted.items()}
    plain = measure_in_turn(tasks, setting.scratch, setting.size(3, 1))
    rows = [_row(name, measured, ", ".join(_PEERS.get(name, ())), plain) for name, measured in components.items()]
    note = "for information: KFP's own part, in every step before the component's"
    return [*rows, Row("imports of KFP's executor", "s", executor.seconds, note=note, measurements={"executor": executor})]


FIGURE = Figure("start", "A component's start", _measure, needs=("feast", "mlflow", "xgboost", "kubeflow", "model_signing"))


def _row(component: str, ours: Measurement, modules: str, plain: dict[str, Measurement]) -> Row:
    peer = plain.get(modules)
    return Row(
        work=f"imports of {component}",
        unit="s",
        ours=ours.seconds,
        peer_name=f"import {_shown(modules)}" if peer else "",
        peer=peer.seconds if peer else None,
        target=f"at most {MOST} s",
        reached=ours.seconds <= MOST,
        note=f"CPU {ours.cpu_seconds:.1f} s" + (f" / {peer.cpu_seconds:.1f} s" if peer else ""),
        measurements={component: ours} | ({modules: peer} if peer else {}),
    )


def _shown(modules: str) -> str:
    return modules.replace("mlflow.store.tracking.sqlalchemy_store", "its sqlite store")


def _read(files: Iterable[Path]) -> tuple[Measurement, dict[str, Measurement]]:
    """What the import clocks wrote: KFP's part of all steps, and each component's own by its name."""
    executor: list[Measurement] = []
    own: dict[str, list[Measurement]] = {}
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        content = json.loads(file.read_text(encoding="utf-8"))
        imports, peak = content["imports"], content["peak_gib"]
        names = [name for name, _, _ in imports]
        first = next((place for place, name in enumerate(names) if name.partition(".")[0] == "modelyard"), len(names))
        executor.append(_sum(imports[:first], peak))
        own.setdefault(content["component"], []).append(_sum(imports[first:], peak))
    if not own:
        raise MeasurementFailed("no step of the pipeline said what it imported")
    return median(executor), {name: median(steps) for name, steps in own.items()}


def _sum(imports: list[tuple[str, float, float]], peak: float) -> Measurement:
    slowest = sorted(imports, key=lambda entry: -entry[1])[:_SHOWN_IMPORTS]
    return Measurement(
        seconds=sum(seconds for _, seconds, _ in imports),
        cpu_seconds=sum(cpu for _, _, cpu in imports),
        peak_gib=peak,
        repeats=1,
        facts={"slowest": {name: round(seconds, 4) for name, seconds, _ in slowest}},
    )


# What follows runs in processes of its own.


def run_quickstart(clock: Clock, parameters: dict[str, Any]) -> dict[str, Any]:
    """Runs the compiled pipeline as ``modelyard run`` does; its steps write what they imported."""
    from modelyard.components import settings
    from modelyard.components.serving.local.target import LocalTarget
    from modelyard.scripts import compiled
    from modelyard.scripts.benchmark.servers import free_port
    from modelyard.scripts.local_run import run_pipeline

    os.environ["MODELYARD_SERVING_PORT"] = str(free_port())
    try:
        result = run_pipeline(compiled.find("quickstart"), parameters, settings.home())
    finally:
        LocalTarget().stop()
    if result.state != "succeeded":
        raise MeasurementFailed(f"{result.error}\n{result.tail}")
    return {"decision": result.decision}


def import_plainly(clock: Clock, modules: list[str]) -> dict[str, Any]:
    """Imports modules where KFP's executor is imported already."""
    import kfp.dsl.executor_main  # noqa: F401

    with clock:
        for module in modules:
            importlib.import_module(module)
    return {}
