"""How often a whole rollout is wrong about a version that is as good as the one in charge: all tests, the floor under them, and
the step at all the traffic, at the default limits."""

import pytest
from scipy.stats import binom

from modelyard.components.rollout.plan import Limits
from tests.components.rollout.conftest import Trial
from tests.support.simulated_target import Behaviour


def failed_share(laptops, trials: int, old: Behaviour, new: Behaviour, **changes) -> float:
    failed = 0
    for seed in range(trials):
        done = Trial(laptops(), {"1": old, "3": new}, seed=seed).run(bake_seconds=120, **changes)
        assert done.decision in ("pass", "fail"), done.reasons
        failed += done.decision == "fail"
    return failed / trials


@pytest.mark.slow
@pytest.mark.parametrize(
    "alike",
    [
        pytest.param(Behaviour(), id="steady"),
        pytest.param(Behaviour(failing=0.02, rejecting=0.1), id="many failures"),
        pytest.param(Behaviour(stalls=(10.0, 110.0)), id="long stalls"),
        pytest.param(Behaviour(stalls=(3.0, 57.0)), id="stalls"),
        pytest.param(Behaviour(stalls=(1.0, 19.0)), id="short stalls"),
    ],
)
def test_a_version_as_good_as_the_one_in_charge_is_rolled_back_as_rarely_as_promised(laptops, alike):
    trials = 100
    assert failed_share(laptops, trials, alike, alike) <= binom.ppf(0.999, trials, Limits().alpha) / trials


@pytest.mark.slow
def test_a_version_that_stalls_no_more_but_is_three_times_as_slow_is_rolled_back(laptops):
    old, new = Behaviour(stalls=(3.0, 57.0)), Behaviour(latency=0.012, stalls=(3.0, 57.0))
    assert failed_share(laptops, 20, old, new, steps=[5, 25, 50, 75, 100]) >= 0.9
