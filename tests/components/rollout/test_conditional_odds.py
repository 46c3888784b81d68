import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, logsumexp
from scipy.stats import hypergeom, nchypergeom_fisher

from modelyard.components.rollout.conditional_odds import (
    BETS,
    LOG_RATIOS,
    LOG_STAKES,
    NULL,
    OddsProcess,
    log_partition,
    log_terms,
)

COUNTS = st.integers(0, 40)
LOOKS = st.lists(st.tuples(COUNTS, COUNTS, st.floats(0, 1), st.floats(0, 1)), max_size=4)


def _margins(canary: int, stable: int, bad_share: float) -> tuple[int, int, int]:
    return canary, stable, round(bad_share * (canary + stable))


def _tables(canary: int, stable: int, bad: int) -> range:
    return range(max(0, bad - stable), min(canary, bad) + 1)


def _after(looks, tolerated: float = 1.0, alpha: float = 0.05) -> OddsProcess:
    process = OddsProcess(-math.log(alpha), tolerated)
    for canary, stable, bad_share, place in looks:
        _, _, bad = _margins(canary, stable, bad_share)
        tables = _tables(canary, stable, bad)
        x = tables[round(place * (len(tables) - 1))]
        process.look(x, canary, bad - x, stable)
    return process


def _expected(process: OddsProcess, canary: int, stable: int, bad: int, odds: float) -> float:
    """What the process is worth after one more look, on average over all tables with these margins."""
    state = json.loads(json.dumps(process.to_json()))
    tables = np.array(_tables(canary, stable, bad))
    chances = nchypergeom_fisher.pmf(tables, canary + stable, bad, canary, odds) if len(tables) > 1 else np.ones(1)
    worth = 0.0
    for x, chance in zip(tables, chances):
        following = OddsProcess(process.log_cap, process.tolerated)
        following.restore(state)
        following.look(int(x), canary, bad - int(x), stable)
        worth += chance * math.exp(following.log_value)
    return worth


@given(st.integers(1, 300), st.integers(1, 3000), st.floats(0, 1), st.floats(-4, 4))
def test_likelihoods_are_those_of_fishers_noncentral_hypergeometric_distribution(canary, stable, bad_share, log_ratio):
    canary, stable, bad = _margins(canary, stable, bad_share)
    tables = np.array(_tables(canary, stable, bad))
    ours = (
        log_terms(tables, canary, stable, bad) + tables * log_ratio - log_partition(canary, stable, bad, np.array([log_ratio]))
    )
    oracle = (
        nchypergeom_fisher.pmf(tables, canary + stable, bad, canary, math.exp(log_ratio)) if len(tables) > 1 else np.ones(1)
    )
    assert np.exp(ours) == pytest.approx(oracle, rel=1e-7, abs=1e-12)
    assert np.exp(ours).sum() == pytest.approx(1, abs=1e-10)


@given(
    st.integers(0, 25),
    st.integers(0, 25),
    st.floats(0, 1),
    st.sampled_from([Fraction(1, 7), Fraction(1), Fraction(3), Fraction(100)]),
)
def test_the_sum_over_all_tables_is_exact(canary, stable, bad_share, ratio):
    canary, stable, bad = _margins(canary, stable, bad_share)
    exact = sum(math.comb(canary, x) * math.comb(stable, bad - x) * ratio**x for x in _tables(canary, stable, bad))
    shared = math.lgamma(canary + 1) + math.lgamma(stable + 1)
    ours = log_partition(canary, stable, bad, np.array([math.log(ratio)]))[0]
    assert ours + shared == pytest.approx(math.log(exact), abs=1e-10)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 1))
@example(10**7, 10**7, 0.5)
@example(10**7, 10**7, 1.0)
@example(10**7, 3, 1e-6)
def test_the_sum_at_equal_odds_is_vandermondes_up_to_ten_million_requests(canary, stable, bad_share):
    canary, stable, bad = _margins(canary, stable, bad_share)
    total = canary + stable
    closed = gammaln(total + 1) - gammaln(bad + 1) - gammaln(total - bad + 1) - gammaln(canary + 1) - gammaln(stable + 1)
    # The closed form is a sum of five terms of up to 6e8, each with rounding of 6e-8 and more: it is the less exact of the two
    # (against forty digits, off by 1.8e-7 for 2 x 9,862,175 requests, of which 0.395 are bad, where the sum is by 6e-8).
    assert log_partition(canary, stable, bad, np.zeros(1))[0] == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize(
    ("canary", "stable", "bad"),
    [(300, 2700, 900), (20_000, 180_000, 30_000), (100_000, 100_000, 199_000), (50_000, 1_000_000, 700_000), (10**7, 50, 60)],
)
def test_every_hth_term_gives_the_same_as_all_terms(canary, stable, bad):
    tables = np.arange(max(0, bad - stable), min(canary, bad) + 1)
    terms = log_terms(tables, canary, stable, bad)
    ratios = LOG_RATIOS[::7]
    whole = [logsumexp(terms + tables * log_ratio) for log_ratio in ratios]
    assert log_partition(canary, stable, bad, ratios) == pytest.approx(np.array(whole), abs=1e-8)


@settings(max_examples=60)
@given(LOOKS, COUNTS, COUNTS, st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.3, 0.05, 0.001]))
def test_no_look_is_expected_to_change_the_value_at_the_tolerated_odds(looks, canary, stable, bad_share, tolerated, alpha):
    process = _after(looks, tolerated, alpha)
    expected = _expected(process, *_margins(canary, stable, bad_share), odds=tolerated)
    assert expected == pytest.approx(math.exp(process.log_value), rel=1e-7)


@settings(max_examples=60)
@given(LOOKS, COUNTS, COUNTS, st.floats(0, 1), st.floats(0.05, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_no_look_is_expected_to_raise_the_value_below_the_tolerated_odds(looks, canary, stable, bad_share, part, tolerated):
    process = _after(looks, tolerated)
    expected = _expected(process, *_margins(canary, stable, bad_share), odds=part * tolerated)
    assert expected <= math.exp(process.log_value) * (1 + 1e-7)


@pytest.mark.parametrize(
    ("canary", "stable", "bad"), [(300, 2700, 400), (300, 2700, 2800), (2000, 2000, 3000), (1000, 20_000, 150)]
)
@pytest.mark.parametrize("past", [(1, 30, 2), (10, 100, 15), (1, 100, 40), (13, 100, 15)])
def test_a_look_with_many_bad_requests_is_fair_too_whatever_was_won_or_lost_before(canary, stable, bad, past):
    """The outcomes that an alternative makes likely can all be implausible under the null: they must not be forgotten."""
    process = OddsProcess(math.log(50))
    process.look(past[0], past[1], past[2], 200)
    assert not process.decided
    assert _expected(process, canary, stable, bad, odds=1.0) <= math.exp(process.log_value) * (1 + 1e-7)


def test_a_fair_look_is_worth_one_by_the_hypergeometric_distribution():
    tables = np.arange(8)
    worth = []
    for x in tables:
        process = OddsProcess(math.log(1.3))
        process.look(int(x), 20, 7 - int(x), 50)
        worth.append(math.exp(process.log_value))
    assert max(worth) == pytest.approx(1.3)
    assert hypergeom(70, 7, 20).pmf(tables) @ np.array(worth) == pytest.approx(1, abs=1e-12)


@settings(max_examples=50)
@given(
    st.floats(0, 40),
    st.integers(100, 10**6),
    st.integers(100, 10**6),
    st.floats(1e-5, 0.5),
    st.sampled_from([0.5, 0.01, 1e-6]),
)
@example(1.0, 10**6, 10**6, 0.02, 0.02)
@example(2.5, 10**6, 10**6, 0.03, 0.02)
@example(8.0, 10**6, 10**6, 0.05, 0.02)
@example(20.0, 10**6, 10**6, 0.07, 0.02)
@example(40.0, 10**6, 10**6, 0.07, 0.02)
def test_a_large_look_after_a_large_loss_is_fair_too(loss, canary, stable, bad_share, alpha):
    """What the null makes implausible is left out of the sums, but the alternatives' stakes lie just there."""
    process = OddsProcess(-math.log(alpha))
    process.look(0, round(200 * loss), round(80 * loss), round(200 * loss))
    canary, stable, bad = _margins(canary, stable, bad_share)
    wealth, raised = LOG_STAKES + process.curve[BETS], process.log_raised
    tables = np.array(_tables(canary, stable, bad))
    ratios = LOG_RATIOS[np.append(BETS, NULL)]
    partition = log_partition(canary, stable, bad, ratios)
    null = log_terms(tables, canary, stable, bad) - partition[-1]
    near = null > -200
    tables, null = tables[near], null[near]
    before = process.log_value
    process.look(int(tables[0]), canary, bad - int(tables[0]), stable)
    after = logsumexp(wealth + tables[:, None] * ratios[:-1] - (partition[:-1] - partition[-1]), axis=1) + process.log_raised
    assert process.log_raised >= raised
    assert logsumexp(null + np.minimum(after, process.log_cap)) <= before + 1e-6


@given(LOOKS)
def test_cutting_off_what_is_of_no_use_never_lowers_the_value(looks):
    process = _after(looks)
    uncut = logsumexp(LOG_STAKES + process.curve[BETS])
    assert process.log_raised >= 0
    assert process.log_value >= min(uncut, process.log_cap) - 1e-12


@given(LOOKS, st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_more_bad_requests_of_the_canary_are_more_evidence(looks, canary, stable, bad_share):
    canary, stable, bad = _margins(canary, stable, bad_share)
    state = _after(looks).to_json()
    values = []
    for x in _tables(canary, stable, bad):
        process = OddsProcess(-math.log(0.05))
        process.restore(state)
        process.look(x, canary, bad - x, stable)
        values.append(process.log_value)
    assert values == sorted(values)


@given(LOOKS, st.randoms())
def test_the_likelihood_and_the_bounds_do_not_depend_on_the_order_of_looks(looks, random):
    assume(looks)
    shuffled = list(looks)
    random.shuffle(shuffled)
    assert _after(shuffled).curve == pytest.approx(_after(looks).curve, abs=1e-9)
    assert _after(shuffled).bounds(0.05) == pytest.approx(_after(looks).bounds(0.05), rel=1e-6)


@pytest.mark.parametrize("look", [(0, 0, 0, 0), (5, 5, 0, 0), (0, 0, 3, 100), (0, 10, 0, 10), (10, 10, 10, 10)])
def test_a_look_that_cannot_tell_the_arms_apart_changes_nothing(look):
    process = OddsProcess(math.log(20))
    process.look(*look)
    assert process.log_value == pytest.approx(0, abs=1e-12)
    assert process.bounds(0.05) == (0, math.inf)


def test_bounds_close_in_on_the_true_odds_ratio():
    random = np.random.default_rng(4)
    process = OddsProcess(math.log(50))
    widths = []
    for _ in range(6):
        for _ in range(20):
            process.look(int(random.binomial(20_000, 0.03)), 20_000, int(random.binomial(20_000, 0.02)), 20_000)
        low, high = process.bounds(0.02)
        assert low < (0.03 / 0.97) / (0.02 / 0.98) < high
        widths.append(high / low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1.15


def test_bounds_are_open_where_the_grid_ends():
    process = OddsProcess(math.log(50))
    process.look(100, 100, 0, 100_000)
    assert process.bounds(0.02)[1] == math.inf
    assert process.bounds(0.02)[0] > 64
    process = OddsProcess(math.log(50))
    process.look(0, 100_000, 100, 100)
    assert process.bounds(0.02)[0] == 0
    assert process.bounds(0.02)[1] < 1 / 64


def test_stakes_are_one_in_all_and_lie_on_larger_odds_only():
    assert np.exp(LOG_STAKES).sum() == pytest.approx(1, abs=1e-12)
    assert (BETS > NULL).all()
    assert LOG_RATIOS[NULL] == 0
