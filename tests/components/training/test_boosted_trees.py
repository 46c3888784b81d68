import json
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import REFERENCE_FILE, read_spec
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training.boosted_trees import BoostingParameters, needs_external_memory, train_boosted_trees
from modelyard.components.training.devices import cuda_devices
from modelyard.components.training.labelled_rows import open_rows
from modelyard.components.training.session import Interrupted, Session
from tests.support.labelled_rows import FEATURES, labelled_frame, write_rows

# Every random draw that XGBoost makes: rows, and columns by tree and by node.
SAMPLED = BoostingParameters(
    rounds=40,
    early_stopping_rounds=0,
    subsample=0.7,
    colsample_bytree=0.8,
    threads=1,
    checkpoint_rounds=7,
    more={"colsample_bynode": 0.7},
)


def _train(rows, folder: Path, parameters: BoostingParameters = SAMPLED):
    return train_boosted_trees(rows.train, rows.validation, folder, "fraud", parameters)


@pytest.fixture(scope="module")
def uninterrupted(rows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("model") / "model"
        return folder, _train(rows, folder)


def test_the_model_learns_and_says_so(rows, uninterrupted):
    folder, trained = uninterrupted
    scorer = load_scorer(folder)
    frame = pl.read_parquet(rows.validation)
    scores = scorer.score(frame)
    assert trained.metrics["validation_pr_auc"] == pytest.approx(average_precision_score(frame["fraud"], scores))
    assert trained.metrics["validation_pr_auc"] > 2 * frame["fraud"].mean()
    assert trained.digest == model_digest(folder)
    assert scorer.spec.training["rounds"] == trained.metrics["rounds"] <= 40
    assert scorer.spec.data["digest"] == open_rows(rows.train, "train").digest


def test_a_level_that_training_lacks_scores_as_a_missing_one(uninterrupted):
    scorer = load_scorer(uninterrupted[0])
    row = {"amount": 30.0, "risk": 0.5, "night": True}
    scores = scorer.score(pl.DataFrame([{**row, "country": country} for country in ("XX", None, "DE")]))
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize(
    "change",
    [{"threads": 1}, {"threads": 3}, {"memory_limit_gib": 1e-9}, {"checkpoint_rounds": 0}],
    ids=lambda change: next(iter(change)),
)
def test_neither_threads_nor_memory_nor_checkpoints_change_a_byte(rows, uninterrupted, home, tmp_path, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = _train(rows, tmp_path / "model", replace(SAMPLED, **change))
    assert trained.digest == uninterrupted[1].digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"learning_rate": 0.2}, {"imbalance": "balanced"}, {"false_negative_cost": 3.0}], ids=str
)
def test_what_shapes_the_model_changes_its_digest(rows, uninterrupted, home, tmp_path, change):
    assert _train(rows, tmp_path / "model", replace(SAMPLED, **change)).digest != uninterrupted[1].digest


@pytest.mark.parametrize("moment", random.Random(20).sample(range(1, 40), 4))
def test_a_training_stopped_by_sigterm_goes_on_to_the_same_bytes_in_the_same_run(
    rows, uninterrupted, home, tmp_path, monkeypatch, runs, moment
):
    end_round = Session.end_round

    def stop_at_the_moment(self, metrics, snapshot):
        if self.rounds_done == moment - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        end_round(self, metrics, snapshot)

    monkeypatch.setattr(Session, "end_round", stop_at_the_moment)
    with pytest.raises(Interrupted, match=f"after round {moment} of"):
        _train(rows, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert [run.info.status for run in runs()] == ["KILLED"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(Session, "end_round", end_round)
    grown = []
    monkeypatch.setattr("xgboost.Booster.update", _counting(grown))
    trained = _train(rows, tmp_path / "model")
    assert grown == list(range(moment, 40))
    assert trained.digest == uninterrupted[1].digest
    (run,) = runs()
    assert (run.info.status, run.info.run_id) == ("FINISHED", trained.run_id)
    assert list((home / "checkpoints").iterdir()) == []


def _counting(grown: list[int]):
    import xgboost

    update = xgboost.Booster.update

    def counted(self, rows, iteration):
        grown.append(iteration)
        return update(self, rows, iteration)

    return counted


_KILLED = """
import json, os, signal, sys
from modelyard.components.training import boosted_trees, session
parameters, moment = boosted_trees.BoostingParameters(**json.loads(sys.argv[4])), int(sys.argv[5])
end_round = session.Session.end_round
def killed(self, metrics, snapshot):
    if self.rounds_done >= moment:
        os.kill(os.getpid(), signal.SIGKILL)
    end_round(self, metrics, snapshot)
session.Session.end_round = killed
boosted_trees.train_boosted_trees(*sys.argv[1:4], "fraud", parameters)
"""


def test_a_training_killed_again_and_again_goes_on_to_the_same_bytes_in_the_same_run(rows, uninterrupted, home, tmp_path, runs):
    # Before the first checkpoint, between two, and at the very last round.
    for moment in (3, random.Random(21).randrange(8, 38), 39):
        arguments = [str(rows.train), str(rows.validation), str(tmp_path / "model"), json.dumps(asdict(SAMPLED)), str(moment)]
        killed = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False, capture_output=True, timeout=300)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "model").exists()
    trained = _train(rows, tmp_path / "model")
    assert trained.digest == uninterrupted[1].digest
    (run,) = runs()
    assert (run.info.status, run.info.run_id) == ("FINISHED", trained.run_id)
    assert list((home / "checkpoints").iterdir()) == []
    from modelyard.components import tracking

    steps = [metric.step for metric in tracking.client().get_metric_history(run.info.run_id, "round_pr_auc")]
    assert steps == list(range(40))


def test_early_stopping_keeps_the_best_round_and_so_does_a_resumed_training(rows, home, tmp_path, monkeypatch):
    parameters = BoostingParameters(rounds=300, early_stopping_rounds=15, learning_rate=0.3, threads=1)
    trained = _train(rows, tmp_path / "one", parameters)
    import xgboost

    kept = xgboost.Booster(model_file=tmp_path / "one" / "model.ubj").num_boosted_rounds()
    assert kept == trained.metrics["rounds"] < 300
    end_round = Session.end_round

    def stop_while_waiting(self, metrics, snapshot):
        if self.rounds_done == kept + 5:
            os.kill(os.getpid(), signal.SIGTERM)
        end_round(self, metrics, snapshot)

    monkeypatch.setattr(Session, "end_round", stop_while_waiting)
    with pytest.raises(Interrupted):
        _train(rows, tmp_path / "two", parameters)
    monkeypatch.setattr(Session, "end_round", end_round)
    assert _train(rows, tmp_path / "two", parameters).digest == trained.digest


def test_base_score_is_a_half_and_stays_where_older_readers_look(uninterrupted):
    import xgboost

    booster = xgboost.Booster(model_file=uninterrupted[0] / "model.ubj")
    parameters = json.loads(booster.save_config())["learner"]["learner_model_param"]
    assert float(parameters["base_score"].strip("[]")) == 0.5
    # What XGBoost 2.1 uses when it cannot read the vector is this very value: the sum of the trees alone.
    spec = read_spec(uninterrupted[0])
    rows = spec.encode(labelled_frame(50, 3))
    types = ["q" if feature.categories is None else "c" for feature in spec.features]
    matrix = xgboost.DMatrix(rows, feature_types=types, feature_names=list(spec.feature_names), enable_categorical=True)
    margin = booster.predict(matrix, output_margin=True)
    leaves = booster.predict(matrix, pred_leaf=True)
    trees = booster.trees_to_dataframe().set_index(["Tree", "Node"])["Gain"]
    summed = [sum(trees[(tree, int(leaf))] for tree, leaf in enumerate(row)) for row in leaves]
    np.testing.assert_allclose(margin, summed, atol=1e-4)


def test_golden_rows_hold_both_classes_and_missing_values(uninterrupted):
    golden = json.loads((uninterrupted[0] / "golden_rows.json").read_text())
    assert len(golden["rows"]) == 32
    assert [None] * 4 in golden["rows"]
    assert max(golden["scores"]) - min(golden["scores"]) > 0.3


def test_the_reference_sample_has_what_the_model_saw_and_answered(rows, uninterrupted):
    sample = pl.read_parquet(uninterrupted[0] / REFERENCE_FILE)
    assert sample.columns == [*FEATURES, "fraud", "event_timestamp", "score"]
    assert sample.height == 1500
    np.testing.assert_array_equal(sample["score"], load_scorer(uninterrupted[0]).score(sample))


def test_nothing_of_the_machine_or_the_run_is_in_the_model(rows, uninterrupted):
    folder, trained = uninterrupted
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    for trace in (trained.run_id, str(rows.train.parent), str(folder.parent), str(Path.home())):
        assert trace.encode() not in content


def test_the_run_tells_what_was_trained_how_and_on_what(rows, home, tmp_path, runs):
    trained = _train(rows, tmp_path / "model")
    (run,) = runs()
    assert run.data.params["subsample"] == "0.7"
    assert run.data.params["base_score"] == "0.5"
    assert run.data.tags["modelyard.model_digest"] == trained.digest
    assert run.data.tags["modelyard.train_digest"] == open_rows(rows.train, "train").digest
    assert run.data.metrics["validation_pr_auc"] == trained.metrics["validation_pr_auc"]
    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation"}
    assert open_rows(rows.train, "train").digest.startswith(f"blake3:{inputs['training'].digest}")


def test_another_attempt_replaces_the_model_of_the_first_and_nothing_else(rows, home, tmp_path):
    first = _train(rows, tmp_path / "model")
    (tmp_path / "model" / "model.ubj").write_bytes(b"spoiled")
    assert _train(rows, tmp_path / "model").digest == first.digest == model_digest(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidInput, match="no model is there"):
        _train(rows, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds = 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"subsample": 1.5}, "subsample"),
        ({"false_negative_cost": 0.0}, "false_negative_cost"),
        ({"device": "gpu"}, "device"),
        ({"more": {"max_dept": 3}}, "max_dept.*no such parameter"),
        ({"more": {"objective": "reg:squarederror"}}, "no such parameter"),
        ({"more": {"eta": 0.3}}, "give it as learning_rate"),
        ({"more": {"scale_pos_weight": 3}}, "give it as imbalance"),
        ({"more": {"min_child_weight": -1}}, "min_child_weight.*XGBoost refuses it"),
        ({"more": {"grow_policy": "sideways"}}, "grow_policy.*XGBoost refuses it"),
        ({"more": {"max_bin": "many"}}, "max_bin.*XGBoost refuses it"),
    ],
)
def test_a_parameter_that_xgboost_would_drop_or_misread_is_refused(rows, home, tmp_path, runs, change, message):
    with pytest.raises(InvalidInput, match=message):
        _train(rows, tmp_path / "model", replace(SAMPLED, **change))
    assert runs() == []


def test_further_parameters_of_xgboost_are_used(rows, home, tmp_path):
    more = {
        "min_child_weight": 5,
        "grow_policy": "lossguide",
        "max_leaves": 4,
        "monotone_constraints": "(0,1,0,0)",
        "max_bin": 300,
    }
    _train(rows, tmp_path / "model", replace(SAMPLED, rounds=5, more=more))
    scorer = load_scorer(tmp_path / "model")
    rising = pl.DataFrame({"risk": np.linspace(-3, 3, 50)}).with_columns(amount=20.0, country=pl.lit("FR"), night=False)
    assert (np.diff(scorer.score(rising)) >= 0).all()
    assert scorer.spec.training["parameters"]["max_leaves"] == 4


def test_an_infinite_number_is_refused_by_column(rows, home, tmp_path, runs):
    frame = labelled_frame(500, 0).with_columns(risk=pl.when(pl.int_range(500) == 7).then(float("inf")).otherwise("risk"))
    with pytest.raises(InvalidInput, match=r"risk.*row 7 holds inf"):
        train_boosted_trees(write_rows(tmp_path / "t.parquet", frame), rows.validation, tmp_path / "m", "fraud", SAMPLED)
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_a_name_that_xgboost_cannot_keep_is_refused(rows, home, tmp_path):
    frames = [labelled_frame(200, seed).rename({"risk": "risk[7d]"}) for seed in (0, 1)]
    train, validation = (
        write_rows(tmp_path / f"{number}.parquet", frame, ("amount", "risk[7d]")) for number, frame in enumerate(frames)
    )
    with pytest.raises(InvalidInput, match="rename it"):
        train_boosted_trees(train, validation, tmp_path / "model", "fraud", SAMPLED)


def test_a_column_without_a_value_or_without_a_change_is_no_obstacle(home, tmp_path):
    frames = [
        labelled_frame(400, seed).with_columns(empty=pl.lit(None), unnamed=pl.lit(None, dtype=pl.String), constant=1.0)
        for seed in (0, 1)
    ]
    train, validation = (
        write_rows(tmp_path / f"{number}.parquet", frame, (*FEATURES, "empty", "unnamed", "constant"))
        for number, frame in enumerate(frames)
    )
    trained = train_boosted_trees(train, validation, tmp_path / "model", "fraud", replace(SAMPLED, rounds=5))
    assert trained.metrics["validation_roc_auc"] > 0.6


def test_rows_beyond_the_limit_go_to_disk(rows):
    train = open_rows(rows.train, "train")
    assert not needs_external_memory(train, BoostingParameters())
    assert needs_external_memory(train, BoostingParameters(memory_limit_gib=1e-6))


def test_a_tracking_server_that_is_down_fails_before_anything_is_trained(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    with pytest.raises(NotAvailable, match=r"127\.0\.0\.1:9.*MLFLOW_TRACKING_URI") as raised:
        _train(rows, tmp_path / "model")
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.gpu
def test_a_gpu_trains_as_good_a_model_as_a_cpu(rows, uninterrupted, home, tmp_path):
    import xgboost

    if not (xgboost.build_info().get("USE_CUDA") and cuda_devices()):
        pytest.skip("no GPU, or XGBoost's CPU build")
    trained = _train(rows, tmp_path / "model", replace(SAMPLED, device="cuda"))
    assert trained.metrics["validation_pr_auc"] == pytest.approx(uninterrupted[1].metrics["validation_pr_auc"], abs=0.03)
    load_scorer(tmp_path / "model")
