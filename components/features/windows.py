"""Features over trailing windows of the simulated transactions: what each customer spent, what each terminal saw.

As in Le Borgne et al., a transaction's own amount counts among its customer's, and a terminal's frauds are known a week after
they happened, so its windows end seven days before the transaction.
"""

import numpy as np
import polars as pl

DAY = 86_400_000_000
WINDOWS = (1, 7, 30)
LABEL_DELAY = 7
CUSTOMER_FEATURES = tuple(f"customer_{what}_{days}d" for days in WINDOWS for what in ("count", "mean_amount"))
TERMINAL_FEATURES = tuple(f"terminal_{what}_{days}d" for days in WINDOWS for what in ("count", "fraud_share"))


def customer_windows(transactions: pl.DataFrame) -> pl.DataFrame:
    """Number and mean amount of a customer's transactions in the 1, 7 and 30 days up to and including each of them.

    Returns:
        A row for each transaction, in the order given: ``customer_id``, ``event_timestamp``, ``created`` and the
        ``CUSTOMER_FEATURES``.
    """
    # Whole cents add up without rounding.
    cents = np.rint(transactions["amount"].to_numpy() * 100).astype(np.int64)
    return _windows(transactions, "customer_id", cents, CUSTOMER_FEATURES, delay=0, unit=100)


def terminal_windows(transactions: pl.DataFrame) -> pl.DataFrame:
    """Number of a terminal's transactions and their share of frauds, in the 1, 7 and 30 days that ended a week before.

    Returns:
        A row for each transaction, in the order given: ``terminal_id``, ``event_timestamp``, ``created`` and the
        ``TERMINAL_FEATURES``; the share of no transactions is 0.
    """
    frauds = transactions["is_fraud"].to_numpy().astype(np.int64)
    return _windows(transactions, "terminal_id", frauds, TERMINAL_FEATURES, delay=LABEL_DELAY, unit=1)


def _windows(
    transactions: pl.DataFrame, key: str, values: np.ndarray, names: tuple[str, ...], delay: int, unit: int
) -> pl.DataFrame:
    counts_and_sums = trailing_sums(
        transactions[key].to_numpy(), transactions["event_timestamp"].to_physical().to_numpy(), values, WINDOWS, delay
    )
    columns: list[np.ndarray] = []
    for count, total in counts_and_sums:
        columns += [count, total / np.maximum(count, 1) / unit]
    # A stream processor would write the row as the transaction comes in: it is created at that moment, and known from then on.
    return transactions.select(key, "event_timestamp", pl.col("event_timestamp").alias("created")).with_columns(
        pl.Series(name, column) for name, column in zip(names, columns, strict=True)
    )


def trailing_sums(
    keys: np.ndarray, moments: np.ndarray, values: np.ndarray, windows: tuple[int, ...], delay: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Counts and sums by key over the half-open windows (moment - delay - window, moment - delay].

    Args:
        keys: int64, shape (rows,), from 0.
        moments: int64 microseconds, shape (rows,), in any order.
        values: int64, shape (rows,).
        windows: lengths in days.
        delay: days between a window's end and the moment.

    Returns:
        For each window the counts and the sums, int64, shape (rows,), in the rows' order.
    """
    if not len(keys):
        return [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in windows]
    since = moments - moments.min()
    # Keys lie so far apart on one line that a window never reaches into the key before.
    line = keys * (since.max() + (delay + max(windows)) * DAY + 1) + since
    order = np.argsort(line)
    line = line[order]
    sums = np.concatenate([[0], np.cumsum(values[order])])
    row_of = np.empty_like(order)
    row_of[order] = np.arange(len(order))
    ends = np.searchsorted(line, line - delay * DAY, side="right")
    result = []
    for days in windows:
        begins = np.searchsorted(line, line - (delay + days) * DAY, side="right")
        result.append(((ends - begins)[row_of], (sums[ends] - sums[begins])[row_of]))
    return result
