"""What a rollout needs of the registry: who is champion, the two versions verified and at hand, and changes made later.

A change that the registry could not be told, because it did not answer, is kept in the serving target's record; whoever works
on that model next makes it first (``finish_pending``).
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.registry import promotion, versions
from modelyard.components.rollout import record
from modelyard.components.serving.target import ServedModel, ServingTarget
from modelyard.components.tracking.connection import client, reachable


class CandidateRefused(VerificationFailed):
    """The version to roll out is not what the registry says it is."""


@dataclass(frozen=True)
class Released:
    """A registered version, verified and on this machine.

    Attributes:
        model: the version, as a serving target knows it.
        directory: its signed directory.
    """

    model: ServedModel
    directory: Path


@dataclass(frozen=True)
class RegistryView:
    """What the registry says.

    Attributes:
        candidate: the version to roll out.
        champion: the version in charge, if any.
        rejected: why the candidate was sent back; empty unless it was, and is no challenger since.
        judged_against: the version that the candidate was evaluated against; empty if there was none.
    """

    candidate: Released
    champion: Released | None
    rejected: str
    judged_against: str


def look_up(model_name: str, version: str, digest: str, uri: str, folder: str | os.PathLike[str]) -> RegistryView:
    """Reads the registry and verifies the candidate and the champion (signature, name and digest).

    Args:
        model_name: the registered model.
        version: the version to roll out.
        digest: the model digest that it must have.
        uri: where it must be kept.
        folder: where a version that is kept in an object store is downloaded to.

    Raises:
        InvalidInput: there is no such version, or its digest or place is another.
        CandidateRefused: the candidate is not what the registry says it is.
        VerificationFailed: the champion is not.
        NotAvailable: the registry or the store of models cannot be reached.
    """
    registry = client()
    with reachable():
        found = versions.get_version(registry, model_name, version)
        named = versions.aliases(registry, model_name)
        number = named.get(versions.CHAMPION)
        in_charge = versions.get_version(registry, model_name, number) if number else None
    for field, given, registered in (("digest", digest, found.tags["digest"]), ("uri", uri, found.source)):
        if given != registered:
            raise InvalidInput(field, given, f"version {version} of {model_name!r} has {registered}")
    try:
        candidate = _released(found, folder)
    except VerificationFailed as error:
        raise CandidateRefused(str(error)) from error
    judged_against = found.tags.get("judged_against", versions.NO_CHAMPION)
    return RegistryView(
        candidate=candidate,
        champion=_released(in_charge, folder) if in_charge else None,
        rejected="" if named.get(versions.CHALLENGER) == version else found.tags.get("rejected_reason", ""),
        judged_against="" if judged_against == versions.NO_CHAMPION else judged_against,
    )


def _released(version: Any, folder: str | os.PathLike[str]) -> Released:
    model = ServedModel(str(version.version), version.tags["digest"], version.source)
    return Released(model, versions.bring(version, folder))


def find(model_name: str, version: str = "") -> ServedModel:
    """A registered version, by default the champion, as a serving target knows it.

    Raises:
        InvalidInput: there is no such version, or no champion.
        NotAvailable: the registry cannot be reached.
    """
    check_model_name(model_name)
    registry = client()
    with reachable():
        number = version or versions.aliases(registry, model_name).get(versions.CHAMPION, "")
        if not number:
            raise InvalidInput("model", model_name, "the registry has no champion of this name; release one, or give --version")
        found = versions.get_version(registry, model_name, number)
    return ServedModel(str(found.version), found.tags["digest"], found.source)


def is_champion(model_name: str, model: ServedModel) -> bool:
    """Whether a version is the champion now."""
    registry = client()
    with reachable():
        return versions.aliases(registry, model_name).get(versions.CHAMPION, "") == model.version


REJECT, BRING_BACK = "reject", "bring back"


@dataclass(frozen=True)
class RegistryChange:
    """A change that follows what is served.

    Attributes:
        action: ``reject`` sends the version back; ``bring back`` makes it the champion again.
        version: the version.
        digest: its model digest.
        replacing: for ``bring back``, the version that is taken out of charge and sent back.
        reason: why.
    """

    action: str
    version: str
    digest: str
    replacing: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """JSON-ready values."""
        return asdict(self)


def make(model_name: str, change: RegistryChange) -> str:
    """Makes the change and returns what came of it; repeating it changes nothing.

    Raises:
        NotAvailable: the registry or the store of models cannot be reached.
    """
    try:
        if change.action == BRING_BACK:
            promotion.promote_model(model_name, change.version, change.digest, replacing=change.replacing)
            promotion.reject_challenger(model_name, change.replacing, change.reason)
            return f"version {change.version} is champion again, version {change.replacing} was sent back"
        promotion.reject_challenger(model_name, change.version, change.reason)
    except (promotion.PromotionRefused, InvalidInput, VerificationFailed) as error:
        # The registry has moved on: what it says now was decided by somebody who knew more.
        return f"the registry was left as it is: {error}"
    return f"version {change.version} was sent back"


def finish_pending(target: ServingTarget, model_name: str) -> list[str]:
    """Makes the changes of the registry that could not be made when they were due, and returns what came of each.

    Raises:
        NotAvailable: the registry still cannot be reached; the changes stay pending.
    """
    done = []
    while pending := record.read(target, model_name).pending:
        done.append(make(model_name, RegistryChange(**pending[0])))
        record.change(target, model_name, lambda kept: _take_out(kept, pending[0]))
    return done


def _take_out(kept: record.Record, made: dict[str, str]) -> None:
    kept.pending = [change for change in kept.pending if change != made]
