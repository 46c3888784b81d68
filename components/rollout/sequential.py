"""The always-valid evidence that a rollout decides by; look as often as you like, stop whenever you like.

Each class takes what both arms did since the look before and holds an *e-value*: a bet against "the canary is fine" that is
worth 1 at the start and cannot be expected to grow if the canary is fine. By Ville's inequality it then ever reaches
``1 / alpha`` with probability at most ``alpha``. Every look is judged by its own counts of both arms, so the shares may
change between looks and the rates may drift as long as they drift for both arms alike. End a look before a share is changed.

    evidence = FailureEvidence(alpha=0.02)
    while evidence.look(canary_bad, canary_total, stable_bad, stable_total) == "go_on":
        ...

Several kinds of evidence, each with its own ``alpha``, together raise a false alarm with at most the sum of their alphas, whatever the
dependence between them.
"""

from modelyard.components.rollout.failures import FailureEvidence, is_burst
from modelyard.components.rollout.latency import LatencyEvidence
from modelyard.components.rollout.scores import ScoreEvidence, reference_shift

__all__ = [
    "FailureEvidence",
    "LatencyEvidence",
    "ScoreEvidence",
    "is_burst",
    "reference_shift",
]
