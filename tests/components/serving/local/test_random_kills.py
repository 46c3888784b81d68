"""Whatever dies under load, the champion answers again, no answer is wrong, and what is served stays what it was."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.components.serving.local.conftest import until

pytestmark = [pytest.mark.server, pytest.mark.random_kills]


@pytest.mark.parametrize("which", ["predictor", "proxy", "supervisor", "any of them"])
def test_twenty_random_kills_under_load(yard, which):
    target = yard.serve("1")
    target.start_canary("fraud", yard.models["2"])
    target.set_share("fraud", 20)
    wanted = target.state("fraud")
    chance = random.Random(which)
    victims = {
        "predictor": lambda: yard.predictor("1"),
        "proxy": yard.proxy,
        "supervisor": yard.supervisor,
    }
    with yard.traffic() as traffic:
        for _ in range(20):
            kind = which if which in victims else chance.choice(sorted(victims))
            victim = victims[kind]()
            done = traffic.total
            until(lambda done=done: traffic.total > done + chance.randrange(50))
            assert victim.signal(signal.SIGKILL)
            until(lambda victim=victim: not victim.alive())
            until(lambda: _answers(target))
            state = target.state("fraud")
            assert (state.stable.model, state.stable.share) == (wanted.stable.model, 80)
            assert (state.canary.model, state.canary.share, state.previous) == (wanted.canary.model, 20, wanted.previous)
            assert traffic.ask() in ("1", "2")
        until(lambda: target.state("fraud") == wanted)
        until(lambda: len(yard.processes()) == 4)
    assert not traffic.wrong
    if which == "supervisor":
        assert not traffic.failed


def _answers(target):
    state = target.state("fraud")
    return state.stable.ready and (state.canary.ready or state.canary.failed)


def test_verbs_killed_at_any_moment_can_be_repeated(yard):
    """A step that is killed in the middle of a verb leaves nothing that the next one trips over."""
    code = (
        "import sys\n"
        "from modelyard.components.serving.local.target import LocalTarget\n"
        "from modelyard.components.serving.target import ServedModel\n"
        "target, model = LocalTarget(), ServedModel(*sys.argv[1:])\n"
        "target.start_canary('fraud', model)\n"
        # Where the killed step had promoted it already, there is no canary any more.
        "if target.state('fraud').canary: target.set_share('fraud', 50)\n"
        "target.promote('fraud', model.digest)\n"
    )
    target = yard.serve("1")
    chance = random.Random(3)
    with yard.traffic() as traffic:
        for number in range(20):
            version = "21"[number % 2]
            model = yard.models[version]
            command = [sys.executable, "-c", code, model.version, model.digest, model.uri]
            step = subprocess.Popen(command, start_new_session=True)
            time.sleep(chance.uniform(0.2, 4))
            step.kill()
            step.wait()
            assert subprocess.run(command, check=False).returncode == 0
            state = target.state("fraud")
            assert (state.stable.model, state.stable.share, state.canary) == (model, 100, None)
            assert traffic.ask() == version
    until(lambda: len(yard.processes()) == 3)
    assert not traffic.failed
    assert not traffic.wrong
