"""The always-valid evidence that a rollout decides by; look as often as you like, stop whenever you like.

Each class takes what both arms did since the look before and holds an *e-value*: a bet against "the canary is fine" that is
worth 1 at the start and cannot be expected to grow if the canary is fine. By Ville's inequality it then ever reaches
``1 / alpha`` with probability at most ``alpha``. Every look is judged by its own counts of both arms, so the shares may
change between looks and the rates may drift as long as they drift for both arms alike. End a look before a share is changed.

    evidence = FailureEvidence(alpha=0.02)
    while evidence.look(canary_bad, canary_total, stable_bad, stable_total) == "go_on":
        ...

Tests that each have an ``alpha`` of their own together raise a false alarm with at most the sum of these, however the
tests depend on each other.

With ``alpha = 0.02``, ten looks of 300 canary and 2,700 stable requests and a stable error rate of 0.5 %, simulations (in the
tests) fail 1.4 % of sound canaries and 73 % of those that fail twice as often. Ville's inequality promises the first figure
to stay at or below 2 % for any number of looks; the second depends on the traffic.

What the guarantee rests on is that the proxy deals out requests at random. Where it deals out clients instead, by
``x-modelyard-key``, it does not hold: a single client that fails or is refused all the time weighs on one arm alone, and with
it a sound canary is failed several times as often as ``alpha`` says, or a bad one is not. A tolerance makes that rarer, and
promises nothing. A mirrored arm, which gets the same requests as the stable one, only varies less than the tests assume.

Latencies depend on each other in time, however requests are dealt out; what that test assumes instead is said in
`LatencyEvidence`.
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
