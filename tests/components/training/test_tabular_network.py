import os
import signal
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import Feature, ModelSpec
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput
from modelyard.components.training import tabular_network
from modelyard.components.training.session import Interrupted, Session
from modelyard.components.training.tabular_network import NetworkParameters, ParityError, prepare, train_network
from tests.support.labelled_rows import FEATURES, labelled_frame, write_rows

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytestmark = pytest.mark.torch

SMALL = NetworkParameters(epochs=6, early_stopping_epochs=0, hidden=[32, 16], batch_size=128, learning_rate=0.005, threads=1)


def _train(rows, folder, parameters=SMALL):
    return train_network(rows.train, rows.validation, folder, "fraud", parameters)


@pytest.fixture(scope="module")
def uninterrupted(rows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("model") / "model"
        return folder, _train(rows, folder)


def test_the_model_learns_and_the_exported_one_says_so(rows, uninterrupted):
    folder, trained = uninterrupted
    frame = pl.read_parquet(rows.validation)
    scores = load_scorer(folder).score(frame)
    assert trained.metrics["validation_pr_auc"] == pytest.approx(average_precision_score(frame["fraud"], scores))
    assert trained.metrics["validation_roc_auc"] > 0.75
    assert trained.digest == model_digest(folder)


def test_an_unseen_level_scores_as_a_missing_one_and_an_extreme_number_is_finite(uninterrupted):
    scorer = load_scorer(uninterrupted[0])
    row = {"amount": 30.0, "risk": 0.5, "night": True}
    scores = scorer.score(pl.DataFrame([{**row, "country": country} for country in ("XX", None, "DE")]))
    assert scores[0] == scores[1] != scores[2]
    extreme = pl.DataFrame([{**row, "country": "DE", "amount": amount} for amount in (3e38, -3e38, None)])
    assert ((scorer.score(extreme) >= 0) & (scorer.score(extreme) <= 1)).all()


@pytest.mark.parametrize("moment", [1, 4])
def test_a_training_stopped_by_sigterm_goes_on_to_the_same_bytes_in_the_same_run(
    rows, uninterrupted, home, tmp_path, monkeypatch, runs, moment
):
    end_round = Session.end_round

    def stop_in_the_next_epoch(self, metrics, snapshot):
        end_round(self, metrics, snapshot)
        if self.rounds_done == moment:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "end_round", stop_in_the_next_epoch)
    with pytest.raises(Interrupted, match=f"after round {moment} of"):
        _train(rows, tmp_path / "model")
    monkeypatch.setattr(Session, "end_round", end_round)
    trained = _train(rows, tmp_path / "model")
    assert trained.digest == uninterrupted[1].digest
    (run,) = runs()
    assert (run.info.status, run.info.run_id) == ("FINISHED", trained.run_id)


def test_sigterm_in_the_midst_of_an_epoch_keeps_the_epochs_before_it(rows, uninterrupted, home, tmp_path, monkeypatch, capsys):
    end_round = Session.end_round

    def stop_in_the_next_epoch(self, metrics, snapshot):
        end_round(self, metrics, snapshot)
        if self.rounds_done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "end_round", stop_in_the_next_epoch)
    with pytest.raises(Interrupted, match="after round 2 of"):
        _train(rows, tmp_path / "model", replace(SMALL, checkpoint_epochs=0))
    monkeypatch.setattr(Session, "end_round", end_round)
    assert _train(rows, tmp_path / "model").digest == uninterrupted[1].digest
    assert "Going on after round 2" in capsys.readouterr().out


def test_a_model_that_changes_on_export_is_not_delivered(rows, home, tmp_path, monkeypatch, runs):
    write_network = tabular_network.write_network

    def without_clipping(path, preparation, weights, hidden_layers, clip):
        write_network(path, preparation, weights, hidden_layers, 0.5)

    monkeypatch.setattr(tabular_network, "write_network", without_clipping)
    with pytest.raises(ParityError, match="differs"):
        _train(rows, tmp_path / "model", replace(SMALL, epochs=1))
    assert not (tmp_path / "model").exists()
    assert [run.info.status for run in runs()] == ["FAILED"]


@pytest.mark.parametrize("features", [("amount", "risk"), ("country",), ("night",), FEATURES])
def test_any_kind_of_column_alone_is_enough(home, tmp_path, features):
    train, validation = (write_rows(tmp_path / f"{seed}.parquet", labelled_frame(300, seed), features) for seed in (0, 1))
    trained = train_network(train, validation, tmp_path / "model", "fraud", replace(SMALL, epochs=1))
    assert load_scorer(tmp_path / "model").score(labelled_frame(7, 2)).shape == (7,)
    assert trained.metrics["rounds"] == 1


def test_preparation_ignores_missing_values_and_constant_columns():
    matrix = np.array([[1, 5, np.nan, 0], [3, 5, np.nan, 1], [np.nan, 5, np.nan, np.nan]], np.float32)
    spec = ModelSpec((Feature("a"), Feature("b"), Feature("c"), Feature("d", ("x", "y"))), "label", "model.onnx", 0.5)
    preparation = prepare(matrix, spec)
    assert preparation.numbers == (0, 1, 2)
    assert preparation.means.tolist() == [2, 5, 0]
    assert preparation.scales.tolist() == [1, 1, 1]
    assert preparation.indicated == (0, 2)
    assert preparation.categories == ((3, 2),)


@pytest.mark.parametrize(
    "change",
    [{"hidden": []}, {"hidden": [8, 0]}, {"dropout": 1.0}, {"epochs": 0}, {"learning_rate": -1.0}, {"device": "tpu"}],
    ids=str,
)
def test_a_parameter_without_meaning_is_refused(rows, home, tmp_path, change):
    with pytest.raises(InvalidInput, match=next(iter(change))):
        _train(rows, tmp_path / "model", replace(SMALL, **change))


def test_mlflow_loads_the_model(rows, uninterrupted):
    import mlflow

    frame = pl.read_parquet(rows.validation).select(FEATURES)
    expected = load_scorer(uninterrupted[0]).score(frame)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(uninterrupted[0])).predict(frame.to_pandas()), expected)
    assert mlflow.onnx.load_model(str(uninterrupted[0])).graph.input[0].name == "features"


@pytest.mark.gpu
def test_a_gpu_trains_as_good_a_model_as_a_cpu(rows, uninterrupted, home, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU, or PyTorch's CPU build")
    trained = _train(rows, tmp_path / "model", replace(SMALL, device="cuda"))
    assert trained.metrics["validation_pr_auc"] == pytest.approx(uninterrupted[1].metrics["validation_pr_auc"], abs=0.05)
    load_scorer(tmp_path / "model")
