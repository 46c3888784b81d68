"""The predictor, against the same model in bare FastAPI with orjson, in kserve's own server and in ``mlflow models serve``.

All servers run at once and are asked in turn, in short rounds, so that what else the machine does meets all of them alike. What
counts is the CPU time of the server's processes: it says what a request costs, however many cores are free. Waiting times and
throughput on a small machine say as much about the client and the neighbours.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelyard.scripts.benchmark import load, proxied, serving_peers
from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import (
    Clock,
    Measurement,
    MeasurementFailed,
    Task,
    clean_environment,
    measure,
    measure_in_turn,
    median,
)
from modelyard.scripts.benchmark.servers import Server, running
from modelyard.scripts.benchmark.wire import MODEL_NAME
from modelyard.scripts.step_process import guarded

MOST_MS = 1.5
_CLIENTS = 8
_OURS, _FASTAPI, _KSERVE, _MLFLOW = "modelyard", "FastAPI + orjson", "kserve", "mlflow models serve"
_PROXIED = "modelyard behind Envoy"
# What each is asked by; of the predictor's, what each form is set beside.
_ASKED = {
    _OURS: ("V1 lists", "V1 dicts", "V2 JSON", "V2 binary"),
    _FASTAPI: ("V1 lists", "V1 dicts"),
    _KSERVE: ("V1 lists", "V2 JSON", "V2 binary"),
    _MLFLOW: ("MLflow frame",),
    _PROXIED: ("V1 lists",),
}
_COMPARED = {
    "V1 lists": ((_FASTAPI, "V1 lists"), (_KSERVE, "V1 lists"), (_MLFLOW, "MLflow frame")),
    "V1 dicts": ((_FASTAPI, "V1 dicts"),),
    "V2 JSON": ((_KSERVE, "V2 JSON"),),
    "V2 binary": ((_KSERVE, "V2 binary"),),
}
_BATCHES = (1, 100)
# In the folder of what is served.
_MODEL, _MLFLOW_MODEL = "model", "mlflow-model"


@dataclass(frozen=True)
class _Load:
    """What one server is asked in one round."""

    server: str
    form: str
    rows: int
    clients: int = _CLIENTS

    def __str__(self) -> str:
        return f"{self.server}: {_batch(self.rows)} by {self.form}, {self.clients} at a time"


def _measure(setting: Setting) -> list[Row]:
    scratch = setting.scratch
    folder = scratch / "serving"
    size = {"trees": setting.size(200, 10), "features": setting.size(30, 4), "rows": setting.size(6_000, 400)}
    setting.say(f"a model of {size['trees']} trees on {size['features']} features")
    measure(Task(write_model, {"folder": str(folder), **size}), scratch)
    environment = clean_environment(scratch) | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    commands = _commands(folder)

    def started(name: str) -> contextlib.AbstractContextManager[Server]:
        command, ready = commands[name]
        return running(command, ready=ready, folder=scratch / name, environment=environment)

    starts: dict[str, list[Measurement]] = {_OURS: [], _FASTAPI: [], _KSERVE: []}
    setting.say("each server's start")
    for _ in range(setting.size(3, 1) - 1):
        for name, runs in starts.items():
            with started(name) as server:
                runs.append(_start(server))
    with contextlib.ExitStack() as stack:
        servers: dict[str, tuple[int, list[int]]] = {}
        for name in commands:
            server = stack.enter_context(started(name))
            servers[name] = (server.port, [server.pid])
            if name in starts:
                starts[name].append(_start(server))
        servers[_PROXIED] = _proxied(stack, scratch / "proxy", servers[_OURS], environment)
        measured = _in_rounds(setting, folder, servers)
    return [
        *_rows_of_requests(measured),
        *_rows_of_proxy(measured),
        _row_of_starts({name: median(runs) for name, runs in starts.items()}),
    ]


FIGURE = Figure("serve", "Serving", _measure, needs=("envoy", "fastapi", "kserve", "mlflow", "psutil"))


def _commands(folder: Path) -> dict[str, tuple[Callable[[int], Sequence[str]], str]]:
    """Each server's command, from its port, and the path that says that it is ready."""
    model = str(folder / _MODEL)

    def python(*words: str, **environment: str) -> list[str]:
        settings = [f"{name}={value}" for name, value in environment.items()]
        return guarded(["env", *settings, sys.executable, "-P", "-m", *words])

    def predictor(port: int) -> list[str]:
        named = ("--model_name", MODEL_NAME, "--model_dir", model)
        return python("modelyard.components.predictor", *named, "--host", "127.0.0.1", "--http_port", str(port))

    def peer(name: str) -> Callable[[int], list[str]]:
        return lambda port: python(serving_peers.__name__, name, model, str(port))

    def mlflow(port: int) -> list[str]:
        where = ("-m", str(folder / _MLFLOW_MODEL), "-h", "127.0.0.1", "-p", str(port))
        # It looks for uvicorn on the path. Its model's threads would mostly wait for each other; ours scores few rows on one.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return python("mlflow", "models", "serve", *where, "--env-manager", "local", PATH=path, OMP_NUM_THREADS="1")

    return {
        _OURS: (predictor, "/v2/health/ready"),
        _FASTAPI: (peer("fastapi"), serving_peers.READY),
        _KSERVE: (peer("kserve"), "/v2/health/ready"),
        _MLFLOW: (mlflow, "/ping"),
    }


def _proxied(
    stack: contextlib.ExitStack, folder: Path, predictor: tuple[int, list[int]], environment: Mapping[str, str]
) -> tuple[int, list[int]]:
    """Port of a proxy before the predictor, and the processes that answer there."""
    from modelyard.components.serving.local.proxy import Proxy

    def command(port: int) -> list[str]:
        return [sys.executable, "-P", "-m", proxied.__name__, str(folder / "envoy"), str(predictor[0]), str(port)]

    ready = f"/v2/models/{MODEL_NAME}/ready"
    server = stack.enter_context(running(command, ready=ready, folder=folder, environment=environment))
    envoy = Proxy(folder / "envoy", server.port).pid()
    if envoy is None:
        raise MeasurementFailed("Envoy has ended")
    return server.port, [envoy, *predictor[1]]


def _start(server: Server) -> Measurement:
    return Measurement(server.seconds, server.cpu_seconds, server.resident_gib, 1, {})


def _in_rounds(setting: Setting, folder: Path, servers: Mapping[str, tuple[int, list[int]]]) -> dict[_Load, Measurement]:
    loads = [_Load(name, form, rows) for rows in _BATCHES for name, forms in _ASKED.items() for form in forms]
    loads += [_Load(name, "V1 lists", 1, clients=1) for name in (_OURS, _PROXIED)]
    requests = {1: setting.size(400, 20), 100: setting.size(160, 20)}
    # What takes several times as long is seen by fewer.
    share = {_MLFLOW: setting.size(0.25, 1.0)}
    setting.say(f"{len(loads)} kinds of load in turn")
    tasks = {}
    for one in loads:
        port, processes = servers[one.server]
        where = {"folder": str(folder), "port": port, "processes": processes}
        count = int(requests[one.rows] * share.get(one.server, 1.0))
        what = {"form": one.form, "rows": one.rows, "clients": one.clients, "requests": count}
        tasks[str(one)] = Task(load.send, where | what)
    measured = measure_in_turn(tasks, setting.scratch, setting.size(5, 1))
    return {one: measured[str(one)] for one in loads}


def _rows_of_requests(measured: Mapping[_Load, Measurement]) -> list[Row]:
    result = []
    for rows in _BATCHES:
        to_beat = _cpu_ms(measured[_Load(_FASTAPI, "V1 lists", rows)])
        for form, peers in _COMPARED.items():
            ours = measured[_Load(_OURS, form, rows)]
            for server, peer_form in peers:
                peer = measured[_Load(server, peer_form, rows)]
                row = Row(
                    work=f"{_batch(rows)} by {form}: CPU of a request",
                    unit="ms",
                    ours=_cpu_ms(ours),
                    peer_name=server if form == peer_form else f"{server}, {peer_form}",
                    peer=_cpu_ms(peer),
                    note=f"requests a second, {_CLIENTS} clients: {_per_second(ours):,.0f} / {_per_second(peer):,.0f}",
                    measurements={_OURS: ours, server: peer},
                )
                # Each form has one target, whoever it is set beside.
                if (server, peer_form) == peers[0]:
                    most = to_beat if rows == 1 else MOST_MS
                    target = f"at most {_FASTAPI} by V1 lists, {most:.3g} ms" if rows == 1 else f"at most {most:g} ms"
                    row = replace(row, target=target, reached=row.ours <= most)
                result.append(row)
    return result


def _rows_of_proxy(measured: Mapping[_Load, Measurement]) -> list[Row]:
    result = []
    for rows in _BATCHES:
        through, directly = (measured[_Load(server, "V1 lists", rows)] for server in (_PROXIED, _OURS))
        adds = _cpu_ms(through) - _cpu_ms(directly)
        result.append(
            Row(
                work=f"{_batch(rows)} by V1 lists through Envoy: CPU of a request, Envoy's and the predictor's",
                unit="ms",
                ours=_cpu_ms(through),
                peer_name="the predictor alone",
                peer=_cpu_ms(directly),
                note=f"the proxy adds {adds:.2f} ms; requests a second: {_per_second(through):,.0f}",
                measurements={_PROXIED: through, _OURS: directly},
            )
        )
    through, directly = (measured[_Load(server, "V1 lists", 1, clients=1)] for server in (_PROXIED, _OURS))
    waits = [1000 / _per_second(one) for one in (through, directly)]
    result.append(
        Row(
            work="one row by V1 lists through Envoy: a single client's wait",
            unit="ms",
            ours=waits[0],
            peer_name="the predictor alone",
            peer=waits[1],
            note=f"the proxy adds {waits[0] - waits[1]:.2f} ms",
            measurements={_PROXIED: through, _OURS: directly},
        )
    )
    return result


def _row_of_starts(starts: Mapping[str, Measurement]) -> Row:
    ours, kserve = starts[_OURS], starts[_KSERVE]
    return Row(
        work="start of a server until it is ready",
        unit="s",
        ours=ours.seconds,
        peer_name=_KSERVE,
        peer=kserve.seconds,
        note=f"CPU {ours.cpu_seconds:.1f} / {kserve.cpu_seconds:.1f} s; {_FASTAPI} {starts[_FASTAPI].seconds:.1f} s; "
        "ours verifies the signature and replays the golden rows, theirs replay the golden rows",
        measurements=starts,
    )


def _batch(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


def _cpu_ms(measured: Measurement) -> float:
    return 1000 * measured.cpu_seconds / float(measured.facts["requests"])


def _per_second(measured: Measurement) -> float:
    return float(measured.facts["requests"]) / measured.seconds


# What follows runs in a process of its own.


def write_model(clock: Clock, folder: str, trees: int, features: int, rows: int) -> dict[str, Any]:
    """Trains a model on invented rows and signs it; writes it as MLflow does, too, and rows with the scores they must get."""
    from datetime import UTC, datetime

    import mlflow.xgboost
    import numpy as np
    import polars as pl

    from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
    from modelyard.components.artifacts.model import ModelSpec
    from modelyard.components.artifacts.scoring import load_scorer
    from modelyard.components.artifacts.xgboost_library import load_xgboost
    from modelyard.components.signing.signature import configured_signer, sign_directory
    from modelyard.components.training.labelled_rows import fit_features, open_rows
    from modelyard.components.training.model_directory import write_model_directory

    place = Path(folder)
    place.mkdir()
    names = tuple(f"f{position}" for position in range(features))
    draws = np.random.default_rng(0)
    # Three decimals, as amounts, rates and ratios have them: reading seventeen digits would be most of what is measured.
    matrix = draws.normal(size=(rows, features)).round(3)
    labels = (matrix.sum(axis=1) + draws.normal(size=rows) > 3).astype(np.uint8)
    info = DatasetInfo(Roles(names, "label", "time"))
    half = rows // 2
    files = {name: place / f"{name}.parquet" for name in ("train", "validation")}
    for file, part in zip(files.values(), (slice(half), slice(half, None)), strict=True):
        columns = [pl.Series("label", labels[part]), pl.lit(datetime(2026, 1, 1, tzinfo=UTC)).alias("time")]
        write_dataset(pl.DataFrame(matrix[part], schema=list(names)).with_columns(columns), file, info)
    train, validation = (open_rows(file, name) for name, file in files.items())
    xgboost = load_xgboost()
    bins = xgboost.QuantileDMatrix(matrix[:half].astype(np.float32), labels[:half], nthread=1)
    parameters = {"objective": "binary:logistic", "base_score": 0.5, "max_depth": 6, "eta": 0.1, "nthread": 1}
    booster = xgboost.train(parameters, bins, trees)
    # Without a signature: checking one would take as long again.
    mlflow.xgboost.save_model(booster, place / _MLFLOW_MODEL, model_format="ubj", pip_requirements=["xgboost"])
    model = place / _MODEL
    write_model_directory(
        model,
        ModelSpec(fit_features(train), "label", "model.ubj", 0.5),
        booster.save_model,
        {},
        train,
        validation,
        false_negative_cost=10.0,
        false_positive_cost=1.0,
        seed=0,
    )
    sign_directory(model, configured_signer("key"), model_name=MODEL_NAME)
    asked = matrix[-min(half, 1000) :]
    np.save(place / load.ROWS_FILE, asked)
    np.save(place / load.SCORES_FILE, load_scorer(model).score_matrix(asked.astype(np.float32)))
    return {"trees": booster.num_boosted_rounds()}
