"""How often the evidence is wrong and how often it is right, simulated on the traffic that other systems were measured on.

Ten looks, 10 % canary, 300 canary requests a look, stable error rate 0.5 %. Of 4,000 trials each, with alpha = 2 %:

| canary's error rate | z-test, peeking | Bonferroni | mSPRT | Flagger-like | this evidence |
|---|---|---|---|---|---|
| 0.5 % (false rollback) | 20 % | 5 % | 2 % | 0 % | 1.4 % |
| 1 % (caught) | 96 % | 83 % | 68 % | 25 % | 73 % |
| 2 % (caught) | 100 % | 100 % | 100 % | 99.9 % | 100 % |

What is guaranteed is a false rollback in at most 2 % of rollouts, of any length. Ten looks use up most of that, because what a
look would win beyond the threshold is cut off and given back.
"""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from modelyard.components.rollout.sequential import FailureEvidence, LatencyEvidence, ScoreEvidence

TRIALS = 4000
LOOKS = 10
ALPHA = 0.02

Traffic = Callable[[np.random.Generator, int], tuple[int, int, float]]


def _steady(canary: int = 300, stable: int = 2700, rate: float = 0.005) -> Traffic:
    return lambda random, look: (canary, stable, rate)


def _failed(traffic: Traffic, odds: float = 1.0, *, trials: int, looks: int = LOOKS, alpha: float = ALPHA) -> float:
    """Share of rollouts that the evidence fails: ``traffic`` says how much of it a look has and at what rate both arms fail."""
    random = np.random.default_rng(20)
    failed = 0
    for _ in range(trials):
        evidence = FailureEvidence(alpha)
        for look in range(looks):
            canary, stable, rate = traffic(random, look)
            bad, others = random.binomial(canary, min(1.0, odds * rate)), random.binomial(stable, rate)
            if evidence.look(int(bad), canary, int(others), stable) == "fail":
                failed += 1
                break
    return failed / trials


def _at_most(alpha: float, trials: int) -> float:
    """More than this share is seen once in a thousand times if the true one is ``alpha``."""
    return float(binom.ppf(0.999, trials, alpha)) / trials


def _other_tests(odds: float = 1.0) -> tuple[float, float]:
    """Share of the same rollouts that a z-test fails which is read after every look; and that Flagger-like checks fail."""
    random = np.random.default_rng(20)
    bad, others = random.binomial(300, odds * 0.005, (TRIALS, LOOKS)), random.binomial(2700, 0.005, (TRIALS, LOOKS))
    requests = np.arange(1, LOOKS + 1)
    bad_rate, other_rate = bad.cumsum(axis=1) / (300 * requests), others.cumsum(axis=1) / (2700 * requests)
    pooled = 0.1 * bad_rate + 0.9 * other_rate
    z = (bad_rate - other_rate) / np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / 300 + 1 / 2700) / requests)
    return (z > 1.645).any(axis=1).mean(), ((bad > 3).sum(axis=1) >= 5).mean()


def test_a_sound_canary_is_rolled_back_in_at_most_2_percent_and_by_a_z_test_far_more_often():
    found = _failed(_steady(), trials=TRIALS)
    assert found <= 0.02
    assert _other_tests()[0] > 7 * found


def test_a_doubled_error_rate_is_caught_more_often_than_by_the_msprt_or_by_checks_of_each_look():
    found = _failed(_steady(), 2.0, trials=TRIALS)
    assert found > 0.70
    assert _other_tests(2.0)[1] < found / 2


def test_four_times_the_error_rate_is_always_caught():
    assert _failed(_steady(), 4.0, trials=TRIALS) == 1.0


@pytest.mark.parametrize(
    "traffic",
    [
        pytest.param(_steady(60, 540), id="60 canary requests a look"),
        pytest.param(_steady(rate=0.3), id="a high rate of both arms"),
        pytest.param(lambda random, look: (300, 2700, 0.001 * 60 ** random.random()), id="rates that jump for both arms"),
        pytest.param(lambda random, look: (300, 2700, 0.05 / (1 + look)), id="rates that fall"),
        pytest.param(
            lambda random, look: ((share := (5, 25, 50, 75)[look % 4]) * 20, (100 - share) * 20, 0.04 if share > 25 else 0.005),
            id="shares that change together with the rate",
        ),
        pytest.param(
            lambda random, look: (int(random.integers(1, 9)) * 50, int(random.integers(0, 9)) * 50, 0.02), id="uneven looks"
        ),
    ],
)
def test_false_alarms_stay_rare_whatever_traffic_and_rates_do(traffic):
    assert _failed(traffic, trials=300) <= _at_most(ALPHA, 300)


def test_false_alarms_stay_rare_over_two_hundred_looks():
    assert _failed(_steady(30, 70, 0.02), trials=50, looks=200, alpha=0.1) <= _at_most(0.1, 50)


def test_a_canary_that_is_better_than_the_stable_arm_is_hardly_ever_failed():
    assert _failed(_steady(rate=0.01), 0.5, trials=300) <= 0.004


def test_failures_that_come_in_bursts_for_both_arms_raise_no_more_alarms():
    """What is behind both arms goes down: failures depend on each other, but the proxy deals them out at random."""
    traffic: Traffic = lambda random, look: (300, 2700, 0.9 if random.random() < 0.2 else 0.001)  # noqa: E731
    assert _failed(traffic, trials=200) <= _at_most(ALPHA, 200)


def test_evidence_that_is_written_and_read_between_looks_goes_on_exactly():
    random = np.random.default_rng(8)
    kept = [FailureEvidence(0.02), LatencyEvidence(0.01, 2.0, 4.0), ScoreEvidence(0.01, 0.05)]
    carried = [type(evidence).from_json(json.loads(json.dumps(evidence.to_json()))) for evidence in kept]
    shares = random.dirichlet(np.ones(34), 2)
    for _ in range(8):
        buckets = [random.multinomial(size, share) for size, share in ((300, shares[0]), (2700, shares[1]))]
        looks = [(int(random.binomial(300, 0.01)), 300, int(random.binomial(2700, 0.008)), 2700), buckets, buckets]
        for evidence, other, look in zip(kept, carried, looks):
            evidence.look(*look)
            other.look(*look)
        carried = [type(evidence).from_json(json.loads(json.dumps(evidence.to_json()))) for evidence in carried]
        for evidence, other in zip(kept, carried):
            assert other.to_json() == evidence.to_json()
            assert (other.decision, other.log_e_value, other.interval) == (
                evidence.decision,
                evidence.log_e_value,
                evidence.interval,
            )
            assert json.loads(json.dumps(evidence.to_json(), allow_nan=False)) == evidence.to_json()
    assert {evidence.decision for evidence in kept} == {"go_on", "fail"}


@pytest.mark.parametrize("evidence", [FailureEvidence(0.5), LatencyEvidence(0.5, 1.0), ScoreEvidence(0.5, 0.0)])
def test_looks_without_data_never_decide(evidence):
    look = (0, 0, 0, 0) if isinstance(evidence, FailureEvidence) else ([0] * 34, [0] * 34)
    for _ in range(50):
        assert evidence.look(*look) == "go_on"
    assert evidence.log_e_value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("evidence", [FailureEvidence(0.5), LatencyEvidence(0.5, 1.0), ScoreEvidence(0.5, 0.0)])
def test_one_arm_alone_never_decides(evidence):
    alone = [3] * 34
    for _ in range(50):
        evidence.look(100, 100, 0, 0) if isinstance(evidence, FailureEvidence) else evidence.look(alone, [0] * 34)
        evidence.look(0, 0, 0, 100) if isinstance(evidence, FailureEvidence) else evidence.look([0] * 34, alone[::-1])
    assert evidence.decision == "go_on"
    assert evidence.log_e_value == pytest.approx(0, abs=1e-12)
