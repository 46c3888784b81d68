"""The paired bootstrap of a challenger against the champion, against scikit-learn's average precision repeated with weights.

Both get the same draws, so their answers can be compared; drawing the weights is timed here and not there.
"""

from typing import Any

from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import Clock, Task, measure_in_turn

MOST = 2.0
FRAUD_SHARE = 0.0084
_OURS, _ALL, _PEER = "modelyard, PR-AUC", "modelyard, all metrics", "scikit-learn, PR-AUC"
_TOLERANCE = 1e-9


def _measure(setting: Setting) -> list[Row]:
    rows, draws = setting.size(1_000_000, 20_000), setting.size(200, 20)
    # Scaled up: all draws would take minutes.
    peer_draws = setting.size(10, 2)
    result = []
    for clusters, by in ((setting.size(20_000, 400), "customer"), (rows, "row")):
        setting.say(f"{draws} paired draws by {by} from {rows:,} rows")
        sizes = {"rows": rows, "clusters": clusters, "draws": draws}
        tasks = {
            _OURS: Task(bootstrap, {**sizes, "metrics": ["pr_auc"], "shown": peer_draws}),
            _PEER: Task(bootstrap_by_hand, {**sizes, "taken": peer_draws}),
        }
        if by == "customer":
            tasks[_ALL] = Task(bootstrap, {**sizes, "metrics": [], "shown": peer_draws})
        measured = measure_in_turn(tasks, setting.scratch, setting.size(3, 1))
        peer = measured[_PEER].cpu_seconds * draws / peer_draws
        for ours in (name for name in tasks if name != _PEER):
            differences = sum(
                abs(one - other) > _TOLERANCE
                for one, other in zip(measured[ours].facts["pr_auc"], measured[_PEER].facts["pr_auc"], strict=True)
            )
            seconds = measured[ours].cpu_seconds
            result.append(
                Row(
                    work=f"{'PR-AUC' if ours == _OURS else 'all metrics'} of two models, {rows:,} rows, {draws} draws by {by}",
                    unit="CPU s",
                    ours=seconds,
                    peer_name="scikit-learn, PR-AUC alone",
                    peer=peer,
                    target=f"at most {MOST} CPU s, same values" if ours == _OURS else "same values",
                    reached=differences == 0 and (seconds <= MOST or ours == _ALL),
                    differences=differences,
                    note=f"the peer's {peer_draws} draws scaled to {draws}; wall {measured[ours].seconds:.1f} s",
                    measurements={ours: measured[ours], _PEER: measured[_PEER]},
                )
            )
    return result


FIGURE = Figure("bootstrap", "Paired bootstrap", _measure, needs=("sklearn",))


# What follows runs in processes of its own.


def bootstrap(clock: Clock, rows: int, clusters: int, draws: int, metrics: list[str], shown: int) -> dict[str, Any]:
    """As ``evaluate_model`` does it; all metrics if none is named."""
    from modelyard.components.evaluation.bootstrap import replicates
    from modelyard.components.evaluation.metrics import METRICS, Terms

    test, models = _test_rows(rows, clusters)
    wanted = metrics or tuple(METRICS)
    # Imports what is needed.
    replicates(test, models, Terms(), draws=1, metrics=wanted)
    with clock:
        challenger, champion = replicates(test, models, Terms(), draws=draws, metrics=wanted)
    return {"pr_auc": (challenger["pr_auc"] - champion["pr_auc"])[:shown].tolist()}


def bootstrap_by_hand(clock: Clock, rows: int, clusters: int, draws: int, taken: int) -> dict[str, Any]:
    """As one would write it; the first ``taken`` of the draws."""
    from sklearn.metrics import average_precision_score

    from modelyard.components.evaluation.bootstrap import draw_weights

    test, models = _test_rows(rows, clusters)
    weights = next(draw_weights(clusters, draws, seed=0))
    differences = []
    with clock:
        for draw in range(taken):
            weight = weights[test.clusters, draw]
            challenger, champion = (
                average_precision_score(test.labels, model.values, sample_weight=weight) for model in models
            )
            differences.append(float(challenger - champion))
    return {"pr_auc": differences}


def _test_rows(rows: int, clusters: int) -> Any:
    """Labels with few positives, and two models of which the first is somewhat better."""
    import numpy as np

    from modelyard.components.evaluation.bootstrap import Rows, Scores

    draws = np.random.default_rng(0)
    labels = draws.random(rows) < FRAUD_SHARE
    by_row = clusters == rows
    codes = np.arange(rows) if by_row else draws.integers(0, clusters, rows)
    # All codes occur, as they do in codes made from names.
    codes[:clusters] = np.arange(clusters)
    noise = draws.normal(size=rows)

    def scores(strength: float) -> Scores:
        logits = strength * labels - 4 + 0.8 * noise + 0.6 * draws.normal(size=rows)
        return Scores(1 / (1 + np.exp(-logits)), 0.5)

    days = None if by_row else draws.integers(0, 30, rows)
    return Rows(labels, codes, days), [scores(3.0), scores(2.8)]
