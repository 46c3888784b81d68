"""Takes back the last change of what is served, in one step, whatever the registry is doing.

| what stands | a rollback |
|---|---|
| a version is on trial | ends the trial: the version in charge gets all the traffic, the one on trial goes |
| none is | brings back the version that was in charge before, verified like any other |

The registry follows: the version that stays or comes back is champion, and the one that went carries ``rejected_reason``. If
MLflow does not answer, that is kept for whoever works on the model next.
"""

import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.registry import versions
from modelyard.components.rollout import record, registry_side
from modelyard.components.rollout.record import FINISHED, PROMOTING, ROLLING_BACK, Record
from modelyard.components.rollout.registry_side import RegistryChange
from modelyard.components.serving.target import RecordChanged, ServedModel, ServingState, ServingTarget, serves
from modelyard.components.serving.targets import open_target

# So long a rollback that ended a trial is taken for the same one when it is asked for again, and not for one more.
_SAME_SECONDS = 600.0


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        version: the version in charge now; empty if the trial of a first version was ended, so that none is.
        digest: its model digest.
        replaced: the version that lost its traffic: the one on trial, or else the one that was in charge.
        registry: what came of the registry; starts with ``pending:`` if it could not be told yet.
    """

    version: str
    digest: str
    replaced: str
    registry: str


def roll_back(model_name: str, target: ServingTarget | str = "local", reason: str = "", options: str = "") -> RolledBack:
    """Ends the trial that is under way, or else puts the version that was in charge before in charge again.

    A rollback that was killed is finished by the next one. One that is done is not undone by repeating it: the version that
    was taken out of charge comes back only by a rollout, or by ``modelyard promote NAME --version``. After the end of a trial a
    repetition changes nothing for ten minutes; later it is a rollback of its own.

    Args:
        model_name: the served model.
        target: where it is served, or its name; see ``open_target``.
        reason: why, for the registry.
        options: what the ``modelyard`` commands need to reach the target; see ``command_options``.

    Raises:
        InvalidInput: nothing is on trial, and nothing was served before.
        VerificationFailed: the version that was served before is not what it was; nothing is changed.
        NotAvailable: the target, or the store of models, cannot be reached.
    """
    check_model_name(model_name)
    if isinstance(target, str):
        target = open_target(target)
    verified: set[str] = set()
    while True:
        notes, state = record.read(target, model_name), target.state(model_name)
        intent = notes.rolled_back
        trial = on_trial(notes, state)
        if not trial and intent.get("answer") and _is_as_left(state, intent):
            registry = intent["answer"]["registry"] if not notes.pending else _settle(target, model_name, [])
            return _answer(target, model_name, intent, registry)
        if not (is_half_done(state, intent) and _is_over(notes)):
            intent = _end_trial(notes, state, trial, reason) if trial else _bring_back(model_name, state, reason, options)
        if not intent["trial"] and intent["to"]["digest"] not in verified:
            _verify(model_name, ServedModel(**intent["to"]))
            verified.add(intent["to"]["digest"])
        # Written first: whoever repeats a rollback that was killed must not take the version brought back for the one before.
        notes.rolled_back, notes.promoted = intent, {}
        notes.end_rollout("fail", "rolled_back", f"it was rolled back by hand: {intent['reason']}", "A rollback ended it.")
        try:
            record.write(target, model_name, notes)
            break
        except RecordChanged:
            continue
    _put_in_charge(target, model_name, intent)
    return _answer(target, model_name, intent, _settle(target, model_name, [RegistryChange(**intent["change"])]))


def _is_over(notes: Record) -> bool:
    return notes.rollout is None or notes.rollout.phase == FINISHED


def on_trial(notes: Record, state: ServingState) -> ServedModel | None:
    """The version on trial, or about to be; None if there is none."""
    if state.canary is not None:
        return state.canary.model
    if notes.promoted and not notes.promoted["answer"] and not _is_in_charge(state, notes.promoted["model"]):
        return ServedModel(**notes.promoted["model"])
    rollout = notes.rollout
    if rollout is None or _is_over(notes) or (state.stable is not None and state.stable.model.digest == rollout.digest):
        return None
    # Without a canary, a rollout that nobody is at work on any more was ended by hand, unless it had decided already.
    at_work = bool(notes.holder) and notes.holder.get("until", 0.0) > time.time()
    return rollout.model if at_work or rollout.phase in (PROMOTING, ROLLING_BACK) else None


def _is_in_charge(state: ServingState, model: dict[str, str] | None) -> bool:
    if model is None:
        return state.stable is None
    return serves(state.stable, model["digest"])


def _is_as_left(state: ServingState, intent: dict[str, Any]) -> bool:
    """Whether what is served is what a finished rollback left, so that asking for it again is a repetition."""
    if not _is_in_charge(state, intent["to"]):
        return False
    if intent["trial"]:
        return time.time() - intent["at"] < _SAME_SECONDS
    return state.previous == ServedModel(**intent["from"])


def is_half_done(state: ServingState, intent: dict[str, Any]) -> bool:
    """Whether a rollback was begun and is not finished, and nobody has put another version in charge since."""
    if not intent or intent.get("answer"):
        return False
    return _is_in_charge(state, intent["from"]) or _is_in_charge(state, intent["to"])


def _end_trial(notes: Record, state: ServingState, trial: ServedModel, reason: str) -> dict[str, Any]:
    stays = asdict(state.stable.model) if state.stable else None
    reason = reason or "its trial was ended by hand"
    change = RegistryChange(registry_side.REJECT, trial.version, trial.digest, "", reason)
    rollout, promoted = notes.rollout, notes.promoted
    asked = rollout is not None and rollout.digest == trial.digest and rollout.registry_asked
    by_hand = promoted and not promoted["answer"] and promoted["model"]["digest"] == trial.digest
    if stays and (asked or by_hand):
        # The registry may have made it the champion already.
        change = RegistryChange(registry_side.BRING_BACK, stays["version"], stays["digest"], trial.version, reason)
    return _intent(asdict(trial), stays, reason, change, trial=True)


def _bring_back(model_name: str, state: ServingState, reason: str, options: str) -> dict[str, Any]:
    if state.stable is None or state.previous is None:
        found = (
            f"version {state.stable.model.version} is the first that is served here" if state.stable else "nothing is served"
        )
        another = f"promote {model_name} --version VERSION{options}" if options else f"serve {model_name} --version VERSION"
        raise InvalidInput(
            "model_name", model_name, f"there is no version to bring back, {found}: choose one with modelyard {another}"
        )
    goes, comes, reason = state.stable.model, state.previous, reason or "rolled back by hand"
    change = RegistryChange(registry_side.BRING_BACK, comes.version, comes.digest, goes.version, reason)
    return _intent(asdict(goes), asdict(comes), reason, change, trial=False)


def _intent(
    goes: dict[str, str], stays: dict[str, str] | None, reason: str, change: RegistryChange, *, trial: bool
) -> dict[str, Any]:
    """What a rollback is about to do, as the record keeps it."""
    return {
        "from": goes,
        "to": stays,
        "trial": trial,
        "at": time.time(),
        "reason": reason,
        "change": change.to_json(),
        "answer": None,
    }


def _put_in_charge(target: ServingTarget, model_name: str, intent: dict[str, Any]) -> None:
    if intent["trial"]:
        target.roll_back(model_name)
        # A rollout that was just promoting it may have been a moment faster.
        if intent["to"] is None or _is_in_charge(target.state(model_name), intent["to"]):
            return
    target.restore(model_name, ServedModel(**intent["to"]))


def _verify(model_name: str, model: ServedModel) -> None:
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        versions.fetch_verified(model_name, model.version, model.digest, model.uri, folder)


def _settle(target: ServingTarget, model_name: str, changes: list[RegistryChange]) -> str:
    """Makes the changes of the registry, those left from before first, or keeps them; returns what came of the last."""

    def add(notes: Record) -> None:
        notes.pending += [change.to_json() for change in changes if change.to_json() not in notes.pending]

    record.change(target, model_name, add)
    try:
        done = registry_side.finish_pending(target, model_name)
        return done[-1] if done else "it had been told already"
    except NotAvailable as error:
        return f"pending: {error}"


def _answer(target: ServingTarget, model_name: str, intent: dict[str, Any], registry: str) -> RolledBack:
    stays = intent["to"] or {"version": "", "digest": ""}
    answer = RolledBack(stays["version"], stays["digest"], intent["from"]["version"], registry)

    def keep(notes: Record) -> None:
        notes.rolled_back = {**intent, "answer": asdict(answer)}

    record.change(target, model_name, keep)
    return answer
