"""The components of this room, run as pipeline steps."""

import polars as pl
import pytest
from kfp import dsl

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.features.component import fetch_features, simulate_transactions, split_dataset
from tests.support.kfp_runner import run_component


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    return run_component(simulate_transactions, folder / "run", customers=60, terminals=400, days=60, seed=3)


@pytest.fixture(scope="module")
def fetched(simulated, tmp_path_factory):
    return run_component(
        fetch_features,
        tmp_path_factory.mktemp("fetched") / "run",
        feature_repo_uri=simulated["feature_repo_uri"],
        entity_rows_uri=simulated["entity_rows_uri"],
        feature_service="fraud_detection",
        label="is_fraud",
        start="2018-04-11",
        entity_features=["amount", "night", "weekend"],
    )


def test_simulated_transactions_become_training_data(simulated, fetched):
    rows = pl.read_parquet(simulated["entity_rows"].path)
    assert simulated["transactions"] == rows.height
    assert simulated["frauds"] == rows["is_fraud"].sum() > 0

    frame, info = read_dataset(fetched["training_data"].path)
    assert (
        fetched["rows"]
        == frame.height
        == rows.filter(pl.col("event_timestamp") >= pl.datetime(2018, 4, 11, time_zone="UTC")).height
    )
    assert fetched["digest"] == file_digest(fetched["training_data"].path)
    assert info.roles.entities == ("customer_id", "terminal_id")
    assert len(info.roles.features) == 15
    assert frame.null_count().sum_horizontal().item() == 0


def test_training_data_is_split_in_time(fetched, tmp_path):
    outputs = run_component(
        split_dataset,
        tmp_path / "run",
        inputs={"dataset": (dsl.Dataset, fetched["training_data"].path)},
        test_days=10.0,
        validation_days=10.0,
        gap_days=2.0,
    )
    train, validation, test = (read_dataset(outputs[name].path)[0] for name in ("train", "validation", "test"))
    assert (outputs["train_rows"], outputs["validation_rows"], outputs["test_rows"]) == (
        train.height,
        validation.height,
        test.height,
    )
    assert train["event_timestamp"].max() < validation["event_timestamp"].min() < test["event_timestamp"].min()


def test_an_unknown_service_fails_with_a_message_that_lists_the_known_ones(simulated, tmp_path, capfd):
    with pytest.raises(RuntimeError):
        run_component(
            fetch_features,
            tmp_path / "run",
            feature_repo_uri=simulated["feature_repo_uri"],
            entity_rows_uri=simulated["entity_rows_uri"],
            feature_service="loans",
            label="is_fraud",
        )
    assert "feature_service = 'loans': the feature repo has no such service; it has fraud_detection" in capfd.readouterr().out
