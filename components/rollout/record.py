"""The rollout's own notes, kept by the serving target: what lets a killed rollout go on, and what keeps two apart.

One record a model, JSON, written whole at each look::

    {"format_version": 1,
     "holder": {"token": …, "until": …},     who is at work, and until when others leave it alone
     "rollout": {…},                         the last rollout, finished or not: ``Progress``
     "rolled_back": {…},                     the last rollback: what was replaced by what, and whether it is done
     "promoted": {…},                        the last promotion by hand, unless it was rolled back
     "pending": [{…}],                       changes of the registry that could not be made yet
     "revision": …}                          how often it was written

A holder renews its claim with each write, and while it waits in a verb (``kept_alive``); by its own next write it finds out if
somebody took it over. Nobody's write undoes
another's: whoever finds that the record was written since it was read reads it again (``change``).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.rollout.increments import Increment
from modelyard.components.serving.target import Counts, RecordChanged, ServedModel, ServingTarget, TargetChanged
from modelyard.components.storage.locks import is_locked

FORMAT_VERSION = 1
STARTING, WATCHING, PROMOTING, ROLLING_BACK, FINISHED = "starting", "watching", "promoting", "rolling back", "finished"
STABLE, CANARY = "stable", "canary"
NO_SHARE: dict[str, Any] = {"percent": 0, "mirror": False}
MOST_POINTS = 400


@dataclass
class Progress:
    """How far a rollout has come.

    Attributes:
        version, digest, uri: the version under trial.
        plan: the plan's JSON.
        replaces: the version in charge when it began, as ``version`` and ``digest``; empty if there was none.
        phase: what is being done.
        started: when it began, seconds since 1970.
        step: index of the step.
        asked: the share that was asked for last, as ``percent`` and ``mirror``.
        in_force: the share that is known to be in force.
        waited: seconds since the step began that a rollout was at work.
        watched: those of them in which both arms could be seen.
        held: whether it has lasted its time and waits for requests.
        samples: by arm, requests of this step that say something about it.
        failed: by arm, those of them that failed.
        rejected: by arm, requests of this step that were rejected.
        restarts: how often the canary's predictor started again.
        registry_asked: whether the registry was asked to make it the champion.
        share_differed: whether another share than the one in force was seen at the last look.
        unready: seconds that the canary has not been ready for, up to now.
        unreachable: seconds that the target has not been reached for, up to now.
        window: by arm, failed and all requests of the last looks, in which a burst is looked for.
        last_counts: by arm, the counts of the last look.
        totals: by arm, requests and rows since the rollout began.
        evidence: the state of each test.
        timeline: what was seen at each look.
        events: what happened, each with ``at`` (seconds since 1970) and ``text``.
        decision, outcome, reasons: how it ended.
    """

    version: str
    digest: str
    uri: str
    plan: dict[str, Any]
    replaces: dict[str, str] = field(default_factory=dict)
    phase: str = STARTING
    started: float = 0.0
    step: int = 0
    asked: dict[str, Any] = field(default_factory=NO_SHARE.copy)
    in_force: dict[str, Any] = field(default_factory=NO_SHARE.copy)
    waited: float = 0.0
    watched: float = 0.0
    held: bool = False
    samples: dict[str, int] = field(default_factory=lambda: {STABLE: 0, CANARY: 0})
    failed: dict[str, int] = field(default_factory=lambda: {STABLE: 0, CANARY: 0})
    rejected: dict[str, int] = field(default_factory=lambda: {STABLE: 0, CANARY: 0})
    restarts: int = 0
    registry_asked: bool = False
    share_differed: bool = False
    unready: float = 0.0
    unreachable: float = 0.0
    window: dict[str, list[int]] = field(default_factory=lambda: {STABLE: [0, 0], CANARY: [0, 0]})
    last_counts: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    decision: str = ""
    outcome: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def model(self) -> ServedModel:
        """The version under trial."""
        return ServedModel(self.version, self.digest, self.uri)

    def counts_before(self, arm: str) -> Counts | None:
        """The counts of the last look at which the arm could be read."""
        kept = self.last_counts.get(arm)
        if kept is None:
            return None
        return Counts(**{**kept, "latency": tuple(kept["latency"]), "scores": tuple(kept["scores"])})

    def keep_counts(self, arm: str, counts: Counts | None) -> None:
        """Keeps an arm's counts for the next look, if they could be read."""
        if counts is not None:
            self.last_counts[arm] = dict(vars(counts))

    def add(self, arm: str, found: Increment) -> None:
        """Adds what an arm did to the step and to the totals."""
        self.samples[arm] += found.samples
        self.failed[arm] += found.failed
        self.rejected[arm] += found.rejected
        total = self.totals.get(arm) or vars(Increment())
        self.totals[arm] = {
            **{name: total[name] + getattr(found, name) for name in ("answered", "rejected", "failed", "flagged")},
            **{name: _sum(total[name], getattr(found, name)) for name in ("latency", "scores")},
        }

    def total(self, arm: str) -> Increment:
        """What an arm has done since the rollout began."""
        kept = self.totals.get(arm)
        if kept is None:
            return Increment()
        return Increment(**{**kept, "latency": tuple(kept["latency"]), "scores": tuple(kept["scores"])})

    def add_point(self, point: dict[str, Any]) -> None:
        """Adds a look to the timeline; a long one is thinned, so that a record stays small: two neighbours become one."""
        self.timeline.append(point)
        if len(self.timeline) > MOST_POINTS:
            self.timeline = _thinned(self.timeline)


def _sum(one: Any, other: Any) -> list[int]:
    return [a + b for a, b in zip(one, other)]


def point_of(found: Increment) -> dict[str, Any]:
    """One arm's part of a look in the timeline; latencies by bucket, those that hold something."""
    latency = {str(bucket): count for bucket, count in enumerate(found.latency) if count}
    return {"answered": found.answered, "rejected": found.rejected, "failed": found.failed, "latency": latency}


def _thinned(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for position, point in enumerate(points):
        if position % 2 and kept[-1]["step"] == point["step"]:
            merged = {**point}
            for arm in (STABLE, CANARY):
                before, after = kept[-1][arm], point[arm]
                buckets = {*before["latency"], *after["latency"]}
                merged[arm] = {name: before[name] + after[name] for name in ("answered", "rejected", "failed")}
                merged[arm]["latency"] = {b: before["latency"].get(b, 0) + after["latency"].get(b, 0) for b in buckets}
            kept[-1] = merged
        else:
            kept.append(point)
    return kept


@dataclass
class Record:
    """The whole record of one model; see the module's description."""

    holder: dict[str, Any] = field(default_factory=dict)
    rollout: Progress | None = None
    rolled_back: dict[str, Any] = field(default_factory=dict)
    promoted: dict[str, Any] = field(default_factory=dict)
    pending: list[dict[str, str]] = field(default_factory=list)
    revision: int = 0

    def end_rollout(self, decision: str, outcome: str, reason: str, event: str) -> None:
        """Ends a rollout that is not finished, for its process stops at its next look: the record is no longer its own."""
        self.holder = {}
        rollout = self.rollout
        if rollout is not None and rollout.phase != FINISHED:
            rollout.phase, rollout.decision, rollout.outcome, rollout.reasons = FINISHED, decision, outcome, [reason]
            rollout.events.append({"at": round(time.time(), 3), "text": event})

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        # Not asdict, which copies everything that is in it: this is done at each look.
        rollout = dict(vars(self.rollout)) if self.rollout else None
        return {"format_version": FORMAT_VERSION, **vars(self), "rollout": rollout}

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> "Record":
        """Reads what ``to_json`` wrote; None is an empty record.

        Raises:
            InvalidInput: another release wrote it, or something else.
        """
        if not content:
            return cls()
        entries = dict(content)
        found = entries.pop("format_version", None)
        if found != FORMAT_VERSION:
            raise InvalidInput(
                "record.format_version", found, f"this release reads version {FORMAT_VERSION}; use the release that wrote it"
            )
        rollout = entries.pop("rollout")
        return cls(rollout=Progress(**rollout) if rollout else None, **entries)


def read(target: ServingTarget, model_name: str) -> Record:
    """The record of a model; an empty one if there is none."""
    return Record.from_json(target.read_record(model_name))


def write(target: ServingTarget, model_name: str, record: Record) -> None:
    """Keeps the record.

    Raises:
        RecordChanged: somebody else wrote it since it was read.
    """
    target.write_record(model_name, {**record.to_json(), "revision": record.revision + 1}, revision=record.revision)
    record.revision += 1


def change(target: ServingTarget, model_name: str, alter: Callable[[Record], None]) -> Record:
    """Reads the record, alters it and keeps it, again if somebody else wrote it meanwhile; returns it as it is then."""
    while True:
        record = read(target, model_name)
        alter(record)
        with suppress(RecordChanged):
            write(target, model_name, record)
            return record


def lock_path(home: Path, model_name: str) -> Path:
    """The lock that a rollout of the model holds while it is at work on this machine."""
    return home / "serving" / f"{model_name}.rollout.lock"


def is_held(home: Path, model_name: str) -> bool:
    """Whether a process of this machine is at work on a rollout of the model now; one that was killed is not.

    Args:
        home: folder of all local state.
        model_name: the served model.
    """
    return is_locked(lock_path(home, model_name))


class TakenOver(TargetChanged):
    """A rollback, a promotion by hand or another rollout took the record over.

    Attributes:
        record: as it is now.
    """

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record


class Notes:
    """The record of one model in the hands of one rollout.

    Args:
        target: where it is kept.
        model_name: whose it is.
        token: unique to this rollout's process.
        lease_seconds: how long after its last sign of life a holder is taken for dead.
        now: the time in seconds since 1970.
    """

    def __init__(
        self, target: ServingTarget, model_name: str, *, token: str, lease_seconds: float, now: Callable[[], float]
    ) -> None:
        self._target, self._model_name, self._token = target, model_name, token
        self._lease, self._now = lease_seconds, now

    def claim(self, sleep: Callable[[float], None], *, alone: bool = False) -> Progress | None:
        """Takes the record, once no other process holds it, and returns the last rollout's progress.

        Args:
            sleep: waits for a number of seconds.
            alone: whether it is certain that nobody else is at work, so that any other holder is dead.

        Raises:
            TargetChanged: another rollout of the model is at work.
        """
        record = read(self._target, self._model_name)
        until = record.holder.get("until", 0.0)
        if record.holder and not alone and until > self._now():
            wait = min(until - self._now(), self._lease)
            print(f"The record of {self._model_name!r} is held by another rollout; waiting {wait:.0f} s to see if it is alive.")
            sleep(wait)
            record = read(self._target, self._model_name)
            if record.holder and record.holder.get("until", 0.0) > self._now():
                raise TargetChanged(
                    f"another rollout of {self._model_name!r} is under way: wait for its end. "
                    f"If it was killed, try again in {self._lease:.0f} s"
                )
        return change(self._target, self._model_name, self._hold).rollout

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Renews the claim from another thread, for a verb may take minutes on a cluster."""
        done = threading.Event()
        renewal = threading.Thread(target=self._renew_until, args=(done,), name="renewal of the claim", daemon=True)
        renewal.start()
        try:
            yield
        finally:
            done.set()
            renewal.join()

    def _renew_until(self, done: threading.Event) -> None:
        def renew(record: Record) -> None:
            self._check(record)
            self._hold(record)

        while not done.wait(self._lease / 3):
            try:
                change(self._target, self._model_name, renew)
            except TakenOver:
                return
            except NotAvailable:
                continue

    def kept(self) -> Progress | None:
        """The progress as it was kept last.

        Raises:
            TakenOver: somebody else took over meanwhile.
        """
        record = read(self._target, self._model_name)
        self._check(record)
        return record.rollout

    def write(self, progress: Progress) -> None:
        """Keeps the progress.

        Raises:
            TakenOver: somebody else took over meanwhile.
        """

        def keep(record: Record) -> None:
            self._check(record)
            record.rollout = progress
            self._hold(record)

        change(self._target, self._model_name, keep)

    def add_pending(self, registry_change: dict[str, str]) -> None:
        """Keeps a change of the registry for whoever comes next."""
        change(self._target, self._model_name, lambda record: record.pending.append(registry_change))

    def release(self) -> None:
        """Lets go, so that the next rollout need not wait."""

        def let_go(record: Record) -> None:
            if record.holder.get("token") == self._token:
                record.holder = {}

        change(self._target, self._model_name, let_go)

    def _check(self, record: Record) -> None:
        if record.holder.get("token") != self._token:
            who = "a promotion by hand" if record.promoted and not record.holder else "a rollback or another rollout"
            raise TakenOver(f"{who} of {self._model_name!r} took over; this one stops", record)

    def _hold(self, record: Record) -> None:
        record.holder = {"token": self._token, "until": self._now() + self._lease}
