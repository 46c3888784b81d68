"""What a rollout is asked to do, checked: its steps of traffic, how long and how often it looks, and what it allows.

``limits`` comes as a dictionary (JSON in the KFP form); what is left out keeps its default:

| key | default | means |
|---|---|---|
| ``alpha`` | 0.05 | chance that the tests roll back a version which keeps within the limits, all four together |
| ``max_failure_ratio`` | 1.0 | allowed odds of a failed request (5xx, no answer), as a multiple of the stable version's |
| ``max_rejected_ratio`` | 1.0 | the same for rejected requests (4xx) |
| ``max_latency_ratio`` | 2.0 | allowed latency, as a multiple of the stable version's; rounded up to a power of √2 |
| ``score_tolerance`` | 0.1 | shift of the scores allowed beyond the one between the two models' reference samples, 0 to 1 |
| ``ready_grace_seconds`` | 30 | how long the canary may be not ready, or the target not reached, before the trial ends |

``alpha`` holds if requests are dealt out at random. Where callers send ``x-modelyard-key``, all requests of a caller go to one
version, and one caller that is always refused makes false alarms more frequent, or hides a worse version: allow a larger
``max_rejected_ratio`` there. For latency see ``latency.LatencyEvidence``: a version that is too slow shows after some minutes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from modelyard.components.errors import InvalidInput

WHOLE = 100
# Targets that serve nothing: the registry is told at once, or nobody is.
REGISTRY, NOBODY = "registry", "none"
WITHOUT_TRAFFIC = (REGISTRY, NOBODY)


@dataclass(frozen=True)
class Limits:
    """What is allowed; see the module's description."""

    alpha: float = 0.05
    max_failure_ratio: float = 1.0
    max_rejected_ratio: float = 1.0
    max_latency_ratio: float = 2.0
    score_tolerance: float = 0.1
    ready_grace_seconds: float = 30.0


@dataclass(frozen=True)
class Step:
    """One share of traffic.

    Attributes:
        percent: what the canary gets of the live traffic, or with ``mirror`` a copy of.
        seconds: how long it is watched at least.
        mirror: whether it gets a copy, and its answers are thrown away.
    """

    percent: int
    seconds: float
    mirror: bool = False

    def __str__(self) -> str:
        return f"a copy of {self.percent} %" if self.mirror else f"{self.percent} %"


@dataclass(frozen=True)
class Plan:
    """A checked request; see ``parse_plan``."""

    percents: tuple[int, ...]
    bake_seconds: float
    min_samples: int
    look_seconds: float
    deadline_seconds: float
    shadow_seconds: float
    limits: Limits

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in order, the mirrored one first if there is one."""
        shadow = (Step(WHOLE, self.shadow_seconds, mirror=True),) if self.shadow_seconds else ()
        return (*shadow, *(Step(percent, self.bake_seconds) for percent in self.percents))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values; equal plans give equal ones."""
        return {**asdict(self), "percents": list(self.percents)}


def parse_plan(
    *,
    steps: Sequence[Any],
    bake_seconds: float,
    min_samples: int,
    look_seconds: float,
    deadline_seconds: float,
    shadow_seconds: float,
    limits: Mapping[str, Any],
) -> Plan:
    """Checks the parameters of a rollout, of which no data or server is needed.

    Args:
        steps: percentages of the live traffic that the canary gets one after another: whole, rising, 1 to 100. The first
            is below 100 or comes after a mirrored step, for at all the traffic there is nothing to compare with.
        bake_seconds: how long each step is watched at least.
        min_samples: requests that the canary must have answered in each step.
        look_seconds: time between two looks.
        deadline_seconds: how long a step may wait for its requests; then the rollout is inconclusive. So it bounds the
            whole rollout, too: its number of steps times this.
        shadow_seconds: how long a copy of all traffic is sent to the canary before the first step; 0 for no such step.
        limits: what is allowed; see the module's description.

    Raises:
        InvalidInput: a parameter cannot be used as given.
    """
    seconds = {
        "bake_seconds": _number("bake_seconds", bake_seconds, low=0),
        "look_seconds": _number("look_seconds", look_seconds, low=0, above=True),
        "deadline_seconds": _number("deadline_seconds", deadline_seconds, low=0, above=True),
        "shadow_seconds": _number("shadow_seconds", shadow_seconds, low=0),
    }
    for name in ("bake_seconds", "shadow_seconds"):
        if seconds["deadline_seconds"] < seconds[name]:
            raise InvalidInput(
                "deadline_seconds", deadline_seconds, f"a step lasts {seconds[name]:g} s already ({name}); give at least that"
            )
    percents = _percents(steps)
    if percents[0] == WHOLE and not seconds["shadow_seconds"]:
        raise InvalidInput(
            "steps", list(steps), "at 100 % there is nothing to compare with: begin below it, or with shadow_seconds"
        )
    return Plan(
        percents=percents,
        min_samples=_whole("min_samples", min_samples, low=1),
        limits=_limits(limits),
        **seconds,
    )


def _percents(steps: Sequence[Any]) -> tuple[int, ...]:
    if isinstance(steps, str) or not isinstance(steps, Sequence) or not steps:
        raise InvalidInput("steps", steps, "give a list of percentages, such as [5, 25, 50, 100]")
    percents = tuple(_whole("steps", step, low=1, high=WHOLE) for step in steps)
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise InvalidInput("steps", steps, "each percentage must be above the one before it")
    return percents


def _limits(given: Mapping[str, Any]) -> Limits:
    known = {field.name for field in fields(Limits)}
    if not isinstance(given, Mapping):
        raise InvalidInput("limits", given, f"give a dictionary with any of {', '.join(sorted(known))}")
    for key in given:
        if key not in known:
            raise InvalidInput("limits", key, f"choose from {', '.join(sorted(known))}")
    values = {**asdict(Limits()), **given}
    checked: dict[str, Any] = {
        "alpha": _number("limits.alpha", values["alpha"], low=0, above=True, high=0.5),
        "score_tolerance": _number("limits.score_tolerance", values["score_tolerance"], low=0, high=1),
        "ready_grace_seconds": _number("limits.ready_grace_seconds", values["ready_grace_seconds"], low=0),
    }
    for name in ("max_failure_ratio", "max_rejected_ratio", "max_latency_ratio"):
        checked[name] = _number(f"limits.{name}", values[name], low=1, high=64)
    return Limits(**checked)


def _number(field: str, value: Any, *, low: float, above: bool = False, high: float = math.inf) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or value < low or value > high or (above and value == low):
        bounds = f"above {low:g}" if above else f"of at least {low:g}"
        raise InvalidInput(field, value, f"give a number {bounds}" + (f" and at most {high:g}" if high < math.inf else ""))
    return float(value)


def _whole(field: str, value: Any, *, low: int, high: float = math.inf) -> int:
    number = _number(field, value, low=low, high=high)
    if not number.is_integer():
        raise InvalidInput(field, value, "give a whole number")
    return int(number)
