"""Card transactions with known frauds, for demos, tests and benchmarks where real ones cannot be shown.

The population and the first three kinds of fraud follow the prose of Le Borgne, Siblini, Lebichot and Bontempi, *Reproducible
Machine Learning for Credit Card Fraud Detection* (2022), chapter 3, so its published counts and scores can be compared with;
the drawing is vectorised, and 1.75 million transactions take about a second.

| scenario | fraud |
|---|---|
| 1 | any amount above 220 |
| 2 | every transaction at a compromised terminal: two more terminals a day, for 28 days each |
| 3 | a third of a compromised customer's transactions, at five times the amount: three more customers a day, for 14 days each |
| 4 | only with drift: half of a compromised customer's transactions, below 2: ten more customers a day, for 7 days each |

Where several apply, the later one names the transaction.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from modelyard.components.errors import InvalidInput

SIDE = 100.0
RADIUS = 5.0
LARGE_AMOUNT = 220.0
SPENDING_SHIFT = 1.5
DRIFTS = ("none", "spending", "new_fraud", "both")
DAY = 86_400_000_000
# Customer and moment share one 64-bit sort key, in microseconds.
_MOST_CUSTOMER_DAYS = 50_000_000


@dataclass(frozen=True)
class Scale:
    """How much to simulate.

    Attributes:
        customers: number of card holders, spread evenly over a square of side 100.
        terminals: number of payment terminals in the same square; a customer uses those within 5 of home.
        days: length of the period.
        start_date: first day, ISO format.
        seed: equal seeds give equal transactions.
        drift: ``none``, ``spending`` (amounts times 1.5), ``new_fraud`` (scenario 4) or ``both``.
        drift_day: day on which the drift begins, counted from 0.
    """

    customers: int = 5_000
    terminals: int = 10_000
    days: int = 183
    start_date: str = "2018-04-01"
    seed: int = 0
    drift: str = "none"
    drift_day: int = 0

    def __post_init__(self) -> None:
        for field in ("customers", "terminals", "days"):
            if getattr(self, field) < 1:
                raise InvalidInput(field, getattr(self, field), "give a number of 1 or more")
        if self.customers * self.days > _MOST_CUSTOMER_DAYS:
            raise InvalidInput(
                "customers", self.customers, f"customers x days can be {_MOST_CUSTOMER_DAYS} at most; simulate fewer or shorter"
            )
        if self.seed < 0:
            raise InvalidInput("seed", self.seed, "give a number of 0 or more")
        if self.drift not in DRIFTS:
            raise InvalidInput("drift", self.drift, f"choose one of {', '.join(DRIFTS)}")
        if not 0 <= self.drift_day < self.days:
            raise InvalidInput("drift_day", self.drift_day, f"give a day from 0 to {self.days - 1}")
        self.start  # noqa: B018  (raises on a date that is none)

    @property
    def start(self) -> datetime:
        """Midnight UTC of the first day."""
        try:
            first = date.fromisoformat(self.start_date)
        except ValueError as error:
            raise InvalidInput("start_date", self.start_date, "give an ISO date such as 2018-04-01") from error
        return datetime(first.year, first.month, first.day, tzinfo=UTC)


class _Draws(NamedTuple):
    """Transactions sorted by customer and day, as arrays of one length."""

    customer: np.ndarray
    terminal: np.ndarray
    day: np.ndarray
    moment: np.ndarray  # microseconds since the start
    amount: np.ndarray


def simulate(scale: Scale = Scale()) -> pl.DataFrame:
    """Draws all transactions of the period.

    Returns:
        One row for each transaction, by time: ``transaction_id`` (Int64, from 0), ``event_timestamp`` (UTC, microseconds),
        ``customer_id``, ``terminal_id`` (Int64, from 0), ``amount`` (Float64, whole cents), ``is_fraud`` (Int8), ``scenario``
        (Int8, 0 where genuine).

    Raises:
        InvalidInput: no terminal is within reach of any customer.
    """
    # One stream for each purpose: what drift adds does not change what is drawn without it.
    population, daily, compromises, late = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(scale.seed).spawn(4)
    )
    draws = _draw(scale, population, daily)
    if scale.drift in ("spending", "both"):
        draws.amount[draws.day >= scale.drift_day] *= SPENDING_SHIFT
    np.round(draws.amount, 2, out=draws.amount)
    scenario = _commit_frauds(scale, draws, compromises, late)
    order = np.argsort(draws.moment, kind="stable")
    since = np.datetime64(scale.start.replace(tzinfo=None), "us").astype(np.int64)
    return pl.DataFrame(
        {
            "transaction_id": np.arange(len(order)),
            "event_timestamp": pl.Series(draws.moment[order] + since).cast(pl.Datetime("us", "UTC")),
            "customer_id": draws.customer[order].astype(np.int64),
            "terminal_id": draws.terminal[order].astype(np.int64),
            "amount": np.round(draws.amount[order], 2),
            "is_fraud": (scenario[order] > 0).astype(np.int8),
            "scenario": scenario[order],
        }
    )


def _draw(scale: Scale, population: np.random.Generator, daily: np.random.Generator) -> _Draws:
    homes = population.uniform(0, SIDE, (scale.customers, 2))
    places = population.uniform(0, SIDE, (scale.terminals, 2))
    mean_amount = population.uniform(5, 100, scale.customers)
    mean_count = population.uniform(0, 4, scale.customers)
    reach, first, reachable = terminals_within(homes, places, RADIUS)
    # A customer out of every terminal's reach buys nothing.
    counts = daily.poisson(np.where(reachable > 0, mean_count, 0.0)[:, None], (scale.customers, scale.days)).ravel()
    if not counts.any():
        raise InvalidInput(
            "terminals", scale.terminals, "no customer makes a transaction; simulate more terminals, customers or days"
        )
    cell = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
    moment = daily.normal(43_200, 20_000, cell.size)
    cell = cell[(moment > 0) & (moment < 86_400)]
    moment = moment[(moment > 0) & (moment < 86_400)]
    customer, day = np.divmod(cell, np.int32(scale.days))
    mean = mean_amount[customer]
    amount = daily.standard_normal(cell.size) * (mean / 2) + mean
    negative = np.flatnonzero(amount < 0)
    amount[negative] = daily.uniform(0, 2 * mean[negative])
    chosen = first[customer] + (daily.random(cell.size) * reachable[customer]).astype(np.int64)
    return _Draws(customer, reach[chosen], day, (moment * 1e6).astype(np.int64) + day.astype(np.int64) * DAY, amount)


def terminals_within(homes: np.ndarray, places: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each home, the places nearer than ``radius``.

    A grid with cells as wide as the radius leaves nine cells to look into, three runs of neighbours once places are sorted.

    Args:
        homes: shape (homes, 2), not negative.
        places: shape (places, 2), not negative.
        radius: in the coordinates' unit.

    Returns:
        Indices of places, sorted by home (int32); for each home where its run begins, and how long it is.
    """
    # A border of empty cells on each side spares the special cases.
    home_cells = (homes // radius).astype(np.int64) + 1
    place_cells = (places // radius).astype(np.int64) + 1
    width = max(home_cells.max(), place_cells.max()) + 2
    place_keys = place_cells[:, 0] * width + place_cells[:, 1]
    by_cell = np.argsort(place_keys, kind="stable")
    place_keys = place_keys[by_cell]
    middles = (home_cells[:, 0, None] + np.array([-1, 0, 1])) * width + home_cells[:, 1, None]
    begins = np.searchsorted(place_keys, middles - 1, side="left")
    lengths = (np.searchsorted(place_keys, middles + 1, side="right") - begins).ravel()
    home = np.repeat(np.repeat(np.arange(len(homes), dtype=np.int32), 3), lengths)
    within_run = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = by_cell[np.repeat(begins.ravel(), lengths) + within_run]
    near = ((homes[home] - places[place]) ** 2).sum(axis=1) < radius**2
    count = np.bincount(home[near], minlength=len(homes))
    return place[near].astype(np.int32), np.cumsum(count) - count, count


def _commit_frauds(scale: Scale, draws: _Draws, compromises: np.random.Generator, late: np.random.Generator) -> np.ndarray:
    scenario = (draws.amount > LARGE_AMOUNT).astype(np.int8)
    scenario[_at_compromised_terminals(scale, draws, compromises)] = 2
    starts = np.searchsorted(
        draws.customer.astype(np.int64) * scale.days + draws.day, np.arange(scale.customers * scale.days + 1)
    )
    for day in range(scale.days):
        for rows in _compromised_customers(scale, starts, day, 3, 14, compromises):
            frauds = compromises.permutation(rows)[: len(rows) // 3]
            draws.amount[frauds] *= 5
            scenario[frauds] = 3
    if scale.drift in ("new_fraud", "both"):
        for day in range(scale.drift_day, scale.days):
            for rows in _compromised_customers(scale, starts, day, 10, 7, late):
                frauds = late.permutation(rows)[: len(rows) // 2]
                draws.amount[frauds] = late.uniform(0.01, 2, len(frauds))
                scenario[frauds] = 4
    return scenario


def _at_compromised_terminals(scale: Scale, draws: _Draws, generator: np.random.Generator) -> np.ndarray:
    taken = [generator.choice(scale.terminals, min(2, scale.terminals), replace=False) for _ in range(scale.days)]
    ever, column = np.unique(np.concatenate(taken), return_inverse=True)
    compromised = np.zeros((scale.days, len(ever) + 1), dtype=bool)
    for day, columns in enumerate(column.reshape(scale.days, -1)):
        compromised[day : day + 28, columns] = True
    # The last column stands for the terminals that are never compromised.
    column_of = np.full(scale.terminals, len(ever))
    column_of[ever] = np.arange(len(ever))
    return compromised[draws.day, column_of[draws.terminal]]


def _compromised_customers(
    scale: Scale, starts: np.ndarray, day: int, count: int, days: int, generator: np.random.Generator
) -> list[np.ndarray]:
    customers = generator.choice(scale.customers, min(count, scale.customers), replace=False)
    until = min(day + days, scale.days)
    return [np.arange(starts[customer * scale.days + day], starts[customer * scale.days + until]) for customer in customers]
