import itertools
import math

import numpy as np
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.experiments.allocation import check_allocation


@pytest.mark.parametrize("percent", [10.0, 50.0, 80.0])
def test_the_evidence_is_not_expected_to_grow_where_the_split_is_as_asked(percent):
    # Every way that six keys can fall, and one more; the next test holds the evidence against the same recursion.
    share = percent / 100
    for arms in itertools.product([False, True], repeat=6):
        after = sum((share if arm else 1 - share) * math.exp(_evidence((*arms, arm), share)) for arm in (False, True))
        assert after == pytest.approx(math.exp(_evidence(arms, share)))


def _evidence(arms, share) -> float:
    """Beta-binomial against binomial, key by key: the chance of each arm by the keys before it."""
    log_evidence, into = 0.0, 100 * share
    for number, arm in enumerate(arms):
        chance = into / (100 + number)
        log_evidence += math.log((chance if arm else 1 - chance) / (share if arm else 1 - share))
        into += arm
    return log_evidence


def test_the_evidence_is_the_largest_that_any_key_completed():
    arms = np.random.default_rng(0).random(300) < 0.4
    largest = max(_evidence(arms[:count], 0.5) for count in range(1, 301))
    assert check_allocation(arms, 50).log_e_value == pytest.approx(max(largest, 0.0))


def test_a_right_split_is_never_called_wrong_and_one_a_few_points_off_is():
    generator = np.random.default_rng(1)
    right = [check_allocation(generator.random(5000) < 0.2, 20).mismatch for _ in range(200)]
    wrong = [check_allocation(generator.random(5000) < 0.24, 20).mismatch for _ in range(50)]
    assert sum(right) <= 1
    assert sum(wrong) >= 45


def test_without_an_asked_share_or_without_keys_nothing_is_tested():
    found = check_allocation(np.array([True, True, False]), 0)
    assert (found.units, found.asked, found.mismatch) == ((1, 2), None, False)
    assert not check_allocation(np.array([], bool), 50).mismatch


@pytest.mark.parametrize("percent", [-1, 100, math.nan])
def test_a_share_that_is_none_is_refused(percent):
    with pytest.raises(InvalidInput, match="share_b"):
        check_allocation(np.array([True]), percent)
