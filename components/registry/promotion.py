"""Making a version the champion, so that of promotions at the same moment one wins, and sending a challenger back.

MLflow moves an alias without asking what it names now. What it does do atomically is number the versions of a model. So each
promotion first adds a version to a registered model of its own, ``NAME.promotions``: a log that says which version
follows which, and which entry it was written after. An entry counts only if it got the very next number after the entry that
its writer had seen last; of promotions at the same moment that is one. Only then are the aliases moved, and a process that
finds them not moved yet (its writer was killed) moves them first. Besides, a version can only follow the champion that it was
judged against, so the loser of a race stays refused when it is run again.

What remains: a writer that stalls between two of its own requests for as long as another whole promotion takes, and dies before
it looks again, can leave ``champion`` on its own version, which had been champion properly. The log shows it.
Aliases moved by hand in MLflow are taken as they are.
"""

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.components.artifacts.names import PROMOTIONS_SUFFIX, check_model_name
from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.registry import versions
from modelyard.components.tracking.connection import client, reachable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class PromotionRefused(ModelyardError):
    """The champion is not the one that the version was judged against, or another promotion came first."""


@dataclass(frozen=True)
class _Entry:
    """One promotion in the log. ``after`` is the entry that its writer had seen last."""

    number: int
    after: int
    version: str
    replaces: str
    done: bool

    @property
    def counts(self) -> bool:
        return self.number == self.after + 1


def promote_model(model_name: str, version: str, digest: str, *, replacing: str = "") -> str:
    """Makes a version the champion; the outgoing one gets the alias and the tag ``previous``. Repeating it changes nothing.

    Args:
        model_name: the registered model.
        version: the version to promote, whose stored model is verified first.
        digest: its model digest.
        replacing: version that must be champion now, or ``none``; empty for the one the version was judged against.

    Returns:
        The version that was champion before; empty if there was none.

    Raises:
        PromotionRefused: another version is champion now, or another promotion came first.
        InvalidInput: there is no such version, or its digest is another.
        VerificationFailed: the stored model is not what the registry says it is.
        NotAvailable: the registry or the store of models cannot be reached.
    """
    check_model_name(model_name)
    registry = client()
    with reachable():
        candidate = versions.get_version(registry, model_name, version)
    if candidate.tags["digest"] != digest:
        raise InvalidInput("digest", digest, f"version {version} of {model_name!r} has {candidate.tags['digest']}")
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        versions.bring(candidate, folder)
    with reachable():
        log = _read_log(registry, model_name)
        _finish(registry, model_name, log)
        champion = versions.aliases(registry, model_name).get(versions.CHAMPION, "")
        if champion == version:
            last = _last_that_counts(log)
            return last.replaces if last and last.version == version else ""
        _check_follows(candidate, champion, replacing)
        entry = _append(registry, model_name, version, champion, after=log[-1].number if log else 0)
        if not entry.counts:
            raise PromotionRefused(
                f"another promotion of {model_name!r} came first: evaluate version {version} against its version"
            )
        _finish(registry, model_name, [entry])
    return champion


def check_may_follow(model_name: str, version: str) -> None:
    """Makes sure that a version is the champion, or would follow the one that it was judged against.

    Raises:
        PromotionRefused: another version is champion now.
        InvalidInput: there is no such version.
        NotAvailable: the registry cannot be reached.
    """
    check_model_name(model_name)
    registry = client()
    with reachable():
        champion = versions.aliases(registry, model_name).get(versions.CHAMPION, "")
        if champion != version:
            _check_follows(versions.get_version(registry, model_name, version), champion)


def note_promotion(model_name: str, version: str, reason: str) -> None:
    """Keeps why somebody put a version in charge by hand, as its tag ``promoted_reason``.

    Raises:
        NotAvailable: the registry cannot be reached.
    """
    registry = client()
    with reachable():
        versions.set_tag(registry, model_name, version, "promoted_reason", reason)


def reject_challenger(model_name: str, version: str, reason: str) -> None:
    """Sends a version back: it is no longer the challenger, nor ``previous``, and its tag ``rejected_reason`` says why.

    Raises:
        InvalidInput: there is no such version, or it is the champion.
        NotAvailable: the registry cannot be reached.
    """
    check_model_name(model_name)
    registry = client()
    with reachable():
        versions.get_version(registry, model_name, version)
        named = versions.aliases(registry, model_name)
        if named.get(versions.CHAMPION) == version:
            raise InvalidInput("version", version, "it is the champion; promote another version in its place")
        versions.set_tag(registry, model_name, version, "rejected_reason", reason)
        if named.get(versions.CHALLENGER) == version:
            registry.delete_registered_model_alias(model_name, versions.CHALLENGER)
        if named.get(versions.PREVIOUS) == version:
            # Nobody is to go back to it.
            registry.delete_model_version_tag(model_name, version, versions.PREVIOUS)
            registry.delete_registered_model_alias(model_name, versions.PREVIOUS)


def _check_follows(candidate: Any, champion: str, replacing: str = "") -> None:
    expected, found = replacing or candidate.tags.get("judged_against", versions.NO_CHAMPION), champion or versions.NO_CHAMPION
    if found != expected:
        raise PromotionRefused(
            f"version {candidate.version} of {candidate.name!r} was judged against {_called(expected)}, but the champion is "
            f"{_called(found)} now: evaluate it against that one"
        )


def _called(version: str) -> str:
    return "no champion" if version == versions.NO_CHAMPION else f"version {version}"


def _read_log(registry: "MlflowClient", model_name: str) -> list[_Entry]:
    return [_entry(version) for version in versions.all_versions(registry, model_name + PROMOTIONS_SUFFIX)]


def _entry(version: Any) -> _Entry:
    tags = version.tags
    return _Entry(int(version.version), int(tags["after"]), tags["version"], tags["replaces"], "done" in tags)


def _last_that_counts(log: list[_Entry]) -> _Entry | None:
    return next((entry for entry in reversed(log) if entry.counts), None)


def _append(registry: "MlflowClient", model_name: str, version: str, champion: str, *, after: int) -> _Entry:
    from mlflow.exceptions import MlflowException

    name = model_name + PROMOTIONS_SUFFIX
    try:
        registry.create_registered_model(
            name, description=f"The promotions of {model_name}, one after another. Written by promote_model; leave as it is."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"after": str(after), "version": version, "replaces": champion}
    return _entry(registry.create_model_version(name, f"models:/{model_name}/{version}", tags=tags, await_creation_for=0))


def _finish(registry: "MlflowClient", model_name: str, log: list[_Entry]) -> None:
    """Moves aliases and tags to where the last promotion in the log that counts wants them."""
    entry = _last_that_counts(log)
    if entry is None or entry.done:
        return
    while True:
        _move(registry, model_name, entry)
        versions.set_tag(registry, model_name + PROMOTIONS_SUFFIX, str(entry.number), "done", "true")
        latest = _last_that_counts(_read_log(registry, model_name))
        if latest is None or latest.number == entry.number:
            return
        # Another promotion followed while we wrote, and some of our writes may have come after its own.
        entry = latest


def _move(registry: "MlflowClient", model_name: str, entry: _Entry) -> None:
    named = versions.aliases(registry, model_name)
    before = named.get(versions.PREVIOUS)
    if before and before != entry.replaces:
        registry.delete_model_version_tag(model_name, before, versions.PREVIOUS)
    if entry.replaces:
        versions.set_tag(registry, model_name, entry.replaces, versions.PREVIOUS, "true")
        versions.set_alias(registry, model_name, versions.PREVIOUS, entry.replaces)
    versions.set_alias(registry, model_name, versions.CHAMPION, entry.version)
    if versions.aliases(registry, model_name).get(versions.CHALLENGER) == entry.version:
        registry.delete_registered_model_alias(model_name, versions.CHALLENGER)
