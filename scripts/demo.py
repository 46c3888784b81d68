"""``modelyard demo``: simulated card transactions, then two releases of a fraud model, the second judged against the first.

It runs the compiled pipelines on embedded defaults, whatever the environment says of servers and stores, and leaves
everything in the home: reports, signed models, the registry, and ``demo.json`` with what happened.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from modelyard.components import settings
from modelyard.components.features.simulated_repo import ENTITY_FEATURES, FEATURE_SERVICE, LABEL
from modelyard.components.storage.files import write_text
from modelyard.scripts import cli, compiled
from modelyard.scripts.local_run import RunResult, run_pipeline
from modelyard.scripts.progress import Progress

START = date(2018, 4, 1)
DAYS = 84
# 2,000 customers over 12 weeks make about 325,000 transactions.
SIMULATION = {"customers": 2000, "terminals": 4000, "days": DAYS, "start_date": START.isoformat()}
# The second model knows four more weeks than the first.
RELEASES = (("first release, on 8 weeks", 56), ("second release, on 12 weeks", DAYS))
_CONFIGURED_ELSEWHERE = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_RUN_ID",
    "MODELYARD_MODEL_STORE",
    "MODELYARD_SIGNING_KEY",
    "MODELYARD_VERIFICATION_KEY",
)


class _Stopped(Exception):
    """A run did not succeed; carries its result."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(result.error)
        self.result = result


def main(words: Sequence[str]) -> int:
    """Runs the demo and returns the command's exit code."""
    parser = argparse.ArgumentParser(
        prog="modelyard demo",
        description="Simulates card transactions and releases a fraud model on them twice, on this machine alone.",
    )
    parser.add_argument("--home", metavar="DIR", help="folder of all local state (default: $MODELYARD_HOME, else ./.modelyard)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation and of training (default: 0)")
    arguments = parser.parse_args(list(words))
    for variable in _CONFIGURED_ELSEWHERE:
        os.environ.pop(variable, None)
    home = Path(arguments.home or settings.home()).expanduser().resolve()
    try:
        return _demonstrate(home, arguments.seed)
    except _Stopped as stopped:
        return 128 + stopped.result.signal if stopped.result.signal else cli.FAILED


def _demonstrate(home: Path, seed: int) -> int:
    model_name = _unused_name(home)
    simulate = compiled.compiled_folder() / "components" / "simulate_transactions.yaml"
    simulated = _run("simulated transactions", simulate, {**SIMULATION, "seed": seed}, home)
    repo = simulated.steps[-1].outputs
    seconds = {"simulate_transactions": simulated.steps[-1].seconds}
    releases = []
    for number, (title, days) in enumerate(RELEASES, start=1):
        result = _run(title, compiled.find("release"), _request(model_name, repo, days, seed), home)
        seconds |= {f"release_{number}.{step.name}": step.seconds for step in result.steps}
        releases.append(_summary(result))
    content = {
        "model_name": model_name,
        "transactions": repo["transactions"],
        "frauds": repo["frauds"],
        "releases": releases,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    write_text(home / "demo.json", json.dumps(content, indent=1) + "\n")
    _print_table(home, content)
    return cli.OK if all(release["outcome"] == "promoted" for release in releases) else cli.REFUSED


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
        package, parameters, home, on_step=progress.step, on_start=lambda folder: progress.start(title, folder)
    )
    progress.finish(result)
    if result.state != "succeeded":
        raise _Stopped(result)
    print()
    return result


def _request(model_name: str, repo: dict[str, Any], days: int, seed: int) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "feature_repo_uri": repo["feature_repo_uri"],
        "entity_rows_uri": repo["entity_rows_uri"],
        "feature_service": FEATURE_SERVICE,
        "label": LABEL,
        "entity_features": list(ENTITY_FEATURES),
        "data_end": (START + timedelta(days=days)).isoformat(),
        "test_days": 7.0,
        "validation_days": 7.0,
        "gap_days": 7.0,
        "cluster_by": "customer_id",
        "purpose": "Flag card transactions that are likely fraudulent, on simulated data.",
        "owner": "Whoever runs the demo.",
        "risk_class": "none: simulated data",
        "limits": "Simulated transactions after Le Borgne et al. (2022); not for real payments.",
        "oversight": "None needed: nothing acts on its scores.",
        "seed": seed,
    }


def _summary(result: RunResult) -> dict[str, Any]:
    steps = {step.name: step for step in result.steps}
    evaluated = steps["evaluate_model"]
    evaluation = json.loads(Path(evaluated.artifacts["evaluation"]).read_text(encoding="utf-8"))
    registered = steps.get("register_model")
    return {
        "version": registered.outputs["version"] if registered else "",
        "outcome": "promoted" if "promote_model" in steps else ("registered" if registered else "refused"),
        "decision": result.decision,
        "reasons": evaluation["reasons"],
        "digest": evaluation["model_digest"],
        "metrics": {name: interval["value"] for name, interval in evaluation["metrics"].items()},
        "model_dir": registered.outputs["uri"] if registered else "",
        "reports": {"evaluation": evaluated.reports["report"]}
        | ({"model_card": steps["write_model_card"].reports["card_html"]} if registered else {}),
    }


def _print_table(home: Path, content: dict[str, Any]) -> None:
    print(f"{content['model_name']}: {content['transactions']:,} simulated transactions, {content['frauds']:,} frauds\n")
    print(f"{'version':<9}{'outcome':<12}{'PR-AUC':>8}{'ROC-AUC':>9}  digest")
    for release in content["releases"]:
        metrics = release["metrics"]
        print(
            f"{release['version'] or '–':<9}{release['outcome']:<12}{metrics['pr_auc']:>8.3f}{metrics['roc_auc']:>9.3f}"
            f"  {release['digest'][:23]}…"
        )
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


def _shown(content: dict[str, Any]) -> str:
    return next((release["model_dir"] for release in reversed(content["releases"]) if release["model_dir"]), "DIR")
