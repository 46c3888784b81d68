"""A serving target in memory, with a clock and traffic of its own, and with the faults that a real one can have.

Its verbs obey the contract of ``modelyard.components.serving.target`` as a real target's do. What answers is simulated: each
version fails, rejects, takes time and scores as its ``Behaviour`` says, from a seeded generator, as the clock goes on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.buckets import LATENCY_EDGES, SCORE_EDGES
from modelyard.components.serving.target import (
    Arm,
    ArmCounts,
    Counts,
    RecordChanged,
    ServedModel,
    ServingState,
    TargetChanged,
)


class Killed(BaseException):
    """What SIGKILL is to the process: nothing catches it."""


class SimulatedTime:
    """A clock that goes on when somebody sleeps; whatever is due by then is done."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._start = self.seconds = start
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        for item in [item for item in self._due if item[0] <= self.seconds]:
            self._due.remove(item)
            item[1]()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Does ``action`` once the clock is ``seconds`` past its start."""
        self._due.append((self._start + seconds, action))


@dataclass
class Behaviour:
    """How a version answers.

    Attributes:
        failing: share of requests that get 5xx.
        rejecting: share of requests that get 4xx.
        latency: median latency in seconds.
        score: mean of the scores' log-odds.
        refusal: why it never becomes ready; empty if it does.
        golden_fault: what is wrong with its answers to the golden rows; empty if they are right.
        stalls: how long it is four times as slow at a time, and how long not on average, in seconds; (0, 0): never.
    """

    failing: float = 0.002
    rejecting: float = 0.01
    latency: float = 0.004
    score: float = -3.0
    refusal: str = ""
    golden_fault: str = ""
    stalls: tuple[float, float] = (0.0, 0.0)


@dataclass
class _Running:
    model: ServedModel
    share: int = 0
    mirrored: bool = False
    ready: bool = True
    failed: bool = False
    reason: str = ""
    counts: Counts = field(default_factory=Counts)
    stalls_begin: np.ndarray = field(default_factory=lambda: np.zeros(0))


class SimulatedTarget:
    """Serves one model under ``rate`` requests a second.

    Args:
        time: its clock.
        rate: requests a second of live traffic.
        behaviour: how each version answers, by version; others answer as ``Behaviour()``.
        seed: of the traffic.
    """

    mirrors = True

    def __init__(
        self, time: SimulatedTime, *, rate: float = 50.0, behaviour: dict[str, Behaviour] | None = None, seed: int = 0
    ) -> None:
        self.time, self.rate, self.behaviour = time, rate, behaviour or {}
        self.stable: _Running | None = None
        self.canary: _Running | None = None
        self.previous: ServedModel | None = None
        self.record: str | None = None
        self.calls: list[str] = []
        self.history: list[tuple[str, int, bool]] = []
        self.unreachable: set[str] = set()
        self.unreadable: set[str] = set()
        self._kill_at: tuple[int, bool] | None = None
        self._killed = False
        self._generator = np.random.default_rng(seed)
        self._served_until = time()

    # The verbs

    def state(self, model_name: str) -> ServingState:
        with _Verb(self, "state"):
            return ServingState(
                model_name, self._arm(self.stable, self.stable), self._arm(self.canary, None), self.previous, "http://simulated"
            )

    def start_canary(self, model_name: str, model: ServedModel) -> None:
        with _Verb(self, "start_canary"):
            if self.canary is not None and self.canary.model != model:
                raise TargetChanged(f"version {self.canary.model.version} is the canary already")
            if self.canary is None:
                self.canary = self._start(model)

    def set_share(self, model_name: str, percent: int, *, mirror: bool = False) -> None:
        with _Verb(self, "set_share"):
            if self.canary is None:
                raise TargetChanged("there is no canary")
            self.canary.share, self.canary.mirrored = percent, mirror
            self.history.append((self.canary.model.version, percent, mirror))

    def promote(self, model_name: str, digest: str) -> None:
        with _Verb(self, "promote"):
            if self.stable is not None and self.stable.model.digest == digest:
                return
            if self.canary is None or self.canary.model.digest != digest:
                raise TargetChanged("neither the canary nor the stable version has this digest")
            self.previous = self.stable.model if self.stable else None
            self.stable, self.canary = self.canary, None
            self.history.append((self.stable.model.version, 100, False))

    def roll_back(self, model_name: str) -> None:
        with _Verb(self, "roll_back"):
            self.canary = None

    def restore(self, model_name: str, model: ServedModel) -> None:
        with _Verb(self, "restore"):
            self.canary = None
            if self.stable is None or self.stable.model != model:
                self.previous = self.stable.model if self.stable else None
                self.stable = self._start(model)

    def counts(self, model_name: str) -> ArmCounts:
        with _Verb(self, "counts"):
            found = {
                name: arm.counts if arm is not None and name not in self.unreadable else None
                for name, arm in (("stable", self.stable), ("canary", self.canary))
            }
            return ArmCounts(**found)

    def read_record(self, model_name: str) -> dict[str, Any] | None:
        with _Verb(self, "read_record"):
            return json.loads(self.record) if self.record else None

    def write_record(self, model_name: str, record: dict[str, Any] | None, *, revision: int | None = None) -> None:
        with _Verb(self, "write_record"):
            if revision not in (None, json.loads(self.record).get("revision", 0) if self.record else 0):
                raise RecordChanged("somebody else wrote it")
            self.record = json.dumps(record, allow_nan=False) if record is not None else None

    # What happens to it

    def serve(self, model: ServedModel) -> None:
        """Puts a version in charge, as ``modelyard serve`` does."""
        self.stable, self.canary = self._start(model), None

    def answer_golden_rows(self, arm: Arm, model_name: str, directory: Path) -> str:
        """Stands for the arm's own answers to the golden rows."""
        return self._behaves(arm.model.version).golden_fault

    def kill(self, call: int, *, before: bool) -> None:
        """Kills the rollout at the call of this number from now, before or after it does its work; it stays dead."""
        self._kill_at = (len(self.calls) + call, before)

    def revive(self) -> None:
        """Another process takes over."""
        self._kill_at, self._killed = None, False

    def restart(self, arm: str) -> None:
        """What counts for an arm starts again."""
        self._serve_until_now()
        running = getattr(self, arm)
        running.counts = Counts()

    def _start(self, model: ServedModel) -> _Running:
        refusal, (length, between) = self._behaves(model.version).refusal, self._behaves(model.version).stalls
        running = _Running(model, ready=not refusal, failed=bool(refusal), reason=refusal)
        if length:
            running.stalls_begin = self.time() + np.cumsum(length + self._generator.exponential(between, 1000))
        return running

    def _behaves(self, version: str) -> Behaviour:
        return self.behaviour.get(version, Behaviour())

    def _arm(self, running: _Running | None, stable: _Running | None) -> Arm | None:
        if running is None:
            return None
        share = running.share
        if running is stable:
            share = 100 - (self.canary.share if self.canary and not self.canary.mirrored else 0)
        url = f"http://simulated/{running.model.version}"
        return Arm(running.model, share, running.ready, running.failed, running.reason, url, running.mirrored)

    def _serve_until_now(self) -> None:
        since, self._served_until = self._served_until, self.time()
        elapsed = self._served_until - since
        requests = int(self._generator.poisson(self.rate * elapsed))
        canary = self.canary
        if canary is not None and canary.mirrored:
            self._answer(canary, int(requests * canary.share / 100), since)
        elif canary is not None:
            mine = int(self._generator.binomial(requests, canary.share / 100))
            self._answer(canary, mine, since)
            requests -= mine
        if self.stable is not None:
            self._answer(self.stable, requests, since)

    def _answer(self, running: _Running, requests: int, since: float) -> None:
        if not requests:
            return
        behaves, draw = self._behaves(running.model.version), self._generator
        if running.failed or not running.ready:
            running.counts = replace(running.counts, failed=running.counts.failed + requests)
            return
        failed, rejected, answered = draw.multinomial(
            requests, [behaves.failing, behaves.rejecting, 1 - behaves.failing - behaves.rejecting]
        )
        seconds = behaves.latency * np.exp(draw.normal(0, 0.4, requests))
        if len(running.stalls_begin):
            at = since + (self.time() - since) * draw.random(requests)
            begun = np.append(-np.inf, running.stalls_begin)[np.searchsorted(running.stalls_begin, at)]
            seconds *= np.where(at - begun < behaves.stalls[0], 4.0, 1.0)
        scores = 1 / (1 + np.exp(-draw.normal(behaves.score, 1.5, answered)))
        counts = running.counts
        running.counts = Counts(
            answered=counts.answered + int(answered),
            rejected=counts.rejected + int(rejected),
            failed=counts.failed + int(failed),
            latency=_added(counts.latency, seconds, LATENCY_EDGES),
            scores=_added(counts.scores, scores, SCORE_EDGES),
            flagged=counts.flagged + int((scores >= 0.5).sum()),
        )


class _Verb:
    """One call: traffic up to now first, then what the test has planned for it."""

    def __init__(self, target: SimulatedTarget, name: str) -> None:
        self._target, self._name = target, name

    def __enter__(self) -> None:
        target = self._target
        target._serve_until_now()
        if target._killed:
            raise Killed(self._name)
        target.calls.append(self._name)
        self._die_at((len(target.calls), True))
        if self._name in target.unreachable or "everything" in target.unreachable:
            raise NotAvailable(f"{self._name}: the target does not answer")

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self._die_at((len(self._target.calls), False))

    def _die_at(self, moment: tuple[int, bool]) -> None:
        if self._target._kill_at == moment:
            self._target._killed = True
            raise Killed(self._name)


def _added(counts: tuple[int, ...], values: np.ndarray, edges: tuple[float, ...]) -> tuple[int, ...]:
    found = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(counts))
    return tuple(int(count) for count in np.asarray(counts) + found)
