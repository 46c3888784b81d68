"""The decision threshold that costs least on validation rows."""

import numpy as np


def cheapest_threshold(labels: np.ndarray, scores: np.ndarray, false_negative_cost: float, false_positive_cost: float) -> float:
    """The score at or above which deciding 1 costs least in total over the given rows.

    It lies midway between two scores that occur, so that a last digit that differs on another processor changes no
    decision. Of thresholds that cost the same, the highest is taken: the fewest rows are decided 1.

    Args:
        labels: 0 or 1, shape (rows,).
        scores: probabilities, shape (rows,).
        false_negative_cost: cost of a 1 that is decided 0, above 0.
        false_positive_cost: cost of a 0 that is decided 1, in the same unit.

    Returns:
        A threshold in [0, 1], or just above 1 if deciding 1 never pays.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], labels[order].astype(np.int64)
    last_of_its_score = np.append(ranked[1:] != ranked[:-1], True)
    found = np.concatenate(([0], np.cumsum(hits)[last_of_its_score]))
    flagged = np.concatenate(([0], np.flatnonzero(last_of_its_score) + 1))
    costs = false_negative_cost * (hits.sum() - found) + false_positive_cost * (flagged - found)
    cut = int(np.argmin(costs))
    distinct = ranked[last_of_its_score]
    if cut == len(distinct):
        return 0.0
    if cut == 0:
        return float((1 + distinct[0]) / 2) if distinct[0] < 1 else float(np.nextafter(1.0, 2.0))
    return float((distinct[cut - 1] + distinct[cut]) / 2)
