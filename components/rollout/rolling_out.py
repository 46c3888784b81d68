"""Rolls a registered version out at a serving target, and writes down how it went: report, timeline, MLflow run."""

import json
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from modelyard.components import settings
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable, VerificationFailed
from modelyard.components.rollout.engine import Rollout
from modelyard.components.rollout.plan import WITHOUT_TRAFFIC, Plan, parse_plan
from modelyard.components.rollout.record import NO_SHARE, PROMOTING, Notes, Progress, TakenOver, is_held, lock_path
from modelyard.components.rollout.registry_side import CandidateRefused, RegistryView, Released, finish_pending, look_up
from modelyard.components.rollout.report import render_report, timeline_of
from modelyard.components.rollout.without_traffic import page_of, settle_without_traffic
from modelyard.components.serving.target import ServedModel, ServingTarget, TargetChanged
from modelyard.components.serving.targets import KSERVE, LOCAL, command_options, open_target
from modelyard.components.storage.files import write_text
from modelyard.components.storage.locks import exclusive_lock

_LONGEST_TAG = 5000
_LOOKED_AT_SECONDS = 0.1
_LEASE_SECONDS = 90.0
# A pod that lost its node has to be given another one, and to fetch its model there.
_CLUSTER_GRACE_SECONDS = 300.0


class Cancelled(ModelyardError):
    """The rollout was told to stop; its canary gets no traffic until it goes on."""


@dataclass(frozen=True)
class RolledOut:
    """How a rollout ended.

    Attributes:
        decision: ``pass``, ``fail`` or ``inconclusive``.
        outcome: ``promoted`` or ``rolled_back``; without traffic ``promoted`` or ``registered``.
        reasons: why, in one line.
    """

    decision: str
    outcome: str
    reasons: str


def rollout_model(
    report: str | os.PathLike[str],
    timeline: str | os.PathLike[str],
    *,
    model_name: str,
    version: str,
    digest: str,
    uri: str,
    target: str = "local",
    serving: Mapping[str, Any] | None = None,
    run_id: str = "",
    **parameters: Any,
) -> RolledOut:
    """Rolls a version out and writes the report.

    Args:
        report: where the HTML page goes.
        timeline: where the timeline goes, JSON.
        model_name: the registered model.
        version: the version to roll out.
        digest: its model digest.
        uri: where the registry says it is kept.
        target: where it is served, see ``open_target``; ``registry`` or ``none`` if nowhere, see ``without_traffic``.
        serving: how ``kserve`` serves it; see ``parse_placement``.
        run_id: MLflow run that gets the decision and the report; empty to leave MLflow's runs alone.
        parameters: steps, seconds, samples and limits; see ``parse_plan``.

    Raises:
        InvalidInput: a parameter cannot be used as given.
        TargetChanged: it cannot begin on what is served now, or another rollout is under way.
        VerificationFailed: the champion is not what the registry says it is. A version that is not is rolled back.
        NotAvailable: the target or the registry cannot be reached; a repetition goes on.
        Cancelled: the process was told to stop; a repetition goes on.
    """
    check_model_name(model_name)
    plan = parse_plan(**parameters)
    if target == KSERVE and "ready_grace_seconds" not in parameters["limits"]:
        plan = replace(plan, limits=replace(plan.limits, ready_grace_seconds=_CLUSTER_GRACE_SECONDS))
    if target in WITHOUT_TRAFFIC:
        outcome, reason = settle_without_traffic(target, model_name, version, digest)
        write_text(report, page_of(model_name, version, outcome, reason))
        write_text(timeline, json.dumps({"version": version, "digest": digest, "outcome": outcome, "looks": []}) + "\n")
        return RolledOut("pass", outcome, reason)
    progress = run_rollout(
        open_target(target, serving, watched=True),
        plan,
        model_name=model_name,
        version=version,
        digest=digest,
        uri=uri,
        on_this_machine=target == LOCAL,
        options=command_options(target, serving),
    )
    page = render_report(model_name, progress)
    content = timeline_of(model_name, progress)
    write_text(report, page)
    write_text(timeline, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    if run_id:
        _log(run_id, progress, page, content)
    return RolledOut(progress.decision, progress.outcome, "; ".join(progress.reasons))


def run_rollout(
    target: ServingTarget,
    plan: Plan,
    *,
    model_name: str,
    version: str,
    digest: str,
    uri: str,
    on_this_machine: bool = False,
    options: str = "",
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    **details: Any,
) -> Progress:
    """Rolls a version out at an open target; errors as ``rollout_model``.

    Args:
        target: where the model is served.
        plan: what to do.
        model_name: the registered model.
        version: the version to roll out.
        digest: its model digest.
        uri: where the registry says it is kept.
        on_this_machine: whether every rollout of this target runs on this machine, so that a lock tells who is alive.
        options: what the ``modelyard`` commands need to reach the target.
        now: seconds since 1970.
        sleep: waits for a number of seconds.
        details: further arguments of ``Rollout``.
    """
    if plan.shadow_seconds and not target.mirrors:
        raise InvalidInput("shadow_seconds", plan.shadow_seconds, "the target cannot copy traffic: give 0")
    notes = Notes(target, model_name, token=secrets.token_hex(8), lease_seconds=_LEASE_SECONDS, now=now)
    with _told_to_stop(model_name), _alone(model_name) if on_this_machine else nullcontext():
        earlier = notes.claim(sleep, alone=on_this_machine)
        model = ServedModel(version, digest, uri)

        def rollout(view: RegistryView) -> Rollout:
            return Rollout(target, model_name, view, plan, notes, now=now, sleep=sleep, options=options, **details)

        with notes.kept_alive():
            try:
                for change in finish_pending(target, model_name):
                    print(f"Registry, left from before: {change}.")
                with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
                    view = look_up(model_name, version, digest, uri, folder)
                    return rollout(view).run(earlier)
            except CandidateRefused as error:
                return rollout(RegistryView(Released(model, Path()), None, "", "")).refuse(earlier, error)
            except VerificationFailed:
                # With a champion that nobody can vouch for there is nothing to compare with.
                canary = target.state(model_name).canary
                if earlier is not None and canary is not None and canary.model.digest == earlier.digest == digest:
                    target.roll_back(model_name)
                raise
            except Cancelled as cancelled:
                raise Cancelled(f"{cancelled}: {_hold(target, model_name, notes, digest, now, options)}") from cancelled
            finally:
                # A target that cannot be reached forgets the claim by itself.
                with suppress(NotAvailable):
                    notes.release()


def _hold(target: ServingTarget, model_name: str, notes: Notes, digest: str, now: Callable[[], float], options: str) -> str:
    """Takes the traffic from the rollout's own canary, for nobody judges it now; returns what is left, in words."""
    way_on = f"Run it again to go on, or end it with: modelyard split {model_name} --end{options}"
    try:
        kept, canary = notes.kept(), target.state(model_name).canary
        if kept is None or kept.digest != digest or canary is None or canary.model.digest != digest or kept.phase == PROMOTING:
            return f"what is served stays as it is. {way_on}"
        # Written first: a share that the record does not explain is somebody else's.
        kept.asked = NO_SHARE
        notes.write(kept)
        target.set_share(model_name, 0)
        kept.in_force = NO_SHARE
        kept.events.append({"at": round(now(), 3), "text": "It was told to stop: the canary gets no traffic until it goes on."})
        notes.write(kept)
    except TakenOver:
        return "somebody else took over"
    except (NotAvailable, TargetChanged) as error:
        return f"what is served could not be changed ({error}). {way_on}"
    return f"its canary gets no traffic until it goes on. {way_on}"


@contextmanager
def _alone(model_name: str) -> Iterator[None]:
    """Holds the lock of this model's rollouts on this machine, which the kernel releases when its holder dies."""
    path = lock_path(settings.home(), model_name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def refuse() -> None:
        # Whoever only looked whether it is held, held it for a moment himself.
        time.sleep(_LOOKED_AT_SECONDS)
        if is_held(settings.home(), model_name):
            raise TargetChanged(f"another rollout of {model_name!r} is under way on this machine: wait for its end")

    with exclusive_lock(path, refuse):
        yield


@contextmanager
def _told_to_stop(model_name: str) -> Iterator[None]:
    """Lets a cancelled rollout take the traffic from its canary and say so, instead of ending without a word."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # Told twice, it is still at it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Cancelled(f"the rollout of {model_name!r} was told to stop")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log(run_id: str, progress: Progress, page: str, content: dict[str, Any]) -> None:
    """Adds the decision, its reasons and the report to an MLflow run."""
    from modelyard.components.tracking.connection import client, reachable

    tracking = client()
    from mlflow.entities import RunTag

    tags = {
        "modelyard.rollout": progress.decision,
        "modelyard.outcome": progress.outcome,
        "modelyard.rollout_reasons": "; ".join(progress.reasons)[:_LONGEST_TAG],
    }
    try:
        with reachable():
            tracking.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            tracking.log_text(run_id, page, "rollout/report.html")
            tracking.log_dict(run_id, content, "rollout/timeline.json")
    except NotAvailable as error:
        # The rollout is done, and repeating it would not do it better.
        print(f"{error}; the run {run_id} lacks the rollout's report.")
