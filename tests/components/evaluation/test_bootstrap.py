import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput
from modelyard.components.evaluation import bootstrap
from modelyard.components.evaluation.bootstrap import Rows, Scores, draw_weights, estimates, interval, replicates
from modelyard.components.evaluation.metrics import METRICS, Terms, card_days, measure

TERMS = Terms(precision=0.5, cards_per_day=5)


def _population(seed: int, rows: int = 500, clusters: int = 40, levels: int = 20) -> tuple[Rows, Scores, Scores]:
    """Two related models on clustered rows with many ties."""
    random = np.random.default_rng(seed)
    cluster = random.integers(0, clusters, rows)
    trait = random.normal(size=clusters)[cluster]
    signal = random.normal(size=rows) + trait
    labels = signal + random.normal(size=rows) > 2
    first = 1 / (1 + np.exp(-(signal + 0.5 * random.normal(size=rows) - 2)))
    second = 1 / (1 + np.exp(-(signal + 0.9 * random.normal(size=rows) - 2)))
    grid = lambda scores: np.round(scores * levels) / levels  # noqa: E731
    days = random.integers(0, 4, rows)
    return Rows(labels, cluster, days), Scores(grid(first), 0.4), Scores(grid(second), 0.3)


def _naive_card_precision(rows: Rows, scores: np.ndarray, weights: np.ndarray, k: int) -> float:
    """The definition, card by card."""
    found: set[int] = set()
    precisions = []
    for day in np.unique(rows.days):
        today = rows.days == day
        cards = []
        for card in np.unique(rows.clusters[today]):
            mine = today & (rows.clusters == card)
            if card not in found and weights[card]:
                cards.append((-scores[mine].max(), rows.labels[mine].any(), card))
        places, hits, taken = k, 0.0, 0.0
        for _, fraudulent, card in sorted(cards):
            share = min(places, weights[card])
            if share <= 0:
                break
            places, taken = places - share, taken + share
            if fraudulent:
                hits += share
                found.add(card)
        if taken:
            precisions.append(hits / taken)
    return float(np.mean(precisions))


@pytest.mark.parametrize("seed", range(4))
def test_every_draw_equals_the_plain_metrics_under_the_same_weights(seed):
    rows, first, second = _population(seed)
    drawn = replicates(rows, [first, second], TERMS, draws=25, seed=seed)
    weights = np.concatenate(list(draw_weights(rows.cluster_count, 25, seed)), axis=1).astype(np.float64)

    for model, found in zip((first, second), drawn):
        assert set(found) == set(METRICS)
        for draw in range(25):
            plain = measure(rows.labels, model.values, model.threshold, TERMS, weights=weights[rows.clusters, draw])
            plain["card_precision"] = _naive_card_precision(rows, model.values, weights[:, draw], TERMS.cards_per_day)
            assert {name: found[name][draw] for name in plain} == pytest.approx(plain, nan_ok=True, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 4), st.floats(0, 1))
def test_small_odd_samples_agree_with_the_plain_metrics_too(seed, size, levels, rate):
    random = np.random.default_rng(seed)
    rows = Rows(random.random(size) < rate, np.unique(random.integers(0, 9, size), return_inverse=True)[1])
    model = Scores(random.integers(0, levels + 1, size) / levels, 0.5)
    found = replicates(rows, [model], TERMS, draws=5, seed=seed)[0]
    weights = np.concatenate(list(draw_weights(rows.cluster_count, 5, seed)), axis=1).astype(np.float64)

    for draw in range(5):
        plain = measure(rows.labels, model.values, 0.5, TERMS, weights=weights[rows.clusters, draw])
        assert {name: values[draw] for name, values in found.items()} == pytest.approx(plain, nan_ok=True, abs=1e-12)


def test_asking_for_fewer_metrics_gives_the_same_draws():
    rows, first, _ = _population(1)
    full = replicates(rows, [first], TERMS, draws=20, seed=3)[0]

    for name in METRICS:
        alone = replicates(rows, [first], TERMS, draws=20, seed=3, metrics=(name,))[0]
        assert list(alone) == [name]
        np.testing.assert_array_equal(alone[name], full[name])


def test_weights_follow_the_poisson_distribution_and_the_seed():
    table = bootstrap._poisson_table()
    assert table.mean() == 1.0
    assert table.var() == pytest.approx(1.0, abs=1e-3)
    for weight in range(6):
        assert (table == weight).mean() == pytest.approx(math.exp(-1) / math.factorial(weight), abs=2**-16)

    same, again, other = (np.concatenate(list(draw_weights(1000, 300, seed)), axis=1) for seed in (5, 5, 6))
    np.testing.assert_array_equal(same, again)
    assert same.shape == (1000, 300)
    assert not np.array_equal(same, other)
    # Blocks of draws must not repeat one another.
    assert len(np.unique(same, axis=1).T) == 300


def test_large_samples_are_drawn_in_several_blocks(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 400)
    blocks = list(draw_weights(40, 25, 0))

    assert [block.shape for block in blocks] == [(40, 10), (40, 10), (40, 5)]


def test_an_unknown_metric_is_named_with_those_that_exist():
    rows, first, _ = _population(0)
    with pytest.raises(InvalidInput, match="pr_auc"):
        replicates(rows, [first], TERMS, metrics=("auprc",))


def test_the_paired_interval_is_narrower_than_the_unpaired_one():
    rows, first, second = _population(2, rows=3000, clusters=150, levels=1000)
    paired = replicates(rows, [first, second], TERMS, draws=400, seed=0)
    apart = replicates(rows, [second], TERMS, draws=400, seed=1)[0]

    for name in ("pr_auc", "roc_auc", "brier", "expected_cost"):
        together = np.ptp(interval(0.0, paired[0][name] - paired[1][name]))
        unpaired = np.ptp(interval(0.0, paired[0][name] - apart[name]))
        assert together < 0.75 * unpaired


def test_resampling_clusters_widens_the_interval_where_rows_are_alike():
    rows, first, _ = _population(3, rows=4000, clusters=60, levels=1000)
    by_cluster = replicates(rows, [first], TERMS, draws=300, metrics=("brier",))[0]["brier"]
    by_row = replicates(Rows(rows.labels, np.arange(4000)), [first], TERMS, draws=300, metrics=("brier",))[0]["brier"]

    assert by_cluster.std() > 1.3 * by_row.std()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    def sample(seed: int, clusters: int) -> tuple[Rows, Scores, Scores]:
        random = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(clusters), 8)
        signal = random.normal(size=len(cluster)) + random.normal(size=clusters)[cluster]
        labels = signal + random.normal(size=len(cluster)) > 1.5
        scores = [1 / (1 + np.exp(-(signal + noise * random.normal(size=len(cluster)) - 1.5))) for noise in (0.6, 1.0)]
        return Rows(labels, cluster), Scores(scores[0], 0.5), Scores(scores[1], 0.5)

    names = ("pr_auc", "roc_auc", "brier", "ece", "expected_cost")
    truth = {}
    rows, first, second = sample(10**6, 60_000)
    values = [measure(rows.labels, model.values, 0.5, TERMS) for model in (first, second)]
    for name in names:
        truth[name] = values[0][name] - values[1][name]

    repeats = 250
    held = dict.fromkeys(names, 0)
    for seed in range(repeats):
        rows, first, second = sample(seed, 150)
        _, difference = estimates(rows, [first, second], TERMS, draws=250, seed=seed)
        for name in names:
            held[name] += difference[name].low <= truth[name] <= difference[name].high

    # Nominal 95 %: within four standard errors of the simulation, and a little slack below for the small sample.
    for name in names:
        assert 0.89 <= held[name] / repeats <= 0.995, (name, held[name] / repeats)


def test_a_reflected_interval_takes_the_bias_of_resampling_out():
    random = np.random.default_rng(0)
    scores = np.clip(random.beta(2, 5, 1500), 0, 1)
    rows = Rows(random.random(1500) < scores, np.arange(1500))
    (own,), _ = estimates(rows, [Scores(scores, 0.5)], TERMS, draws=300)
    drawn = replicates(rows, [Scores(scores, 0.5)], TERMS, draws=300, metrics=("ece",))[0]["ece"]

    value = own["ece"].value
    assert np.median(drawn) > value + drawn.std()
    plain = interval(value, drawn)
    assert own["ece"].high == pytest.approx(2 * value - plain[0])
    assert own["ece"].low == max(0.0, 2 * value - plain[1])


def test_no_interval_comes_from_too_few_clusters_or_draws_that_are_undefined():
    labels = np.array([True] + [False] * 99)
    model = Scores(np.linspace(1, 0, 100), 0.5)

    (few,), _ = estimates(Rows(labels, np.arange(100) % 9), [model], TERMS, draws=100)
    assert few["pr_auc"].value == 1.0
    assert few["pr_auc"].low is None
    # The one positive is left out of 37 % of the draws.
    (lonely,), _ = estimates(Rows(labels, np.arange(100)), [model], TERMS, draws=100)
    assert lonely["pr_auc"].low is None
    assert lonely["brier"].low is not None


def test_no_rows_give_no_figures():
    nothing = Rows(np.empty(0, bool), np.empty(0, np.int64), np.empty(0, np.int64))
    (own,), difference = estimates(nothing, [Scores(np.empty(0), 0.5)], TERMS)

    assert set(own) == set(METRICS)
    assert all(found.value is None for found in own.values())
    assert difference == {}


def test_a_subset_keeps_rows_of_one_cluster_together():
    rows, _, _ = _population(4)
    mask = rows.labels
    part = rows.subset(mask)

    assert part.cluster_count == len(np.unique(rows.clusters[mask]))
    for code in range(part.cluster_count):
        assert len(np.unique(rows.clusters[mask][part.clusters == code])) == 1
    assert card_days(part.labels, np.zeros(len(part.labels)), part.clusters, part.days).fraudulent.all()
