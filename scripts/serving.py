"""``modelyard serve``, ``stop``, ``status``, ``split``, ``promote`` and ``rollback``: what is served, here or on a cluster."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.rollout.record import is_held
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.local.target import Health, LocalTarget
from modelyard.components.serving.target import Arm, Counts, ServedModel, ServingState, ServingTarget
from modelyard.components.serving.targets import LOCAL, command_options, open_target
from modelyard.scripts import cli


def serve_command(arguments: argparse.Namespace) -> int:
    target = _local(arguments, arguments.port)
    if arguments.version and not arguments.name:
        raise InvalidInput("--version", arguments.version, "name the model as well")
    if arguments.name:
        from modelyard.components.rollout.registry_side import find, finish_pending

        # What a rollback could not tell the registry comes before asking it who is champion.
        for change in finish_pending(target, arguments.name):
            print(f"registry, left from before: {change}")
        model = find(arguments.name, arguments.version)
        stable = target.state(arguments.name).stable
        if stable is None or stable.model.digest != model.digest:
            target.restore(arguments.name, model)
    target.start()
    names = [arguments.name] if arguments.name else target.model_names()
    states = [target.state(name) for name in names]
    for state in states:
        print("\n".join(_described(target, state, "")))
    for state in states:
        if state.stable and state.stable.ready:
            print(f"\n{how_to_call(target, state.model_name)}")
    for state in states:
        if state.stable and not state.stable.ready:
            print(f"modelyard: {_what_to_do(target, state, state.stable)}", file=sys.stderr)
    return cli.OK if all(_answers(state) for state in states) else cli.FAILED


def status_command(arguments: argparse.Namespace) -> int:
    target, options = _opened(arguments)
    if not isinstance(target, LocalTarget):
        return _status_there(target, arguments, options)
    names, health = target.model_names(), target.health()
    if arguments.name:
        if arguments.name not in names:
            remedy = f"it is not served here; what is: {', '.join(names) or 'nothing'}. modelyard serve NAME begins"
            raise InvalidInput("model", arguments.name, remedy)
        names = [arguments.name]
    states = [target.state(name) for name in names]
    if arguments.json:
        print(json.dumps({**asdict(health), **_content(target, states)}, indent=1))
    else:
        for state in states:
            print("\n".join(_described(target, state, options)))
        print("\n".join(_described_health(health, names)))
    well = health.proxy and not health.problem and all(_answers(state) for state in states)
    return cli.OK if well or not (health.wanted or health.problem) else cli.FAILED


def _status_there(target: ServingTarget, arguments: argparse.Namespace, options: str) -> int:
    if not arguments.name:
        raise InvalidInput("model", "", f"name the one to show: modelyard status NAME{options}")
    state = target.state(arguments.name)
    _check_served(target, state)
    if arguments.json:
        print(json.dumps(_content(target, [state]), indent=1))
    else:
        print("\n".join(_described(target, state, options)))
    return cli.OK if _answers(state) else cli.FAILED


def stop_command(arguments: argparse.Namespace) -> int:
    _local(arguments).stop()
    print("stopped; modelyard serve brings back what was served")
    return cli.OK


def promote_command(arguments: argparse.Namespace) -> int:
    from modelyard.components.rollout.promoting import promote

    target, options = _opened(arguments)
    done = promote(arguments.name, arguments.version, target, arguments.reason)
    instead = f" in place of version {done.replaced}" if done.replaced else ""
    print(f"{arguments.name}: version {done.version} is in charge{instead}")
    if done.replaced:
        print(f"  modelyard rollback {arguments.name}{options} takes that back")
    return cli.OK


def rollback_command(arguments: argparse.Namespace) -> int:
    from modelyard.components.rollout.rollback import roll_back

    target, options = _opened(arguments)
    done = roll_back(arguments.name, target, arguments.reason, options)
    stays = f"version {done.version} is in charge" if done.version else "no version is in charge"
    print(f"{arguments.name}: {stays}, version {done.replaced} was taken back")
    print(f"  registry  {done.registry}")
    if _pending(target, arguments.name):
        print(f"            {_who_tells_it(target, arguments.name)}")
    return cli.OK


def split_command(arguments: argparse.Namespace) -> int:
    from modelyard.components.rollout.registry_side import find

    target, options = _opened(arguments)
    state = target.state(arguments.name)
    if arguments.end:
        if arguments.version or arguments.share is not None or arguments.mirror:
            raise InvalidInput("--end", True, "it takes no --version, --share or --mirror")
        _check_served(target, state)
        target.roll_back(arguments.name)
    else:
        if not arguments.version or arguments.share is None:
            raise InvalidInput("split", arguments.name, "give --version and --share, or --end")
        if not 0 <= arguments.share <= 100:
            raise InvalidInput("--share", arguments.share, "give a whole number from 0 to 100")
        if arguments.mirror and not target.mirrors:
            raise InvalidInput("--mirror", True, f"target {arguments.target} cannot copy traffic")
        if state.stable is None:
            begin = f"promote {arguments.name} --version VERSION{options}" if options else f"serve {arguments.name}"
            raise InvalidInput("model", arguments.name, f"it has no version in charge to split from; modelyard {begin} first")
        model = find(arguments.name, arguments.version)
        if model.digest == state.stable.model.digest:
            raise InvalidInput("--version", arguments.version, "it is in charge already; name another one")
        try:
            target.start_canary(arguments.name, model)
            canary = target.state(arguments.name).canary
            if canary is None or not canary.ready:
                reason = canary.reason if canary else "it was taken away meanwhile"
                raise NotAvailable(f"version {arguments.version} of {arguments.name!r} cannot be served: {reason}")
        except NotAvailable as error:
            if state.canary is None:
                _take_away(target, arguments.name, model, error, options)
            raise
        target.set_share(arguments.name, arguments.share, mirror=arguments.mirror)
    print("\n".join(_described(target, target.state(arguments.name), options)))
    return cli.OK


def _take_away(target: ServingTarget, model_name: str, model: ServedModel, error: NotAvailable, options: str) -> None:
    """Ends the trial of a version that could not be served, if it is still the one on trial."""
    try:
        canary = target.state(model_name).canary
        if canary is not None and canary.model.digest == model.digest:
            target.roll_back(model_name)
    except NotAvailable as away:
        raise NotAvailable(f"{error}; take it away with: modelyard split {model_name} --end{options} ({away})") from error


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


def _local(arguments: argparse.Namespace, port: int = 0) -> LocalTarget:
    if arguments.home:
        os.environ["MODELYARD_HOME"] = arguments.home
    return LocalTarget(settings.home(), port)


def _opened(arguments: argparse.Namespace) -> tuple[ServingTarget, str]:
    """The target that is asked for, and what commands need to reach it again."""
    if arguments.target == LOCAL:
        if arguments.namespace:
            raise InvalidInput("--namespace", arguments.namespace, "it belongs to a cluster: give --target kserve with it")
        return _local(arguments), ""
    if arguments.home:
        os.environ["MODELYARD_HOME"] = arguments.home
    serving = {"namespace": arguments.namespace}
    return open_target(arguments.target, serving), command_options(arguments.target, serving)


def _check_served(target: ServingTarget, state: ServingState) -> None:
    if state.stable is None and state.canary is None:
        remedy = "it is not served there"
        if isinstance(target, LocalTarget):
            remedy = f"it is not served here; what is: {', '.join(target.model_names()) or 'nothing'}"
        raise InvalidInput("model", state.model_name, remedy)


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


def _counts(target: ServingTarget, model_name: str) -> tuple[Counts | None, Counts | None]:
    if not isinstance(target, LocalTarget):
        # A cluster's counts begin when somebody begins to look.
        return None, None
    try:
        counts = target.counts(model_name)
    except NotAvailable:
        # The proxy does not run, which is told anyway.
        return None, None
    return counts.stable, counts.canary


def _described(target: ServingTarget, state: ServingState, options: str) -> Iterator[str]:
    yield f"{state.model_name}  {state.url}/v1/models/{state.model_name}:predict"
    for label, arm, counts in zip(
        ("stable", "canary"), (state.stable, state.canary), _counts(target, state.model_name), strict=True
    ):
        if arm:
            yield from _described_arm(label, arm, counts)
    taken_back, half_taken_back = _taken_back(target, state), _half_taken_back(target, state)
    if taken_back:
        version = taken_back["from"]["version"]
        yield f"  previous  version {version}, taken back: {taken_back['reason']}"
        again = (
            f"promote {state.model_name} --version {version}{options}"
            if options
            else f"serve {state.model_name} --version {version}"
        )
        yield f"            modelyard {again} serves it again"
    elif state.previous and not half_taken_back:
        yield f"  previous  version {state.previous.version}  (modelyard rollback {state.model_name}{options} brings it back)"
    if rollout := _last_rollout(target, state.model_name):
        yield f"  rollout   {_told(rollout)}{_since_then(rollout, taken_back)}"
        if rollout["interrupted"]:
            yield f"            {_how_to_go_on(state, rollout, options)}"
    if version := _half_promoted(target, state.model_name):
        yield f"  promotion of version {version}, half done: modelyard promote {state.model_name}{options} finishes it"
    if half_taken_back:
        yield f"  rollback of version {half_taken_back}, half done: modelyard rollback {state.model_name}{options} finishes it"
    for change in _pending(target, state.model_name):
        yield f"  registry  not told yet: {_change_told(change)}"
        yield f"            {_who_tells_it(target, state.model_name)}"


def _described_arm(label: str, arm: Arm, counts: Counts | None) -> Iterator[str]:
    share = f"{'copy of ' if arm.mirrored else ''}{arm.share} %"
    how = "ready" if arm.ready else "failed" if arm.failed else "not ready"
    done = f"  {counts.answered:,} answered, {counts.rejected:,} rejected, {counts.failed:,} failed" if counts else ""
    yield f"  {label:<8}  version {arm.model.version:<4} {share:>13}  {how:<9}{done}".rstrip()
    for line in arm.reason.splitlines():
        yield f"            {line}"


def _last_rollout(target: ServingTarget, model_name: str) -> dict[str, Any]:
    """What the last rollout's notes say in short; empty if there was none."""
    notes = target.read_record(model_name) or {}
    rollout = notes.get("rollout") or {}
    if not rollout:
        return {}
    if isinstance(target, LocalTarget):
        at_work = is_held(settings.home(), model_name)
    else:
        at_work = (notes.get("holder") or {}).get("until", 0.0) > time.time()
    told = {name: rollout[name] for name in ("version", "digest", "phase", "decision", "outcome", "reasons") if name in rollout}
    return {
        **told,
        "interrupted": not told.get("outcome") and not at_work,
    }


def _how_to_go_on(state: ServingState, rollout: dict[str, Any], options: str) -> str:
    """About a rollout that no process is at work on, though it has not ended."""
    canary, again = state.canary, "run the release again to go on"
    if canary is None or canary.model.digest != rollout["digest"]:
        return f"interrupted: {again}"
    has = f"a copy of {canary.share} %" if canary.mirrored else f"{canary.share} %"
    return f"interrupted, has {has} of the traffic: {again}, or modelyard split {state.model_name} --end{options}"


def _half_promoted(target: ServingTarget, model_name: str) -> str:
    """The version that somebody began to put in charge by hand and did not; empty if there is none."""
    promoted = (target.read_record(model_name) or {}).get("promoted") or {}
    return str(promoted["model"]["version"]) if promoted and not promoted["answer"] else ""


def _half_taken_back(target: ServingTarget, state: ServingState) -> str:
    """The version that somebody began to take back and did not; empty if there is none."""
    from modelyard.components.rollout.rollback import is_half_done

    begun = (target.read_record(state.model_name) or {}).get("rolled_back") or {}
    return str(begun["from"]["version"]) if is_half_done(state, begun) else ""


def _taken_back(target: ServingTarget, state: ServingState) -> dict[str, Any]:
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


def _pending(target: ServingTarget, model_name: str) -> list[dict[str, str]]:
    """Changes that the registry could not be told."""
    return (target.read_record(model_name) or {}).get("pending") or []


def _change_told(change: dict[str, str]) -> str:
    if change["action"] == "reject":
        return f"version {change['version']} is to be sent back"
    return f"version {change['version']} is to be champion again, version {change['replacing']} to be sent back"


def _who_tells_it(target: ServingTarget, model_name: str) -> str:
    local = f"modelyard serve {model_name}" if isinstance(target, LocalTarget) else "promotion"
    return f"the next rollout, rollback or {local} tells it"


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


def _content(target: ServingTarget, states: list[ServingState]) -> dict[str, Any]:
    return {
        # Of the counts by latency (seconds) and score: each holds what is at most its edge, and one more the rest.
        "latency_edges": LATENCY_EDGES,
        "score_edges": SCORE_EDGES,
        "models": {state.model_name: _model_content(target, state) for state in states},
    }


def _model_content(target: ServingTarget, state: ServingState) -> dict[str, Any]:
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
