import math

import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.rollout.plan import Limits, Step, parse_plan
from tests.components.rollout.conftest import PLAN


def test_numbers_as_kfp_hands_them_over_are_taken():
    plan = parse_plan(**{**PLAN, "steps": [5.0, 50.0, 100.0], "min_samples": 300.0, "limits": {"score_tolerance": 0.2}})
    assert plan.percents == (5, 50, 100)
    assert all(type(percent) is int for percent in plan.percents)
    assert plan.min_samples == 300
    assert plan.limits == Limits(score_tolerance=0.2)


def test_the_mirrored_step_comes_first():
    assert parse_plan(**{**PLAN, "steps": [10], "shadow_seconds": 30}).steps == (Step(100, 30, mirror=True), Step(10, 60))
    assert parse_plan(**{**PLAN, "steps": [10]}).steps == (Step(10, 60),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", []),
        ("steps", "5, 100"),
        ("steps", [5, 5]),
        ("steps", [100]),
        ("steps", [50, 25]),
        ("steps", [0, 50]),
        ("steps", [50, 101]),
        ("steps", [2.5]),
        ("steps", [True]),
        ("steps", ["5"]),
        ("steps", [None]),
        ("steps", 5),
        ("bake_seconds", -1),
        ("bake_seconds", math.inf),
        ("bake_seconds", math.nan),
        ("bake_seconds", "60"),
        ("min_samples", 0),
        ("min_samples", 1.5),
        ("look_seconds", 0),
        ("deadline_seconds", 0),
        ("deadline_seconds", 59),
        ("shadow_seconds", -1),
        ("limits", []),
        ("limits", {"alhpa": 0.05}),
        ("limits", {"alpha": 0}),
        ("limits", {"alpha": 0.6}),
        ("limits", {"alpha": None}),
        ("limits", {"max_failure_ratio": 0.5}),
        ("limits", {"max_latency_ratio": 100}),
        ("limits", {"score_tolerance": 1.1}),
        ("limits", {"ready_grace_seconds": -1}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(field, value):
    with pytest.raises(InvalidInput, match=field):
        parse_plan(**{**PLAN, field: value})


def test_a_mirrored_step_may_be_the_only_comparison():
    assert parse_plan(**{**PLAN, "steps": [100], "shadow_seconds": 30}).percents == (100,)


def test_a_deadline_is_not_before_the_end_of_the_mirrored_step():
    with pytest.raises(InvalidInput, match=r"deadline_seconds.*shadow_seconds"):
        parse_plan(**{**PLAN, "shadow_seconds": 601})
