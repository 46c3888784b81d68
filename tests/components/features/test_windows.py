"""Window features against a loop over all pairs of rows."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.features.simulation import Scale, simulate
from modelyard.components.features.windows import (
    CUSTOMER_FEATURES,
    DAY,
    TERMINAL_FEATURES,
    customer_windows,
    terminal_windows,
    trailing_sums,
)

# Whole half days, one microsecond around them: window edges are hit and missed by the least possible.
_moments = st.builds(lambda half, shift: half * DAY // 2 + shift + DAY, st.integers(0, 90), st.integers(-1, 1))
_rows = st.lists(st.tuples(st.integers(0, 3), _moments, st.integers(0, 100)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(_rows, st.sampled_from([0, 7]))
def test_counts_and_sums_are_those_of_brute_force(rows, delay):
    keys, moments, values = (np.array(column, dtype=np.int64) for column in (zip(*rows) if rows else ([], [], [])))
    for days, (count, total) in zip((1, 7, 30), trailing_sums(keys, moments, values, (1, 7, 30), delay), strict=True):
        for row in range(len(rows)):
            end = moments[row] - delay * DAY
            inside = (keys == keys[row]) & (moments <= end) & (moments > end - days * DAY)
            assert count[row] == inside.sum()
            assert total[row] == values[inside].sum()


def test_a_transaction_counts_among_its_customers_but_not_yet_among_its_terminals():
    start = datetime(2024, 1, 1, tzinfo=UTC)
    transactions = pl.DataFrame(
        {
            "event_timestamp": [start, start + timedelta(hours=12), start + timedelta(days=8)],
            "customer_id": [4, 4, 4],
            "terminal_id": [9, 9, 9],
            "amount": [10.0, 20.01, 60.0],
            "is_fraud": [1, 0, 0],
        }
    )
    customer = customer_windows(transactions).select(CUSTOMER_FEATURES)
    terminal = terminal_windows(transactions).select(TERMINAL_FEATURES)
    assert customer.row(1) == pytest.approx((2, 15.005, 2, 15.005, 2, 15.005))
    assert customer.row(2) == pytest.approx((1, 60.0, 1, 60.0, 3, 30.0033333))
    assert terminal.row(1) == (0, 0.0, 0, 0.0, 0, 0.0)
    # Seven days before: the second transaction is within a day, the first just outside; both within a week.
    assert terminal.row(2) == (1, 0.0, 2, 0.5, 2, 0.5)


@pytest.mark.slow
def test_a_baseline_on_these_features_comes_close_to_the_published_scores():
    """The handbook's split: train on 25-31 July 2018, a week's delay, test on 8-14 August without known compromised cards."""
    xgboost = pytest.importorskip("xgboost")
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = []
    for seed in range(3):
        rows = _with_features(simulate(Scale(seed=seed)))
        train = _days(rows, datetime(2018, 7, 25, tzinfo=UTC), 7)
        test = _unknown_cards(rows, train, datetime(2018, 8, 8, tzinfo=UTC))
        names = ["amount", "night", "weekend", *CUSTOMER_FEATURES, *TERMINAL_FEATURES]
        matrix = xgboost.DMatrix(train.select(names).to_numpy(), label=train["is_fraud"].to_numpy())
        booster = xgboost.train({"objective": "binary:logistic", "base_score": 0.5}, matrix, 100)
        score = booster.predict(xgboost.DMatrix(test.select(names).to_numpy()))
        label = test["is_fraud"].to_numpy()
        scores.append((roc_auc_score(label, score), average_precision_score(label, score)))
    auc, precision = np.mean(scores, axis=0)
    assert auc == pytest.approx(0.862, abs=0.03)
    assert precision == pytest.approx(0.639, abs=0.06)


def _with_features(transactions: pl.DataFrame) -> pl.DataFrame:
    moment = pl.col("event_timestamp").dt
    return transactions.with_columns((moment.hour() <= 6).alias("night"), (moment.weekday() >= 6).alias("weekend")).hstack(
        customer_windows(transactions).select(CUSTOMER_FEATURES).get_columns()
        + terminal_windows(transactions).select(TERMINAL_FEATURES).get_columns()
    )


def _days(rows: pl.DataFrame, start: datetime, days: int) -> pl.DataFrame:
    return rows.filter(pl.col("event_timestamp").is_between(start, start + timedelta(days=days), closed="left"))


def _unknown_cards(rows: pl.DataFrame, train: pl.DataFrame, start: datetime) -> pl.DataFrame:
    known = set(train.filter(pl.col("is_fraud") == 1)["customer_id"])
    days = []
    for day in range(7):
        yesterday_a_week_ago = _days(rows, start + timedelta(days=day - 8), 1)
        known |= set(yesterday_a_week_ago.filter(pl.col("is_fraud") == 1)["customer_id"])
        days.append(_days(rows, start + timedelta(days=day), 1).filter(~pl.col("customer_id").is_in(list(known))))
    return pl.concat(days)
