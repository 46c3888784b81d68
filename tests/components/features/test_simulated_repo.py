"""The simulated feature repo: what Feast itself makes of it, and what a copy elsewhere gives."""

import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.features.feast_protos import registry_format
from modelyard.components.features.fetching import Request, fetch_training_data
from modelyard.components.features.simulated_repo import FEATURE_SERVICE, REGISTRY, write_simulated_repo
from modelyard.components.features.simulation import Scale, simulate
from modelyard.components.features.windows import (
    CUSTOMER_FEATURES,
    TERMINAL_FEATURES,
    customer_windows,
    terminal_windows,
)

SCALE = Scale(customers=50, terminals=300, days=45, seed=11)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    write_simulated_repo(folder / "repo", folder / "rows.parquet", SCALE)
    return folder


def _contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_scales_give_equal_bytes_also_over_what_an_earlier_attempt_left(simulated, tmp_path):
    for _ in range(2):
        write_simulated_repo(tmp_path / "repo", tmp_path / "rows.parquet", SCALE)
        assert _contents(tmp_path) == _contents(simulated)


def test_every_transaction_gets_the_windows_of_its_own_moment_from_a_copy_elsewhere(simulated, tmp_path, monkeypatch):
    shutil.copytree(simulated, tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    before = _contents(tmp_path / "elsewhere")
    request = Request(str(tmp_path / "elsewhere/repo"), str(tmp_path / "elsewhere/rows.parquet"), FEATURE_SERVICE, "is_fraud")
    fetch_training_data(request, tmp_path / "training_data")
    assert _contents(tmp_path / "elsewhere") == before

    frame, _ = read_dataset(tmp_path / "training_data")
    transactions = simulate(SCALE)
    assert_frame_equal(frame.select(CUSTOMER_FEATURES), customer_windows(transactions).select(CUSTOMER_FEATURES))
    assert_frame_equal(frame.select(TERMINAL_FEATURES), terminal_windows(transactions).select(TERMINAL_FEATURES))


def test_the_registry_is_the_one_that_feast_apply_writes(simulated, tmp_path):
    folder = tmp_path / "repo"
    shutil.copytree(simulated / "repo", folder)
    written = _registry(folder)
    (folder / REGISTRY).unlink()
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run([feast, "apply"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    applied = _registry(folder)
    for kind in ("projects", "entities", "data_sources", "feature_views", "feature_services"):
        assert _undated(getattr(written, kind)) == _undated(getattr(applied, kind))


def _registry(folder):
    registry = registry_format().Registry()
    registry.ParseFromString((folder / REGISTRY).read_bytes())
    return registry


def _undated(definitions):
    """As text, by name, without moments and without what Feast repeats of a view's source in a service."""
    texts = []
    for definition in definitions:
        copy = type(definition)()
        copy.CopyFrom(definition)
        copy.ClearField("meta")
        specification = getattr(copy, "spec", copy)
        for projection in getattr(specification, "features", ()):
            if hasattr(projection, "batch_source"):
                for field in ("batch_source", "timestamp_field", "created_timestamp_column"):
                    projection.ClearField(field)
        if hasattr(specification, "batch_source"):
            specification.batch_source.ClearField("meta")
        texts.append(str(copy))
    return sorted(texts)


def test_feast_itself_serves_the_repo_from_a_copy_elsewhere_and_leaves_it_as_it_was(simulated, tmp_path, monkeypatch):
    from feast import FeatureStore

    shutil.copytree(simulated / "repo", tmp_path / "repo")
    before = _contents(tmp_path / "repo")
    monkeypatch.chdir("/")
    rows = pl.read_parquet(simulated / "rows.parquet").tail(500)
    store = FeatureStore(repo_path=str(tmp_path / "repo"))
    job = store.get_historical_features(rows.to_pandas(), store.get_feature_service(FEATURE_SERVICE))
    found = pl.DataFrame(job.to_arrow())
    expected = customer_windows(simulate(SCALE)).tail(500).select(CUSTOMER_FEATURES)
    assert_frame_equal(found.select(CUSTOMER_FEATURES), expected)
    assert _contents(tmp_path / "repo") == before


def test_nothing_of_feast_starts_to_simulate_and_fetch(simulated, tmp_path):
    code = f"""
import sys
from modelyard.components.features.fetching import Request, fetch_training_data
from modelyard.components.features.simulated_repo import write_simulated_repo
from modelyard.components.features.simulation import Scale
write_simulated_repo({str(tmp_path / "repo")!r}, {str(tmp_path / "rows")!r}, Scale(20, 100, 20))
request = Request({str(tmp_path / "repo")!r}, {str(tmp_path / "rows")!r}, "fraud_detection", "is_fraud")
fetch_training_data(request, {str(tmp_path / "data")!r})
heavy = {{"feast", "pandas", "duckdb", "ibis", "scipy", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
import feast
assert feast.FeatureStore and feast.protos
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
