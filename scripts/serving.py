"""``modelyard serve``, ``status``, ``stop``, ``rollback`` and ``split``: what is served on this machine, and how it is."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.rollout.record import is_held
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.local.target import Health, LocalTarget
from modelyard.components.serving.target import Arm, Counts, ServedModel, ServingState
from modelyard.scripts import cli


def serve_command(arguments: argparse.Namespace) -> int:
    target = _target(arguments, arguments.port)
    if arguments.version and not arguments.name:
        raise InvalidInput("--version", arguments.version, "name the model as well")
    if arguments.name:
        from modelyard.components.rollout.registry_side import finish_pending

        # What a rollback could not tell the registry comes before asking it who is champion.
        for change in finish_pending(target, arguments.name):
            print(f"registry, left from before: {change}")
        model = _registered(arguments.name, arguments.version)
        stable = target.state(arguments.name).stable
        if stable is None or stable.model.digest != model.digest:
            target.restore(arguments.name, model)
    target.start()
    names = [arguments.name] if arguments.name else target.model_names()
    states = [target.state(name) for name in names]
    for state in states:
        print("\n".join(_described(target, state)))
    for state in states:
        if state.stable and state.stable.ready:
            print(f"\n{how_to_call(target, state.model_name)}")
    for state in states:
        if state.stable and not state.stable.ready:
            print(f"modelyard: {_what_to_do(target, state, state.stable)}", file=sys.stderr)
    return cli.OK if all(_answers(state) for state in states) else cli.FAILED


def status_command(arguments: argparse.Namespace) -> int:
    target = _target(arguments)
    names, health = target.model_names(), target.health()
    if arguments.name:
        if arguments.name not in names:
            remedy = f"it is not served here; what is: {', '.join(names) or 'nothing'}. modelyard serve NAME begins"
            raise InvalidInput("model", arguments.name, remedy)
        names = [arguments.name]
    states = [target.state(name) for name in names]
    if arguments.json:
        print(json.dumps(_content(target, states, health), indent=1))
    else:
        for state in states:
            print("\n".join(_described(target, state)))
        print("\n".join(_described_health(health, names)))
    well = health.proxy and not health.problem and all(_answers(state) for state in states)
    return cli.OK if well or not (health.wanted or health.problem) else cli.FAILED


def stop_command(arguments: argparse.Namespace) -> int:
    target = _target(arguments)
    target.stop()
    print("stopped; modelyard serve brings back what was served")
    return cli.OK


def rollback_command(arguments: argparse.Namespace) -> int:
    from modelyard.components.rollout.rollback import roll_back

    target = _target(arguments)
    done = roll_back(arguments.name, target, arguments.reason)
    stays = f"version {done.version} is in charge" if done.version else "no version is in charge"
    print(f"{arguments.name}: {stays}, version {done.replaced} was taken back")
    print(f"  registry  {done.registry}")
    if _pending(target, arguments.name):
        print(f"            {_who_tells_it(arguments.name)}")
    return cli.OK


def split_command(arguments: argparse.Namespace) -> int:
    target = _target(arguments)
    state = target.state(arguments.name)
    if arguments.end:
        if arguments.version or arguments.share is not None or arguments.mirror:
            raise InvalidInput("--end", True, "it takes no --version, --share or --mirror")
        if arguments.name not in (names := target.model_names()):
            raise InvalidInput("model", arguments.name, f"it is not served here; what is: {', '.join(names) or 'nothing'}")
        target.roll_back(arguments.name)
    else:
        if not arguments.version or arguments.share is None:
            raise InvalidInput("split", arguments.name, "give --version and --share, or --end")
        if not 0 <= arguments.share <= 100:
            raise InvalidInput("--share", arguments.share, "give a whole number from 0 to 100")
        if state.stable is None:
            raise InvalidInput("model", arguments.name, "it has no version in charge to split from; modelyard serve NAME first")
        model = _registered(arguments.name, arguments.version)
        if model.digest == state.stable.model.digest:
            raise InvalidInput("--version", arguments.version, "it is in charge already; name another one")
        target.start_canary(arguments.name, model)
        canary = target.state(arguments.name).canary
        if canary is None or not canary.ready:
            reason = canary.reason if canary else "it was taken away meanwhile"
            target.roll_back(arguments.name)
            raise NotAvailable(f"version {arguments.version} of {arguments.name!r} cannot be served: {reason}")
        target.set_share(arguments.name, arguments.share, mirror=arguments.mirror)
    print("\n".join(_described(target, target.state(arguments.name))))
    return cli.OK


def how_to_call(target: LocalTarget, model_name: str) -> str:
    """A ``curl`` line that asks a served model about a row that it was signed with."""
    body = json.dumps({"instances": [_golden_row(target.model_directory(model_name))]})
    url = f"{target.state(model_name).url}/v1/models/{model_name}:predict"
    return f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _golden_row(directory: Path | None) -> dict[str, Any]:
    """The first golden row as a request gives it: categories by name, what is missing left empty."""
    from modelyard.components.artifacts.model import GOLDEN_ROWS_FILE, read_spec

    if directory is None:
        raise InvalidInput("model", "", "no version of it is in charge")
    row = json.loads((directory / GOLDEN_ROWS_FILE).read_text(encoding="utf-8"))["rows"][0]
    values: dict[str, Any] = {}
    for feature, value in zip(read_spec(directory).features, row, strict=True):
        if value is None or feature.categories is None:
            values[feature.name] = value if value is None else float(f"{value:.7g}")
        else:
            values[feature.name] = feature.categories[int(value)]
    return values


def _target(arguments: argparse.Namespace, port: int = 0) -> LocalTarget:
    if arguments.home:
        os.environ["MODELYARD_HOME"] = arguments.home
    return LocalTarget(settings.home(), port)


def _registered(model_name: str, version: str) -> ServedModel:
    """A version of the registry, by default the champion."""
    from modelyard.components.artifacts.names import check_model_name
    from modelyard.components.registry import versions
    from modelyard.components.tracking.connection import client, reachable

    check_model_name(model_name)
    registry = client()
    with reachable():
        number = version or versions.aliases(registry, model_name).get(versions.CHAMPION, "")
        if not number:
            raise InvalidInput("model", model_name, "the registry has no champion of this name; release one, or give --version")
        found = versions.get_version(registry, model_name, number)
    return ServedModel(str(found.version), found.tags["digest"], found.source)


def _answers(state: ServingState) -> bool:
    return state.stable is None or state.stable.ready


def _what_to_do(target: LocalTarget, state: ServingState, stable: Arm) -> str:
    """About a version in charge that does not answer."""
    name, reason = state.model_name, (stable.reason.splitlines() or ["it is not ready yet"])[0]
    logs = [
        found["log"] for arm, found in target.health().predictors.items() if arm.startswith(f"{name}-v{stable.model.version}-")
    ]
    another = f"modelyard rollback {name}" if state.previous else f"modelyard serve {name} --version another"
    return (
        f"version {stable.model.version} of {name!r} does not answer: {reason}. Log: {', '.join(logs) or 'none'}. "
        f"Try again with modelyard serve {name}, or serve another version: {another}"
    )


def _counts(target: LocalTarget, model_name: str) -> tuple[Counts | None, Counts | None]:
    try:
        counts = target.counts(model_name)
    except NotAvailable:
        # The proxy does not run, which is told anyway.
        return None, None
    return counts.stable, counts.canary


def _described(target: LocalTarget, state: ServingState) -> Iterator[str]:
    yield f"{state.model_name}  {state.url}/v1/models/{state.model_name}:predict"
    for label, arm, counts in zip(
        ("stable", "canary"), (state.stable, state.canary), _counts(target, state.model_name), strict=True
    ):
        if arm:
            yield from _described_arm(label, arm, counts)
    taken_back = _taken_back(target, state)
    if taken_back:
        version = taken_back["from"]["version"]
        yield f"  previous  version {version}, taken back: {taken_back['reason']}"
        yield f"            modelyard serve {state.model_name} --version {version} serves it again"
    elif state.previous:
        yield f"  previous  version {state.previous.version}  (modelyard rollback {state.model_name} brings it back)"
    if rollout := _last_rollout(target, state.model_name):
        yield f"  rollout   {_told(rollout)}{_since_then(rollout, taken_back)}"
        if rollout["interrupted"]:
            yield f"            {_how_to_go_on(state, rollout)}"
    for change in _pending(target, state.model_name):
        yield f"  registry  not told yet: {_change_told(change)}"
        yield f"            {_who_tells_it(state.model_name)}"


def _described_arm(label: str, arm: Arm, counts: Counts | None) -> Iterator[str]:
    share = f"{'copy of ' if arm.mirrored else ''}{arm.share} %"
    how = "ready" if arm.ready else "failed" if arm.failed else "not ready"
    done = f"  {counts.answered:,} answered, {counts.rejected:,} rejected, {counts.failed:,} failed" if counts else ""
    yield f"  {label:<8}  version {arm.model.version:<4} {share:>13}  {how:<9}{done}".rstrip()
    for line in arm.reason.splitlines():
        yield f"            {line}"


def _last_rollout(target: LocalTarget, model_name: str) -> dict[str, Any]:
    """What the last rollout's notes say in short; empty if there was none."""
    rollout = (target.read_record(model_name) or {}).get("rollout") or {}
    if not rollout:
        return {}
    told = {name: rollout[name] for name in ("version", "digest", "phase", "decision", "outcome", "reasons") if name in rollout}
    return {
        **told,
        "interrupted": not told.get("outcome") and not is_held(settings.home(), model_name),
    }


def _how_to_go_on(state: ServingState, rollout: dict[str, Any]) -> str:
    """About a rollout that no process is at work on, though it has not ended."""
    canary, again = state.canary, "run the release again to go on"
    if canary is None or canary.model.digest != rollout["digest"]:
        return f"interrupted: {again}"
    has = f"a copy of {canary.share} %" if canary.mirrored else f"{canary.share} %"
    return f"interrupted, has {has} of the traffic: {again}, or modelyard split {state.model_name} --end"


def _taken_back(target: LocalTarget, state: ServingState) -> dict[str, Any]:
    """The notes of the last rollback, if what is served is what it left, so that repeating it changes nothing; else empty."""
    done = (target.read_record(state.model_name) or {}).get("rolled_back") or {}
    if not done.get("answer") or done["trial"] or state.stable is None or state.previous is None:
        return {}
    left = (state.stable.model.digest, state.previous.digest)
    return done if left == (done["to"]["digest"], done["from"]["digest"]) else {}


def _since_then(rollout: dict[str, Any], taken_back: dict[str, Any]) -> str:
    """What became of a version after its rollout."""
    if not taken_back or rollout.get("outcome") != "promoted" or taken_back["from"]["digest"] != rollout["digest"]:
        return ""
    return f"; taken back since: {taken_back['reason']}"


def _pending(target: LocalTarget, model_name: str) -> list[dict[str, str]]:
    """Changes that the registry could not be told."""
    return (target.read_record(model_name) or {}).get("pending") or []


def _change_told(change: dict[str, str]) -> str:
    if change["action"] == "reject":
        return f"version {change['version']} is to be sent back"
    return f"version {change['version']} is to be champion again, version {change['replacing']} to be sent back"


def _who_tells_it(model_name: str) -> str:
    return f"the next rollout, rollback or modelyard serve {model_name} tells it"


def _told(rollout: dict[str, Any]) -> str:
    if not rollout.get("decision"):
        return f"version {rollout['version']}: {rollout.get('phase', 'under way')}"
    outcome = f", {rollout['outcome'].replace('_', ' ')}" if rollout.get("outcome") else f", {rollout.get('phase', '')}"
    because = f": {'; '.join(rollout['reasons'])}" if rollout.get("reasons") else ""
    return f"version {rollout['version']}: {rollout['decision']}{outcome}{because}"


def _described_health(health: Health, names: list[str]) -> Iterator[str]:
    if not names and not health.problem:
        yield "nothing is served here; modelyard serve NAME begins with the registry's champion"
    if not health.wanted:
        if names:
            yield "stopped: modelyard serve brings back what was served"
        if health.problem:
            yield f"problem     {health.problem}"
        return
    yield f"proxy       {f'Envoy on 127.0.0.1:{health.port}, pid {health.proxy}' if health.proxy else 'does not run'}"
    yield f"supervisor  {f'pid {health.supervisor}' if health.supervisor else 'does not run'}"
    for name, predictor in health.predictors.items():
        if predictor["crashes"]:
            yield f"restarts    {name}: {predictor['crashes']} since the supervisor started (log: {predictor['log']})"
    if health.problem:
        yield f"problem     {health.problem}"


def _content(target: LocalTarget, states: list[ServingState], health: Health) -> dict[str, Any]:
    return {
        **asdict(health),
        # Of the counts by latency (seconds) and score: each holds what is at most its edge, and one more the rest.
        "latency_edges": LATENCY_EDGES,
        "score_edges": SCORE_EDGES,
        "models": {state.model_name: _model_content(target, state) for state in states},
    }


def _model_content(target: LocalTarget, state: ServingState) -> dict[str, Any]:
    counts = dict(zip(("stable", "canary"), _counts(target, state.model_name), strict=True))
    arms = {
        label: {**asdict(arm), "counts": asdict(found) if (found := counts[label]) else None} if arm else None
        for label, arm in (("stable", state.stable), ("canary", state.canary))
    }
    return {
        **arms,
        "previous": asdict(state.previous) if state.previous else None,
        "url": state.url,
        "rollout": _last_rollout(target, state.model_name) or None,
        "rolled_back": _taken_back(target, state) or None,
        "registry_pending": _pending(target, state.model_name),
    }
