"""``modelyard demo``: simulated card transactions, then three releases of a fraud model under live traffic.

The first model is served at once, the second takes over step by step, the third is broken in a way that no offline figure
shows, and is rolled back: it learned from ``chargeback``, which is known only weeks after a transaction, so that it looks
brilliant on past data, and callers cannot send what it asks for.

It runs the compiled pipelines on embedded defaults, whatever the environment says of servers and stores, and leaves
everything in the home: reports, signed models, the registry, and ``demo.json`` with what happened.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.components import settings
from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.features.simulated_repo import ENTITY_FEATURES, FEATURE_SERVICE, LABEL
from modelyard.components.serving.local.target import PORT_VARIABLE, LocalTarget
from modelyard.components.storage.files import atomic_file, write_text
from modelyard.scripts import cli, compiled
from modelyard.scripts.local_run import RunResult, run_pipeline
from modelyard.scripts.progress import Progress
from modelyard.scripts.serving import how_to_call
from modelyard.scripts.traffic import NO_VERSION, LiveTraffic

START = date(2018, 4, 1)
DAYS = 84
# 2,000 customers over 12 weeks make about 325,000 transactions.
SIMULATION = {"customers": 2000, "terminals": 4000, "days": DAYS, "start_date": START.isoformat()}
REQUESTS_PER_SECOND = 120
# As little as tells a broken model from a good one at this traffic; a release's defaults are for days, not for a demo.
ROLLOUT = {
    "rollout_steps": [20, 50, 100],
    "bake_seconds": 1.5,
    "min_samples": 60,
    "look_seconds": 0.5,
    "deadline_seconds": 60.0,
}
LIVE_ROWS = 2000
LEAK = "chargeback"


@dataclass(frozen=True)
class _Release:
    """One release of the demo: how many days it knows, whether it learns from the leak, and what must become of it."""

    title: str
    days: int
    expected: str
    leaking: bool = False


RELEASES = (
    _Release("first release, on 8 weeks", 56, "promoted"),
    _Release("second release, on 12 weeks", DAYS, "promoted"),
    _Release(f"third release, which learns from {LEAK}", DAYS, "rolled_back", leaking=True),
)
_CONFIGURATION = ("MLFLOW_", "MODELYARD_", "MODEL_")
_RESPECTED = ("MODELYARD_HOME", PORT_VARIABLE)


class _Stopped(Exception):
    """A run did not succeed; carries its result."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(result.error)
        self.result = result


def main(words: Sequence[str]) -> int:
    """Runs the demo and returns the command's exit code."""
    parser = argparse.ArgumentParser(
        prog="modelyard demo",
        description="Simulates card transactions and releases a fraud model on them three times, under live traffic, on this "
        "machine alone. The third model is broken, and is rolled back.",
    )
    parser.add_argument("--home", metavar="DIR", help="folder of all local state (default: $MODELYARD_HOME, else ./.modelyard)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation and of training (default: 0)")
    parser.add_argument("--keep-serving", action="store_true", help="leave the model served; modelyard stop ends it")
    arguments = parser.parse_args(list(words))
    for variable in list(os.environ):
        if variable.startswith(_CONFIGURATION) and variable not in _RESPECTED:
            del os.environ[variable]
    home = Path(arguments.home or settings.home()).expanduser().resolve()
    os.environ["MODELYARD_HOME"] = str(home)
    target = LocalTarget(home)
    # What was served before the demo is not the demo's to end.
    keep_serving = arguments.keep_serving or target.health().wanted
    _avoid_a_port_in_use(target)
    try:
        code = _demonstrate(home, arguments.seed, target)
        if keep_serving:
            _print_how_to_call(home, target)
        return code
    except _Stopped as stopped:
        return 128 + stopped.result.signal if stopped.result.signal else cli.FAILED
    finally:
        if not keep_serving:
            target.stop()


def _avoid_a_port_in_use(target: LocalTarget) -> None:
    health = target.health()
    if health.proxy or PORT_VARIABLE in os.environ:
        return
    try:
        socket.create_server(("127.0.0.1", health.port)).close()
    except OSError:
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ[PORT_VARIABLE] = str(free.getsockname()[1])


def _demonstrate(home: Path, seed: int, target: LocalTarget) -> int:
    model_name = _unused_name(home)
    simulate = compiled.compiled_folder() / "components" / "simulate_transactions.yaml"
    simulated = _run("simulated transactions", simulate, {**SIMULATION, "seed": seed}, home)
    repo = simulated.steps[-1].outputs
    seconds = {"simulate_transactions": simulated.steps[-1].seconds}
    releases = []
    traffic = None
    try:
        for number, planned in enumerate(RELEASES, start=1):
            result = _run(planned.title, compiled.find("release"), _request(model_name, repo, planned, home, seed), home)
            seconds |= {f"release_{number}.{step.name}": step.seconds for step in result.steps}
            releases.append(_summary(result))
            if traffic is None and releases[0]["outcome"] == "promoted":
                rows = _live_rows(result.step("fetch_features").artifacts["training_data"], seed)
                traffic = LiveTraffic(target.state(model_name).url, model_name, rows, per_second=REQUESTS_PER_SECOND)
                traffic.start()
    finally:
        if traffic:
            traffic.stop()
    content = {
        "model_name": model_name,
        "transactions": repo["transactions"],
        "frauds": repo["frauds"],
        "releases": releases,
        "requests": traffic.counts() if traffic else {},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    write_text(home / "demo.json", json.dumps(content, indent=1) + "\n")
    _print_table(home, content)
    return cli.OK if [release["outcome"] for release in releases] == [planned.expected for planned in RELEASES] else cli.REFUSED


def _live_rows(training_data: str, seed: int) -> list[dict[str, Any]]:
    """What callers ask for: feature values by name of transactions of the last week."""
    frame, info = read_dataset(training_data)
    moment = info.roles.timestamp
    recent = frame.filter(pl.col(moment) >= pl.col(moment).max() - timedelta(days=7)).select(info.roles.features)
    return recent.sample(min(recent.height, LIVE_ROWS), seed=seed, shuffle=True).to_dicts()


def _with_leak(entity_rows: str, home: Path, seed: int) -> str:
    """Entity rows with the column ``chargeback``: whether the bank took the money back, weeks later; almost the label."""
    rows = pl.read_parquet(entity_rows)
    generator = np.random.default_rng(seed)
    taken_back = np.where(
        rows[LABEL].to_numpy() == 1, generator.random(rows.height) < 0.9, generator.random(rows.height) < 0.001
    )
    path = home / "demo" / "entity_rows_with_leak.parquet"
    with atomic_file(path) as partial:
        rows.with_columns(pl.Series(LEAK, taken_back.astype(np.int8))).write_parquet(partial)
    return str(path)


def _unused_name(home: Path) -> str:
    """A model name of its own for every demo: an earlier demo's champion has seen the days this one tests on."""
    number, name = 1, "card-fraud"
    while (home / "models" / name).exists():
        number += 1
        name = f"card-fraud-{number}"
    return name


def _run(title: str, package: Path, parameters: dict[str, Any], home: Path) -> RunResult:
    progress = Progress()
    result = run_pipeline(
        package,
        parameters,
        home,
        on_step=progress.step,
        on_start=lambda folder: progress.start(title, folder),
        on_line=progress.line,
    )
    progress.finish(result)
    if result.state != "succeeded":
        raise _Stopped(result)
    print()
    return result


def _request(model_name: str, repo: dict[str, Any], planned: _Release, home: Path, seed: int) -> dict[str, Any]:
    rows = repo["entity_rows_uri"]
    return {
        "model_name": model_name,
        "feature_repo_uri": repo["feature_repo_uri"],
        "entity_rows_uri": _with_leak(rows, home, seed) if planned.leaking else rows,
        "feature_service": FEATURE_SERVICE,
        "label": LABEL,
        "entity_features": [*ENTITY_FEATURES, *([LEAK] if planned.leaking else [])],
        "data_end": (START + timedelta(days=planned.days)).isoformat(),
        "test_days": 7.0,
        "validation_days": 7.0,
        "gap_days": 7.0,
        "cluster_by": "customer_id",
        "purpose": "Flag card transactions that are likely fraudulent, on simulated data.",
        "owner": "Whoever runs the demo.",
        "risk_class": "none: simulated data",
        "limits": "Simulated transactions after Le Borgne et al. (2022); not for real payments.",
        "oversight": "None needed: nothing acts on its scores.",
        # A few trees find a leak.
        "training_parameters": {"rounds": 40} if planned.leaking else {},
        "target": "local",
        **ROLLOUT,
        "seed": seed,
    }


def _summary(result: RunResult) -> dict[str, Any]:
    steps = {step.name: step for step in result.steps}
    evaluated = steps["evaluate_model"]
    evaluation = json.loads(Path(evaluated.artifacts["evaluation"]).read_text(encoding="utf-8"))
    summary = {
        "version": "",
        "outcome": "refused",
        "decision": result.decision,
        "reasons": evaluation["reasons"],
        "digest": evaluation["model_digest"],
        "metrics": {name: interval["value"] for name, interval in evaluation["metrics"].items()},
        "model_dir": "",
        "reports": {"evaluation": evaluated.reports["report"]},
    }
    if "rollout_model" in steps:
        registered, rolled_out = steps["register_model"].outputs, steps["rollout_model"]
        summary |= {
            "version": registered["version"],
            "outcome": rolled_out.outputs["outcome"],
            "reasons": [rolled_out.outputs["reasons"]],
            "model_dir": registered["uri"],
        }
        summary["reports"] |= {
            "model_card": steps["write_model_card"].reports["card_html"],
            "rollout": rolled_out.reports["report"],
        }
    return summary


def _print_table(home: Path, content: dict[str, Any]) -> None:
    print(f"{content['model_name']}: {content['transactions']:,} simulated transactions, {content['frauds']:,} frauds\n")
    print(f"{'version':<9}{'outcome':<13}{'PR-AUC':>8}{'ROC-AUC':>9}{'requests':>10}{'failed':>8}  digest")
    nothing = {"sent": 0, "failed": 0}
    for release in content["releases"]:
        metrics, requests = release["metrics"], content["requests"].get(release["version"], nothing)
        print(
            f"{release['version'] or '–':<9}{release['outcome'].replace('_', ' '):<13}{metrics['pr_auc']:>8.3f}"
            f"{metrics['roc_auc']:>9.3f}{requests['sent']:>10,}{requests['failed']:>8,}  {release['digest'][:23]}…"
        )
    unanswered = content["requests"].get(NO_VERSION, nothing)
    if unanswered["sent"]:
        print(f"{'no answer':<39}{unanswered['sent']:>10,}{unanswered['failed']:>8,}")
    for release in content["releases"]:
        if release["outcome"] == "rolled_back":
            print(f"\nversion {release['version']} was rolled back: {release['reasons'][0]}")
    print(f"\n{'where to look':<16}")
    for number, release in enumerate(content["releases"], start=1):
        for kind, path in release["reports"].items():
            print(f"  {kind.replace('_', ' ') + f' {number}':<16}{path}")
        if release["model_dir"]:
            print(f"  {f'model {number}':<16}{release['model_dir']}")
    print(f"  {'all figures':<16}{home / 'demo.json'}")
    total = sum(content["seconds"].values())
    print(f"\n{total:.0f} s of steps. Check a model: {sys.argv[0]} verify {_shown(content)} --home {home}")
    sys.stdout.flush()


def _print_how_to_call(home: Path, target: LocalTarget) -> None:
    names = [name for name in target.model_names() if target.state(name).stable]
    print("\nstill serving; ask it:")
    for name in names:
        print(f"  {how_to_call(target, name)}")
    print(f"end it: {sys.argv[0]} stop --home {home}")


def _shown(content: dict[str, Any]) -> str:
    promoted = [release["model_dir"] for release in content["releases"] if release["outcome"] == "promoted"]
    return promoted[-1] if promoted else "DIR"
