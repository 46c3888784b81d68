"""An experiment whose log and labels lie where a cluster's predictors put them."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.experiments.analysis import Terms, analyze
from modelyard.components.experiments.component import analyze_experiment
from modelyard.components.storage import uris
from tests.components.experiments.simulated_traffic import FIRST, predictions, write_log
from tests.services.fixtures import gcs_emulator, rclone_s3  # noqa: F401
from tests.services.servers import free_port
from tests.support.kfp_runner import run_component

pytestmark = pytest.mark.server

END = FIRST + timedelta(days=3)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))


@pytest.fixture(params=["rclone_s3", "gcs_emulator"])
def prefix(request, home, monkeypatch) -> str:
    """URI prefix in a bucket on a real server."""
    for name, value in request.getfixturevalue(request.param).environment.items():
        monkeypatch.setenv(name, value)
    return ("gs" if request.param == "gcs_emulator" else "s3") + "://bucket/" + request.node.name


def store_experiment(prefix, folder, **traffic):
    """A log as predictors write it and a file of labels; gives what was logged."""
    log, labels = predictions(0, keys=500, quality=(1.0, 2.4), days=3, split_by="request", **traffic)
    write_log(f"{prefix}/log", log)
    labels.write_parquet(folder / "labels.parquet")
    uris.put_file(folder / "labels.parquet", f"{prefix}/labels.parquet")
    return log


def test_a_canarys_log_in_an_object_store_tells_who_won(prefix, tmp_path):
    log = store_experiment(prefix, tmp_path)
    outputs = run_component(
        analyze_experiment,
        tmp_path / "run",
        model_name="fraud",
        predictions_uri=f"{prefix}/log",
        labels_uri=f"{prefix}/labels.parquet",
        version_a="1",
        version_b="2",
        start=f"{FIRST:%Y-%m-%d}",
        end=END.isoformat(),
        share_b=50.0,
        split_by="request",
    )
    content = json.loads(Path(outputs["result"].path).read_text())
    assert outputs["decision"] == content["decision"] == "winner"
    assert content["quality"]["predictions"] == log.height
    assert sum(content["allocation"]["units"]) == log.height
    assert content["quality"]["crossed_keys"] > 100


def test_a_damaged_file_of_the_log_is_named_and_nothing_is_decided(rclone_s3, home, tmp_path, monkeypatch):  # noqa: F811
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = "s3://bucket/damaged"
    store_experiment(prefix, tmp_path)
    damaged = max((rclone_s3.folder / "bucket" / "damaged" / "log" / "fraud").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match=damaged.name):
        analyze(
            model_name="fraud",
            predictions_uri=f"{prefix}/log",
            labels_uri=f"{prefix}/labels.parquet",
            version_a="1",
            version_b="2",
            start=FIRST,
            end=END,
            terms=Terms(split_by="request"),
        )


def test_a_store_that_nobody_reaches_decides_nothing(home, monkeypatch, tmp_path):
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotAvailable, match="s3://bucket"):
        analyze(
            model_name="fraud",
            predictions_uri="s3://bucket/log",
            labels_uri="s3://bucket/labels.csv",
            version_a="1",
            version_b="2",
        )
