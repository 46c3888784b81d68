"""Simulated card transactions, against the same simulation written plainly, customer by customer, in numpy and pandas.

The plain one would take minutes: its transactions are drawn for some of the customers and the time is scaled up; its frauds are
committed on all transactions.
"""

from typing import Any

from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import Clock, Task, measure_in_turn

MOST = 1.5
_OURS, _DRAWING, _FRAUDS = "modelyard", "plain Python, transactions", "plain Python, frauds"


def _measure(setting: Setting) -> list[Row]:
    scale = {
        "customers": setting.size(5_000, 200),
        "terminals": setting.size(10_000, 400),
        "days": setting.size(183, 30),
    }
    part = setting.size(250, 20)
    setting.say(f"simulating {scale['days']} days of {scale['customers']:,} customers")
    ours = measure_in_turn({_OURS: Task(simulate, scale)}, setting.scratch, setting.size(5, 1))
    setting.say(f"the same plainly, for {part} customers")
    measured = ours | measure_in_turn(
        {_DRAWING: Task(draw_plainly, {**scale, "part": part}), _FRAUDS: Task(commit_frauds_plainly, scale)},
        setting.scratch,
    )
    seconds = measured[_OURS].seconds
    peer = measured[_DRAWING].seconds * scale["customers"] / part + measured[_FRAUDS].seconds
    return [
        Row(
            work=f"{measured[_OURS].facts['transactions']:,} transactions of {scale['customers']:,} customers",
            unit="s",
            ours=seconds,
            peer_name="plain Python and pandas",
            peer=peer,
            target=f"at most {MOST} s",
            reached=seconds <= MOST,
            note=(
                f"the peer's draws for {part} customers scaled to {scale['customers']:,}, its frauds measured whole; "
                f"CPU {measured[_OURS].cpu_seconds:.1f} s"
            ),
            measurements=measured,
        )
    ]


FIGURE = Figure("simulate", "Simulated transactions", _measure, needs=("pandas",))


# What follows runs in processes of its own.


def simulate(clock: Clock, customers: int, terminals: int, days: int) -> dict[str, Any]:
    """As ``simulate_transactions`` draws them, before their features are computed."""
    from modelyard.components.features import simulation

    with clock:
        transactions = simulation.simulate(simulation.Scale(customers, terminals, days))
    return {"transactions": transactions.height, "frauds": int(transactions["is_fraud"].sum())}


def draw_plainly(clock: Clock, customers: int, terminals: int, days: int, part: int) -> dict[str, Any]:
    """The transactions of ``part`` of the customers, from the prose of Le Borgne et al."""
    import numpy as np
    import pandas as pd

    draws = np.random.default_rng(0)
    start = pd.Timestamp("2018-04-01")
    with clock:
        places = draws.uniform(0, 100, (terminals, 2))
        tables = []
        for customer in range(part):
            home, mean, rate = draws.uniform(0, 100, 2), draws.uniform(5, 100), draws.uniform(0, 4)
            reachable = np.flatnonzero(np.sqrt(((places - home) ** 2).sum(axis=1)) < 5)
            rows = []
            for day in range(days if len(reachable) else 0):
                for _ in range(draws.poisson(rate)):
                    second = draws.normal(43_200, 20_000)
                    if 0 < second < 86_400:
                        amount = draws.normal(mean, mean / 2)
                        if amount < 0:
                            amount = draws.uniform(0, 2 * mean)
                        rows.append((day * 86_400 + int(second), customer, draws.choice(reachable), round(amount, 2)))
            table = pd.DataFrame(rows, columns=["second", "customer_id", "terminal_id", "amount"])
            table["event_timestamp"] = start + pd.to_timedelta(table["second"], unit="s")
            tables.append(table)
        transactions = pd.concat(tables).sort_values("event_timestamp").reset_index(drop=True)
    return {"transactions": len(transactions)}


def commit_frauds_plainly(clock: Clock, customers: int, terminals: int, days: int) -> dict[str, Any]:
    """The three kinds of fraud, day by day, on the transactions of all customers."""
    import numpy as np

    from modelyard.components.features import simulation

    simulated = simulation.simulate(simulation.Scale(customers, terminals, days))
    columns = ["event_timestamp", "customer_id", "terminal_id", "amount"]
    transactions = simulated.select(columns).to_pandas()
    draws = np.random.default_rng(0)
    with clock:
        day = (transactions["event_timestamp"] - transactions["event_timestamp"].min().normalize()).dt.days
        transactions["scenario"] = 0
        transactions.loc[transactions["amount"] > 220, "scenario"] = 1
        for first in range(days):
            taken = draws.choice(terminals, 2, replace=False)
            hit = day.between(first, first + 27) & transactions["terminal_id"].isin(taken)
            transactions.loc[hit, "scenario"] = 2
        for first in range(days):
            for customer in draws.choice(customers, 3, replace=False):
                hit = day.between(first, first + 13) & (transactions["customer_id"] == customer)
                rows = transactions.index[hit]
                frauds = draws.choice(rows, len(rows) // 3, replace=False)
                transactions.loc[frauds, "amount"] *= 5
                transactions.loc[frauds, "scenario"] = 3
    return {"frauds": int((transactions["scenario"] > 0).sum())}
