import pytest

from modelyard.components import tracking
from modelyard.components.errors import NotAvailable
from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
from modelyard.components.training.labelled_rows import open_rows
from modelyard.components.training.tracked_run import TrackedRun
from tests.services.fixtures import mlflow_server, rclone_s3  # noqa: F401


def _steps(run: TrackedRun, name: str) -> list[int]:
    return [metric.step for metric in tracking.client().get_metric_history(run.run_id, name)]


def test_a_resumed_run_gets_only_the_rounds_that_it_lacks(home):
    first = TrackedRun("fraud")
    first.log_history({"loss": [0.5] * 1500, "quality": [0.1] * 3})
    second = TrackedRun("fraud", first.run_id)
    assert second.run_id == first.run_id
    second.log_history({"loss": [0.5] * 2600, "quality": [0.1] * 5})
    second.log_history({"loss": [0.5] * 2601, "quality": [0.1] * 5})
    assert _steps(second, "loss") == list(range(2601))
    assert _steps(second, "quality") == list(range(5))


def test_describing_a_run_again_adds_nothing(home, rows):
    data = {"training": open_rows(rows.train, "train")}
    run = TrackedRun("fraud")
    for _ in range(2):
        run.describe({"rounds": 3, "more": {"a": 1}}, {"tag": "x", "empty": ""}, data)
    found = tracking.client().get_run(run.run_id)
    assert found.data.params == {"rounds": "3", "more": '{"a": 1}'}
    assert "empty" not in found.data.tags
    assert len(found.inputs.dataset_inputs) == 1


def test_a_run_with_other_parameters_is_not_written_over(home, rows):
    run = TrackedRun("fraud")
    run.describe({"rounds": 3}, {}, {})
    with pytest.raises(NotAvailable, match="a run of its own"):
        run.describe({"rounds": 4}, {}, {})


def test_a_run_that_was_deleted_meanwhile_is_replaced(home):
    first = TrackedRun("fraud")
    tracking.client().delete_run(first.run_id)
    assert TrackedRun("fraud", first.run_id).run_id != first.run_id


def test_a_given_run_that_is_not_there_is_not_replaced(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(NotAvailable, match="MLFLOW_RUN_ID"):
        TrackedRun("fraud")


def test_how_it_ended_is_said_of_its_own_run_only(home, monkeypatch):
    own = TrackedRun("fraud")
    own.end_badly("FAILED")
    client = tracking.client()
    assert client.get_run(own.run_id).info.status == "FAILED"
    monkeypatch.setenv("MLFLOW_RUN_ID", own.run_id)
    given = TrackedRun("fraud")
    given.end_badly("KILLED")
    given.finish({"quality": 0.5})
    assert client.get_run(own.run_id).info.status == "FAILED"
    assert client.get_run(own.run_id).data.metrics == {"quality": 0.5}


def test_a_server_that_goes_away_stops_no_training_but_its_end(home, monkeypatch, capsys):
    run = TrackedRun("fraud")
    (home / "mlflow.db").rename(home / "away.db")
    (home / "mlflow.db").mkdir()
    run.log_history({"quality": [0.1]})
    assert "logged later" in capsys.readouterr().out
    with pytest.raises(NotAvailable):
        run.log_history({"quality": [0.1]}, last=True)
    (home / "mlflow.db").rmdir()
    (home / "away.db").rename(home / "mlflow.db")
    run.log_history({"quality": [0.1, 0.2]}, last=True)
    assert _steps(run, "quality") == [0, 1]


@pytest.mark.server
def test_a_server_gets_all_that_a_training_tells(
    rows,
    tmp_path,
    monkeypatch,
    mlflow_server,  # noqa: F811
):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for name, value in mlflow_server.environment.items():
        monkeypatch.setenv(name, value)
    parameters = BoostingParameters(rounds=30, early_stopping_rounds=0, threads=1)
    trained = train_boosted_trees(rows.train, rows.validation, tmp_path / "model", "fraud", parameters)
    run = tracking.client().get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["max_depth"] == "6"
    assert run.data.metrics["validation_pr_auc"] == pytest.approx(trained.metrics["validation_pr_auc"])
    assert len(run.inputs.dataset_inputs) == 2
    assert len(tracking.client().get_metric_history(trained.run_id, "round_pr_auc")) == 30
