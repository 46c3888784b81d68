"""A rollout at the real local target, killed again and again under load."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.registry.versions import aliases
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.tracking.connection import client
from tests.services.servers import free_port
from tests.support.checked_traffic import CheckedTraffic

KILLS = 20
PARAMETERS = {
    "steps": [10, 25, 50, 75, 100],
    "bake_seconds": 4,
    "min_samples": 20,
    "look_seconds": 0.3,
    "deadline_seconds": 300,
    "shadow_seconds": 4,
    # The two models have little in common, and two busy cores no steady latency.
    "limits": {"score_tolerance": 1.0, "max_latency_ratio": 64.0},
}
ROLL_OUT = (
    "import json, sys; from modelyard.components.rollout.rolling_out import rollout_model\n"
    "print(rollout_model(sys.argv[1] + '.html', sys.argv[1] + '.json', **json.loads(sys.argv[2])).outcome)\n"
)


@pytest.mark.random_kills
@pytest.mark.server
def test_killed_twenty_times_at_random_under_load_a_rollout_ends_well_and_no_answer_is_wrong(laptop, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_SERVING_PORT", str(free_port()))
    target, chance = LocalTarget(), random.Random(5)
    model = laptop.versions["3"]
    arguments = {"model_name": "fraud", "version": "3", "digest": model.digest, "uri": model.uri, **PARAMETERS}
    command = [sys.executable, "-c", ROLL_OUT, str(tmp_path / "rollout"), json.dumps(arguments)]
    folders = {version: Path(found.uri) for version, found in laptop.versions.items()}
    try:
        target.restore("fraud", laptop.versions["1"])
        with CheckedTraffic(target.state("fraud").url, folders, pause=0.02) as traffic:
            for _ in range(KILLS):
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
                # It says what it does as soon as it is at work.
                process.stdout.readline()
                time.sleep(chance.uniform(0, 4))
                process.kill()
                process.communicate()
                # In charge is who the registry says, or it is about to be.
                assert target.state("fraud").stable.model.version in ("1", aliases(client(), "fraud")["champion"])
                traffic.ask()
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
            assert done.stdout.endswith("promoted\n"), (done.stderr, target.read_record("fraud")["rollout"]["events"])
            assert traffic.ask() == "3"
        assert aliases(client(), "fraud") == {"champion": "3", "previous": "1"}
        state = target.state("fraud")
        assert (state.stable.model.version, state.canary, state.previous.version) == ("3", None, "1")
        assert not traffic.failed
        assert not traffic.wrong
        assert traffic.answered["3"] > 100
    finally:
        target.stop()
