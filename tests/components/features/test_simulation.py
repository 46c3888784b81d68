"""Simulated transactions against the figures that Le Borgne et al. published, and against brute force."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.features.simulation import Scale, simulate, terminals_within

SMALL = Scale(customers=200, terminals=800, days=60, seed=5)


def test_the_published_counts_come_out():
    transactions = simulate(Scale())
    scenario = np.bincount(transactions["scenario"].to_numpy(), minlength=4)

    # Four standard deviations over seeds around a faithful implementation's mean, which the published run lies within too.
    assert transactions.height == pytest.approx(1_772_153, abs=4 * 11_678)
    assert transactions["is_fraud"].sum() == pytest.approx(14_670, abs=4 * 217)
    assert scenario[1] == pytest.approx(973, abs=300)
    assert scenario[2] == pytest.approx(9_077, abs=600)
    assert scenario[3] == pytest.approx(4_631, abs=500)
    assert scenario[4:].sum() == 0


def test_equal_seeds_give_equal_transactions_and_others_do_not():
    assert simulate(SMALL).equals(simulate(SMALL))
    assert not simulate(SMALL).equals(simulate(dataclasses.replace(SMALL, seed=6)))


def test_transactions_come_by_time_within_the_period():
    transactions = simulate(SMALL)
    moments = transactions["event_timestamp"]
    assert moments.is_sorted()
    assert moments.dtype == pl.Datetime("us", "UTC")
    assert moments.min() >= SMALL.start
    assert (moments.max() - SMALL.start).days < 60
    assert transactions["transaction_id"].to_list() == list(range(transactions.height))
    assert (transactions["amount"] > 0).all()
    assert transactions["customer_id"].is_between(0, 199).all()
    assert transactions["terminal_id"].is_between(0, 799).all()


def test_large_amounts_are_frauds_and_a_compromised_terminal_sees_nothing_else_for_28_days():
    transactions = simulate(dataclasses.replace(SMALL, days=28))
    assert transactions.filter(pl.col("amount") > 220)["is_fraud"].min() == 1
    assert transactions.filter(pl.col("scenario") == 1)["amount"].min() > 220
    first = (
        transactions.filter(pl.col("scenario") == 2).group_by("terminal_id").agg(pl.col("event_timestamp").min().alias("since"))
    )
    after = transactions.join(first, on="terminal_id").filter(pl.col("event_timestamp") >= pl.col("since"))
    assert after["is_fraud"].min() == 1


def test_spending_drifts_from_the_given_day_and_not_before():
    before, drifted = simulate(SMALL), simulate(dataclasses.replace(SMALL, drift="spending", drift_day=30))
    early = pl.col("event_timestamp") < pl.lit(SMALL.start) + pl.duration(days=30)
    assert before.filter(early).equals(drifted.filter(early))
    ratio = (drifted.filter(~early)["amount"] / before.filter(~early)["amount"]).median()
    assert ratio == pytest.approx(1.5, abs=0.01)


def test_a_new_fraud_appears_from_the_given_day_in_small_amounts():
    before, drifted = simulate(SMALL), simulate(dataclasses.replace(SMALL, drift="new_fraud", drift_day=30))
    early = pl.col("event_timestamp") < pl.lit(SMALL.start) + pl.duration(days=30)
    assert before.filter(early).equals(drifted.filter(early))
    new = drifted.filter(pl.col("scenario") == 4)
    assert new.height > 50
    assert new["is_fraud"].min() == 1
    assert new["amount"].max() <= 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 60), st.floats(0.5, 150))
def test_reachable_terminals_are_those_that_brute_force_finds(seed, homes, places, radius):
    generator = np.random.default_rng(seed)
    home, place = generator.uniform(0, 100, (homes, 2)), generator.uniform(0, 100, (places, 2))
    found, first, count = terminals_within(home, place, radius)
    distance = ((home[:, None] - place[None]) ** 2).sum(axis=2)
    for index in range(homes):
        mine = found[first[index] : first[index] + count[index]]
        assert sorted(mine) == list(np.flatnonzero(distance[index] < radius**2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"customers": 0}, "customers = 0"),
        ({"days": -1}, "days = -1"),
        ({"customers": 1_000_000}, "customers x days"),
        ({"seed": -1}, "seed = -1"),
        ({"drift": "sideways"}, "drift = 'sideways': choose one of none, spending, new_fraud, both"),
        ({"drift": "both", "drift_day": 183}, "drift_day = 183"),
        ({"start_date": "April"}, "start_date = 'April'"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(change, message):
    with pytest.raises(InvalidInput) as error:
        Scale(**change)
    assert message in str(error.value)


def test_a_world_without_a_reachable_terminal_is_refused():
    with pytest.raises(InvalidInput, match="terminals = 1: no customer makes a transaction"):
        simulate(Scale(customers=1, terminals=1, days=1, seed=0))
