"""Brings back the version that was served before, in one step, whatever the registry is doing.

The serving target knows which version that was and where it is kept; it is verified like any other. The registry follows: the
version is champion again, and the one taken out of charge carries ``rejected_reason``. If MLflow does not answer, that is kept
for whoever works on the model next.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.rollout import record, registry_side
from modelyard.components.rollout.record import FINISHED, Record
from modelyard.components.rollout.registry_side import RegistryChange
from modelyard.components.serving.target import ServedModel, ServingState, ServingTarget
from modelyard.components.serving.targets import open_target
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import uris


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        version: the version in charge now.
        digest: its model digest.
        replaced: the version that was in charge.
        registry: what came of the registry; starts with ``pending:`` if it could not be told yet.
    """

    version: str
    digest: str
    replaced: str
    registry: str


def roll_back(model_name: str, target: ServingTarget | str = "local", reason: str = "") -> RolledBack:
    """Puts the version that was in charge before in charge again; a canary goes.

    A rollback that was killed is finished by the next one. One that is done is not undone by repeating it: the version that
    was taken out of charge comes back only by a rollout, or by ``modelyard serve NAME --version``.

    Args:
        model_name: the served model.
        target: where it is served, or its name; see ``open_target``.
        reason: why, for the registry.

    Raises:
        InvalidInput: nothing was served before.
        VerificationFailed: the version that was served before is not what it was; nothing is changed.
        NotAvailable: the target, or the store of models, cannot be reached.
    """
    check_model_name(model_name)
    if isinstance(target, str):
        target = open_target(target)
    notes, state = record.read(target, model_name), target.state(model_name)
    intent = notes.rolled_back
    if intent.get("answer") and _is_in_charge(state, intent["to"]) and state.previous == ServedModel(**intent["from"]):
        registry = intent["answer"]["registry"] if not notes.pending else _settle(target, model_name, [])
        return _answer(target, model_name, registry)
    if not intent or intent.get("answer") or not (_is_in_charge(state, intent["from"]) or _is_in_charge(state, intent["to"])):
        intent = _intend(model_name, state, reason)
    wanted = ServedModel(**intent["to"])
    _verify(model_name, wanted)
    # Written first: whoever repeats a rollback that was killed must not take the version brought back for the one before.
    notes.rolled_back = intent
    _stop_rollout(notes)
    record.write(target, model_name, notes)
    target.restore(model_name, wanted)
    change = RegistryChange(
        registry_side.BRING_BACK, wanted.version, wanted.digest, intent["from"]["version"], intent["reason"]
    )
    return _answer(target, model_name, _settle(target, model_name, [change]))


def _is_in_charge(state: ServingState, model: dict[str, str]) -> bool:
    return state.stable is not None and state.stable.model.digest == model["digest"]


def _intend(model_name: str, state: ServingState, reason: str) -> dict[str, Any]:
    if state.stable is None or state.previous is None:
        found = (
            f"version {state.stable.model.version} is the first that is served here" if state.stable else "nothing is served"
        )
        raise InvalidInput(
            "model_name",
            model_name,
            f"there is no version to bring back, {found}: choose one with modelyard serve {model_name} --version",
        )
    return {
        "from": asdict(state.stable.model),
        "to": asdict(state.previous),
        "reason": reason or "rolled back by hand",
        "answer": None,
    }


def _verify(model_name: str, model: ServedModel) -> None:
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        try:
            directory = uris.download(model.uri, Path(folder, "model"))
        except InvalidInput as error:
            raise VerificationFailed(
                f"version {model.version} of {model_name!r} is gone from the store of models: {error}"
            ) from error
        verify_model(directory, model_name=model_name, digest=model.digest)


def _stop_rollout(notes: Record) -> None:
    """Takes the record out of a running rollout's hands, which stops at its next look."""
    notes.holder = {}
    if notes.rollout is not None and notes.rollout.phase != FINISHED:
        notes.rollout.phase, notes.rollout.decision, notes.rollout.outcome = FINISHED, "inconclusive", "rolled_back"
        notes.rollout.reasons = ["a rollback was asked for while it was on trial"]


def _settle(target: ServingTarget, model_name: str, changes: list[RegistryChange]) -> str:
    """Makes the changes of the registry, those left from before first, or keeps them; returns what came of the last."""
    notes = record.read(target, model_name)
    notes.pending += [change.to_json() for change in changes if change.to_json() not in notes.pending]
    record.write(target, model_name, notes)
    try:
        done = registry_side.finish_pending(target, model_name)
        return done[-1] if done else "it had been told already"
    except NotAvailable as error:
        return f"pending: {error}"


def _answer(target: ServingTarget, model_name: str, registry: str) -> RolledBack:
    notes = record.read(target, model_name)
    intent = notes.rolled_back
    answer = RolledBack(intent["to"]["version"], intent["to"]["digest"], intent["from"]["version"], registry)
    notes.rolled_back = {**intent, "answer": asdict(answer)}
    record.write(target, model_name, notes)
    return answer
