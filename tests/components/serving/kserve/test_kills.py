"""Verbs that are killed at a write, before it is sent or after it was done, and called again by another process."""

import pytest

from modelyard.components.serving.kserve.api import Cluster

pytestmark = [pytest.mark.server, pytest.mark.slow]
_MOST_WRITES = 12


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


@pytest.fixture
def kill(monkeypatch):
    """Kills at a write of this number from now, before or after it; 0 never again."""
    state = {"left": 0, "before": False}
    ask = Cluster._ask

    def patched(cluster, method, *args, **details):
        if method == "GET" or not state["left"]:
            return ask(cluster, method, *args, **details)
        state["left"] -= 1
        last = not state["left"]
        if last and state["before"]:
            raise Killed
        answer = ask(cluster, method, *args, **details)
        if last:
            raise Killed
        return answer

    monkeypatch.setattr(Cluster, "_ask", patched)

    def at(write, *, before=False):
        state.update(left=write, before=before)

    return at


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("verb", ["start_canary", "set_share", "promote", "roll_back", "restore"])
def test_killed_at_any_write_and_called_again_a_verb_does_what_it_was_asked(served, kill, verb, before):
    models = served.models
    expected = {
        "start_canary": ("2", "3", "1"),
        "set_share": ("2", "3", "1"),
        "promote": ("3", None, "2"),
        "roll_back": ("2", None, "1"),
        "restore": ("1", None, "2"),
    }[verb]

    def call(target):
        if verb == "start_canary":
            target.start_canary("fraud", models["3"])
        elif verb == "set_share":
            target.set_share("fraud", 70)
        elif verb == "promote":
            target.promote("fraud", models["3"].digest)
        elif verb == "roll_back":
            target.roll_back("fraud")
        else:
            target.restore("fraud", models["1"])

    served.bring("1")
    served.bring("2")
    for write in range(1, _MOST_WRITES):
        if verb != "start_canary":
            served.target.start_canary("fraud", models["3"])
            served.target.set_share("fraud", 40)
        kill(write, before=before)
        try:
            call(served.open())
            over = True
        except Killed:
            over = False
        kill(0)
        # Whoever looks now sees one in charge that serves, whatever stands half done.
        assert served.target.state("fraud").stable is not None
        call(served.open())
        state = served.target.state("fraud")
        arms = tuple(arm.model.version if arm else None for arm in (state.stable, state.canary))
        assert (*arms, state.previous.version) == expected
        assert not served.was_ever_lost()
        # Back to where it began.
        served.target.roll_back("fraud")
        served.target.restore("fraud", models["1"])
        served.target.restore("fraud", models["2"])
        if over:
            break
    assert over
    assert write > 1
