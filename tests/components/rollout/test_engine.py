import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.registry import versions
from modelyard.components.registry.promotion import promote_model
from modelyard.components.serving.target import TargetChanged
from modelyard.components.tracking.connection import client
from tests.support.simulated_target import Behaviour


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def rejected(version: str = "3") -> str:
    return client().get_model_version("fraud", version).tags.get("rejected_reason", "")


def test_a_good_version_gets_its_steps_one_after_another_and_is_promoted(trial):
    at = trial()
    done = at.run()
    assert (done.decision, done.outcome) == ("pass", "promoted"), done.reasons
    assert [percent for _, percent, _ in at.target.history] == [5, 25, 50, 100, 100]
    assert at.in_charge == "3"
    assert at.target.canary is None
    assert at.target.previous.version == "1"
    assert named() == {"champion": "3", "previous": "1"}
    assert done.total("canary").requests > 100


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(failing=0.05), "odds of a failed request"),
        (Behaviour(rejecting=0.1), "odds of a rejected request"),
        (Behaviour(latency=0.04), "Latency"),
        (Behaviour(score=0.0), "Scores"),
        (Behaviour(failing=0.9), "burst of failures"),
        (Behaviour(refusal="its signature is not by whom we trust"), "its signature is not by whom we trust"),
        (Behaviour(golden_fault="golden row 3 scores 0.2 instead of 0.4"), "golden row 3 scores"),
    ],
)
def test_a_version_that_is_worse_is_rolled_back_and_its_reason_is_kept(trial, behaviour, reason):
    at = trial({"3": behaviour})
    done = at.run()
    assert (done.decision, done.outcome) == ("fail", "rolled_back")
    assert reason in "; ".join(done.reasons)
    assert at.in_charge == "1"
    assert at.target.canary is None
    assert named() == {"champion": "1"}
    assert reason in rejected()
