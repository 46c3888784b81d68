"""The four tests of a rollout side by side, and how they share the chance of a false alarm.

Two fifths of ``alpha`` go to failed requests, which is what most bad versions show first and what users notice; the rest in
equal parts to rejected requests, latency and scores. By Bonferroni's inequality a version within the limits is rolled back by
any of them with a chance of at most ``alpha``, however long it is watched and however often it is looked at, on two conditions:

* Requests are dealt out to the arms at random. Where callers send ``x-modelyard-key`` instead, a caller's requests all go to
  one arm, and what is dealt out are callers: a single one that is always refused makes false alarms several times as frequent
  as ``alpha``, or hides a version that is worse. The larger ``max_rejected_ratio`` and ``max_failure_ratio``, the less so.
* Nothing but the version slows an arm for longer than ``latency.TURN_SECONDS`` at a time.
"""

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from modelyard.components.artifacts.model import REFERENCE_FILE, SCORE_COLUMN
from modelyard.components.rollout.increments import Increment
from modelyard.components.rollout.plan import Limits
from modelyard.components.rollout.sequential import FailureEvidence, LatencyEvidence, ScoreEvidence, reference_shift
from modelyard.components.serving.buckets import SCORE_EDGES

FAILED, REJECTED, LATENCY, SCORES = "failed", "rejected", "latency", "scores"
SHARES = {FAILED: 0.4, REJECTED: 0.2, LATENCY: 0.2, SCORES: 0.2}
TITLES = {FAILED: "Failed requests", REJECTED: "Rejected requests", LATENCY: "Latency", SCORES: "Scores"}


class SequentialTest(Protocol):
    """What the tests have in common."""

    @property
    def decision(self) -> str: ...
    @property
    def log_e_value(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def estimate(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...
    def to_json(self) -> dict[str, Any]: ...


class Evidence:
    """The tests of one rollout.

    Args:
        limits: what is allowed.
        models_apart: distance between the two models' scores on their reference samples, 0 to 1.
        state: what ``to_json`` of an earlier process gave; empty to begin.
        look_seconds: time between two looks, at least.
    """

    def __init__(self, limits: Limits, models_apart: float, state: dict[str, Any], look_seconds: float = 10.0) -> None:
        alpha = {name: share * limits.alpha for name, share in SHARES.items()}
        if state:
            self._failed = FailureEvidence.from_json(state[FAILED])
            self._rejected = FailureEvidence.from_json(state[REJECTED])
            self._latency = LatencyEvidence.from_json(state[LATENCY])
            self._scores = ScoreEvidence.from_json(state[SCORES])
        else:
            self._failed = FailureEvidence(alpha[FAILED], limits.max_failure_ratio)
            self._rejected = FailureEvidence(alpha[REJECTED], limits.max_rejected_ratio)
            self._latency = LatencyEvidence(alpha[LATENCY], limits.max_latency_ratio, look_seconds)
            self._scores = ScoreEvidence(alpha[SCORES], min(1.0, models_apart + limits.score_tolerance))
        self.limits = limits

    @property
    def tests(self) -> dict[str, SequentialTest]:
        """The tests by name."""
        return {FAILED: self._failed, REJECTED: self._rejected, LATENCY: self._latency, SCORES: self._scores}

    def look(self, canary: Increment, stable: Increment) -> None:
        """Takes in what both arms did since the look before."""
        self._failed.look(canary.failed, canary.requests, stable.failed, stable.requests)
        self._rejected.look(canary.rejected, canary.requests, stable.rejected, stable.requests)
        self._latency.look(canary.latency, stable.latency)
        # The rows of one request are alike, and count as one.
        self._scores.look(canary.scores, stable.scores, canary.answered, stable.answered)

    @property
    def allowed_shift(self) -> float:
        """Distance between the arms' scores that is allowed."""
        return self._scores.allowed_shift

    @property
    def log_e_values(self) -> dict[str, float]:
        """Natural logarithm of each test's e-value."""
        return {name: round(test.log_e_value, 6) for name, test in self.tests.items()}

    @property
    def faults(self) -> list[str]:
        """What each test that has decided against the canary found, in words."""
        return [self._fault(name, test) for name, test in self.tests.items() if test.decision == "fail"]

    def _fault(self, name: str, test: SequentialTest) -> str:
        low, high = (_figure(bound) for bound in test.interval)
        found = _figure(test.estimate)
        if name == LATENCY:
            limit = self.limits.max_latency_ratio
            return f"Latency: {found} times the stable version's at the 95th percentile, allowed are {limit:g}"
        if name == SCORES:
            return f"Scores: their distribution is {found} from the stable version's, allowed are {self.allowed_shift:.3g}"
        allowed = self.limits.max_failure_ratio if name == FAILED else self.limits.max_rejected_ratio
        bad = self._failed if name == FAILED else self._rejected
        return (
            f"{TITLES[name]}: {bad.canary_bad:,} of {bad.canary_total:,}, while the stable version had {bad.stable_bad:,} of "
            f"{bad.stable_total:,}; the odds are {found} times as high [{low}, {high}], allowed are {allowed:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """All they know, ready for JSON, exactly."""
        return {name: test.to_json() for name, test in self.tests.items()}


def without_data(canary: Increment, stable: Increment) -> list[str]:
    """The tests that had nothing to compare, because the target does not count it: Triton, say, counts no scores."""
    seen = {
        FAILED: (canary.requests, stable.requests),
        REJECTED: (canary.requests, stable.requests),
        LATENCY: (sum(canary.latency), sum(stable.latency)),
        SCORES: (sum(canary.scores), sum(stable.scores)),
    }
    return [name for name, counts in seen.items() if not all(counts)]


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def shift_between(one: Path, other: Path) -> float:
    """Distance between two models' scores, each on its own reference sample; 0 if either has none."""
    first, second = _reference_scores(one), _reference_scores(other)
    return 0.0 if first is None or second is None else reference_shift(first, second)


def _reference_scores(directory: Path) -> list[int] | None:
    """Rows of a model's reference sample by ``SCORE_EDGES``."""
    path = directory / REFERENCE_FILE
    if not path.is_file():
        return None
    scores = pl.read_parquet(path, columns=[SCORE_COLUMN])[SCORE_COLUMN].drop_nulls().to_numpy()
    counts = np.bincount(np.searchsorted(SCORE_EDGES, scores, side="left"), minlength=len(SCORE_EDGES) + 1)
    return [int(count) for count in counts] if len(scores) else None
