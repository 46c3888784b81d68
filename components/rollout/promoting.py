"""Puts a version in charge by hand: the one on trial, without waiting for its rollout to decide, or another registered one.

| step | so that |
|---|---|
| the record says what is about to be done, and takes a running rollout out of its process's hands | a repetition goes on |
| a version that is not on trial is started without traffic | the version in charge stays if it does not become ready |
| it is asked for the golden rows, if it can be reached from here | it scores here as where it was made |
| the registry makes it the champion, in place of the one it was judged against | of two promotions one wins |
| the target gives it all the traffic | the version that was in charge is what a rollback brings back |

A rollback wins over a promotion at any moment before the last.
"""

import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from modelyard.components.announcements import announce
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import PromotionRefused, check_may_follow, note_promotion, promote_model
from modelyard.components.rollout import record, registry_side
from modelyard.components.rollout.golden import golden_fault
from modelyard.components.rollout.record import Record, TakenOver
from modelyard.components.rollout.registry_side import RegistryChange
from modelyard.components.rollout.rollback import on_trial
from modelyard.components.serving.target import (
    Arm,
    RecordChanged,
    ServedModel,
    ServingState,
    ServingTarget,
    TargetChanged,
    serves,
)
from modelyard.components.serving.targets import open_target


@dataclass(frozen=True)
class Promoted:
    """What a promotion did.

    Attributes:
        version: the version in charge now.
        digest: its model digest.
        replaced: the version that was in charge before; empty if none was.
    """

    version: str
    digest: str
    replaced: str


def promote(model_name: str, version: str = "", target: ServingTarget | str = "local", reason: str = "") -> Promoted:
    """Puts the version on trial, or the registered version of this number, in charge with all the traffic.

    A rollout that is under way stops. One that was killed is finished by the next one, and repeating it changes nothing.

    Args:
        model_name: the served model.
        version: the registered version; empty for the one on trial.
        target: where it is served, or its name; see ``open_target``.
        reason: why, for the registry.

    Raises:
        InvalidInput: nothing is on trial, or there is no such version.
        PromotionRefused: another version is champion than the one it was judged against; nothing is changed.
        TargetChanged: the promotion of another version is half done, or a rollback took this one back.
        VerificationFailed: the stored model is not what the registry says it is; the version in charge stays.
        NotAvailable: it does not become ready, or scores its golden rows otherwise than it should, and the version in charge
            stays; or the target or the registry cannot be reached, and a repetition goes on.
    """
    check_model_name(model_name)
    if isinstance(target, str):
        target = open_target(target)
    # What a rollback could not tell the registry comes before asking it who is champion.
    for change in registry_side.finish_pending(target, model_name):
        print(f"Registry, left from before: {change}.")
    named = registry_side.find(model_name, version) if version else None
    intent = _announced(target, model_name, named, reason or "put in charge by hand")
    if intent["answer"]:
        return Promoted(**intent["answer"])
    return _Promotion(target, model_name, intent).finish()


def _announced(target: ServingTarget, model_name: str, named: ServedModel | None, reason: str) -> dict[str, Any]:
    """What is to be done, or was done already, as the record says it now."""
    while True:
        notes, state = record.read(target, model_name), target.state(model_name)
        intent = _known(model_name, notes, state, named)
        if intent.get("answer"):
            return intent
        if not intent:
            model = named or on_trial(notes, state)
            if model is None:
                raise InvalidInput(
                    "version", "", f"no version of {model_name!r} is on trial: name the registered version to put in charge"
                )
            if serves(state.stable, model.digest) and registry_side.is_champion(model_name, model):
                return {"answer": asdict(Promoted(model.version, model.digest, ""))}
            canary = state.canary
            if canary is not None and serves(canary, model.digest) and not canary.ready:
                raise NotAvailable(_cannot(model_name, canary))
            check_may_follow(model_name, model.version)
            before = state.stable.model if state.stable and not serves(state.stable, model.digest) else None
            intent = {
                "token": secrets.token_hex(8),
                "at": time.time(),
                "model": asdict(model),
                "from": asdict(before) if before else None,
                "reason": reason,
                "answer": None,
            }
        notes.promoted = intent
        _stop_rollout(notes, intent)
        with suppress(RecordChanged):
            record.write(target, model_name, notes)
            return intent


def _known(model_name: str, notes: Record, state: ServingState, named: ServedModel | None) -> dict[str, Any]:
    """The promotion in the record, if it is the one that is asked for; else empty."""
    intent = notes.promoted
    if not intent:
        return {}
    same = named is None or named.digest == intent["model"]["digest"]
    if not intent["answer"]:
        if not same:
            version = intent["model"]["version"]
            raise TargetChanged(
                f"the promotion of version {version} of {model_name!r} is half done: finish it by repeating it for that "
                "version, or take it back by a rollback"
            )
        return intent
    done = same and on_trial(notes, state) is None and serves(state.stable, intent["model"]["digest"])
    return intent if done else {}


def _stop_rollout(notes: Record, intent: dict[str, Any]) -> None:
    model = intent["model"]
    mine = notes.rollout is not None and notes.rollout.digest == model["digest"]
    whom = "it" if mine else f"version {model['version']}"
    notes.end_rollout(
        "inconclusive",
        "promoted" if mine else "rolled_back",
        f"{whom} was put in charge by hand: {intent['reason']}",
        "A promotion by hand ended it.",
    )


class _Promotion:
    """One promotion, as the record says it."""

    def __init__(self, target: ServingTarget, model_name: str, intent: dict[str, Any]) -> None:
        self._target, self._name, self._intent = target, model_name, intent
        self._model = ServedModel(**intent["model"])
        self._before = ServedModel(**intent["from"]) if intent["from"] else None

    def finish(self) -> Promoted:
        """Does what is not done yet, and returns what was done in all."""
        try:
            self._start()
            self._check(record.read(self._target, self._name))
            promote_model(self._name, self._model.version, self._model.digest)
            note_promotion(self._name, self._model.version, self._intent["reason"])
            self._put_in_charge()
            return self._answer()
        except TakenOver as taken:
            self._undo(taken.record)
            raise
        except (PromotionRefused, InvalidInput, VerificationFailed) as error:
            self._withdraw(str(error))
            raise

    def _start(self) -> None:
        """Sees to it that the version is there and ready, without traffic if it is not on trial."""
        state = self._target.state(self._name)
        if serves(state.stable, self._model.digest):
            return
        if state.canary is not None and not serves(state.canary, self._model.digest):
            self._target.roll_back(self._name)
        try:
            self._target.start_canary(self._name, self._model)
        except NotAvailable:
            arm = self._target.state(self._name).canary
            if arm is not None and serves(arm, self._model.digest) and not arm.ready:
                self._give_up(arm)
            raise
        arm = self._target.state(self._name).canary
        if arm is None or not serves(arm, self._model.digest):
            self._check(record.read(self._target, self._name))
            raise TargetChanged(f"somebody else took version {self._model.version} of {self._name!r} away: try again")
        if not arm.ready:
            self._give_up(arm)
        if fault := self._fault(arm):
            self._give_up(replace(arm, reason=fault))

    def _fault(self, arm: Arm) -> str:
        """What is wrong with the version's answers to the golden rows; empty as well if it cannot be asked, which is said."""
        model = self._model
        with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
            try:
                directory = versions.fetch_verified(self._name, model.version, model.digest, model.uri, folder)
                return golden_fault(arm, self._name, directory, patient=False)
            except NotAvailable as error:
                announce(f"Version {model.version} is put in charge without its golden rows: it cannot be asked here, {error}")
                return ""

    def _put_in_charge(self) -> None:
        try:
            self._target.promote(self._name, self._model.digest)
        except NotAvailable:
            arm = self._target.state(self._name).canary
            if arm is not None and serves(arm, self._model.digest) and arm.failed:
                # Nobody gets the traffic of one that died since it was asked for.
                self._give_up(arm)
            raise
        except TargetChanged:
            self._check(record.read(self._target, self._name))
            # The registry has decided; whoever took the canary away meanwhile did not know.
            self._target.restore(self._name, self._model)

    def _give_up(self, arm: Arm) -> NoReturn:
        reason = _cannot(self._name, arm)
        if self._before is not None and registry_side.is_champion(self._name, self._model):
            self._bring_back_in_registry(self._before, reason)
        self._withdraw(reason)
        raise NotAvailable(reason)

    def _withdraw(self, reason: str) -> None:
        """Leaves everything to the version in charge, and the record without this promotion."""
        if serves(self._target.state(self._name).canary, self._model.digest):
            self._target.roll_back(self._name)

        def forget(notes: Record) -> None:
            if notes.promoted.get("token") != self._intent["token"]:
                return
            notes.promoted = {}
            rollout = notes.rollout
            if rollout is not None and rollout.digest == self._model.digest and rollout.outcome == "promoted":
                rollout.outcome = "rolled_back"
                rollout.reasons.append(f"that was refused: {reason}")

        record.change(self._target, self._name, forget)

    def _answer(self) -> Promoted:
        answer = Promoted(self._model.version, self._model.digest, self._before.version if self._before else "")

        def keep(notes: Record) -> None:
            self._check(notes)
            notes.promoted = {**self._intent, "answer": asdict(answer)}

        record.change(self._target, self._name, keep)
        return answer

    def _check(self, notes: Record) -> None:
        if notes.promoted.get("token") != self._intent["token"]:
            raise TakenOver(f"a rollback of {self._name!r} took this promotion back", notes)

    def _undo(self, kept: Record) -> None:
        """Undoes what this process did since a rollback took the promotion back."""
        back = kept.rolled_back.get("to") if kept.rolled_back.get("at", 0.0) >= self._intent["at"] else None
        state = self._target.state(self._name)
        if serves(state.canary, self._model.digest):
            self._target.roll_back(self._name)
        elif back and serves(state.stable, self._model.digest):
            self._target.restore(self._name, ServedModel(**back))
        if back:
            self._bring_back_in_registry(ServedModel(**back), kept.rolled_back["reason"])

    def _bring_back_in_registry(self, model: ServedModel, reason: str) -> None:
        change = RegistryChange(registry_side.BRING_BACK, model.version, model.digest, self._model.version, reason)
        record.change(self._target, self._name, lambda notes: notes.pending.append(change.to_json()))
        registry_side.finish_pending(self._target, self._name)


def _cannot(model_name: str, arm: Arm) -> str:
    return f"version {arm.model.version} of {model_name!r} cannot be put in charge: {arm.reason or 'it is not ready'}"
