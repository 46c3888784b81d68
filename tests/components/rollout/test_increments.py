from dataclasses import replace

from modelyard.components.rollout.increments import Increment, increment
from modelyard.components.serving.target import Counts


def counts(**values) -> Counts:
    zeros = Counts().latency
    return Counts(**{"answered": 10, "rejected": 2, "failed": 1, "latency": (5, 8, *zeros[2:]), "flagged": 3, **values})


def test_between_two_looks_lies_what_was_added():
    later = counts(answered=15, rejected=3, failed=1, latency=(5, 14, *Counts().latency[2:]), flagged=4)
    found = increment(counts(), later)
    assert (found.answered, found.rejected, found.failed, found.flagged, found.latency[:2]) == (5, 1, 0, 1, (0, 6))
    assert (found.requests, found.samples, found.restarted) == (6, 5, False)


def test_counts_that_fell_count_from_zero_and_the_others_go_on():
    found = increment(counts(), counts(answered=4, rejected=2, failed=9, flagged=5))
    assert (found.answered, found.rejected, found.failed, found.flagged) == (4, 2, 9, 2)
    assert found.latency == Counts().latency
    assert found.restarted
    predictor = increment(counts(), replace(counts(answered=12), latency=(1, *Counts().latency[1:]), flagged=0))
    assert (predictor.answered, predictor.latency[0], predictor.flagged, predictor.restarted) == (2, 1, 0, True)


def test_what_could_not_be_read_adds_nothing():
    assert increment(None, counts()) == increment(counts(), None) == Increment()


def test_counts_since_different_moments_have_nothing_between_them():
    assert increment(counts(origin="a"), counts(answered=15, origin="b")) == Increment()
    assert increment(counts(origin="a"), counts(answered=15, origin="a")).answered == 5
