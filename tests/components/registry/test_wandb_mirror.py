import subprocess
import sys

import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.tracking.connection import client

# wandb starts a service of its own, which should not outlive a test: it gets a process of its own.
REGISTER = (
    "import sys; from modelyard.components.registry.registration import register_model\n"
    "register_model(sys.argv[1], evaluation=sys.argv[2], model_name='fraud', wandb_project='releases')\n"
)


@pytest.mark.slow
def test_offline_the_metrics_of_a_run_are_written_to_the_home(release, home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = client().create_run(client().create_experiment("x")).info.run_id
    client().log_metric(run, "validation_logloss", 0.25)
    made = release(run_id=run)
    subprocess.run([sys.executable, "-c", REGISTER, made.signed, made.evaluation], check=True, timeout=120)
    version = client().get_model_version("fraud", "1")
    identity = version.tags["digest"].removeprefix("blake3:")[:32]
    (record,) = home.rglob("*.wandb")
    assert identity in record.name
    # The record's texts stand in it as they are.
    content = record.read_bytes()
    for text in (
        "releases",
        run,
        version.source,
        "evaluation/average_precision",
        "0.71",
        "training/validation_logloss",
        "0.25",
    ):
        assert text.encode() in content, text


def test_without_wandb_or_without_its_server_the_version_is_registered_and_the_error_is_clear(release, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(NotAvailable, match="modelyard\\[wandb\\]"):
        release().register(wandb_project="releases")
    assert client().get_model_version("fraud", "1")
