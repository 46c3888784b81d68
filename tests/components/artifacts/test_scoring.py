import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from modelyard.components.artifacts.model import read_spec, write_spec
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, VerificationFailed
from tests.support.signed_models import FEATURES, train_small_model


@pytest.fixture
def model(tmp_path):
    return train_small_model(tmp_path / "model")


def _edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_few_rows_and_many_score_alike(model):
    scorer = load_scorer(model)
    matrix = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    matrix[::7, 0] = np.nan
    many = scorer.score_matrix(matrix)
    assert many.dtype == np.float64
    assert ((many > 0) & (many < 1)).all()
    np.testing.assert_array_equal(np.concatenate([scorer.score_matrix(part) for part in np.array_split(matrix, 30)]), many)
    import xgboost

    oracle = xgboost.Booster(model_file=model / "model.ubj").predict(xgboost.DMatrix(matrix))
    np.testing.assert_array_equal(many, oracle)


def test_threads_that_score_at_once_get_their_own_scores(model):
    scorer = load_scorer(model)
    matrices = [
        np.random.default_rng(seed).normal(size=(1 + seed % 7, len(FEATURES))).astype(np.float32) for seed in range(200)
    ]
    expected = [scorer.score_matrix(matrix).tolist() for matrix in matrices]
    with ThreadPoolExecutor(8) as pool:
        assert [scores.tolist() for scores in pool.map(scorer.score_matrix, matrices * 5)] == expected * 5


def test_what_xgboost_says_of_rows_that_it_cannot_score_is_raised(model):
    import xgboost

    with pytest.raises(xgboost.core.XGBoostError, match="Number of columns in data must equal"):
        load_scorer(model)._engine.score(np.zeros((1, 5), np.float32))


def test_columns_are_found_by_name(model):
    scorer = load_scorer(model)
    frame = pl.DataFrame({"night": [0.1, 0.2], "more": ["a", "b"], "amount": [2.0, -1.0]})
    np.testing.assert_array_equal(scorer.score(frame), scorer.score_matrix(np.array([[2, 0.1], [-1, 0.2]], np.float32)))


def test_no_rows_get_no_scores(model):
    assert load_scorer(model).score_matrix(np.empty((0, 2), np.float32)).shape == (0,)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 2)])
def test_a_matrix_of_another_shape_is_refused(model, shape):
    with pytest.raises(InvalidInput, match="matrix shape"):
        load_scorer(model).score_matrix(np.zeros(shape, np.float32))


def test_another_model_under_the_same_name_is_refused(model, tmp_path):
    other = train_small_model(tmp_path / "other", seed=1)
    (model / "model.ubj").write_bytes((other / "model.ubj").read_bytes())
    with pytest.raises(VerificationFailed, match="golden row"):
        load_scorer(model)


def test_a_reader_that_drops_the_base_score_is_refused(model):
    """What XGBoost 2.1 does to a model of 3.1 or later whose base score is not 0.5: it answers, wrongly."""
    import xgboost

    booster = xgboost.Booster(model_file=model / "model.ubj")
    content = json.loads(booster.save_raw("json"))
    content["learner"]["learner_model_param"]["base_score"] = "[1.2E-1]"
    booster.load_model(bytearray(json.dumps(content).encode()))
    booster.save_model(model / "model.ubj")
    with pytest.raises(VerificationFailed, match="golden row"):
        load_scorer(model)


@pytest.mark.parametrize(
    "golden",
    [
        "",
        "{}",
        '{"features": ["amount", "night"], "rows": [], "scores": []}',
        '{"features": ["x"], "rows": [[1]], "scores": [1]}',
    ],
)
def test_golden_rows_that_check_nothing_are_refused(model, golden):
    (model / "golden_rows.json").write_text(golden)
    with pytest.raises(VerificationFailed):
        load_scorer(model)


def test_golden_rows_must_be_there(model):
    (model / "golden_rows.json").unlink()
    with pytest.raises(VerificationFailed, match="cannot be checked"):
        load_scorer(model)


@pytest.mark.parametrize("name", ["../model.ubj", "/etc/passwd", "model.pkl", "other.ubj", ""])
def test_only_a_model_of_a_safe_format_inside_the_folder_is_loaded(model, name):
    _edit(model / "modelyard.json", model_file=name)
    with pytest.raises(InvalidInput):
        load_scorer(model)


def test_a_model_that_is_not_one_is_refused(model):
    (model / "model.ubj").write_bytes(b"not a model")
    with pytest.raises(InvalidInput, match=r"model\.ubj"):
        load_scorer(model)


def test_a_model_of_other_features_is_refused(model):
    content = json.loads((model / "modelyard.json").read_text())
    _edit(model / "modelyard.json", features=content["features"][:1])
    with pytest.raises(InvalidInput, match="2 features"):
        load_scorer(model)


def test_an_onnx_file_that_is_none_is_refused(model):
    _edit(model / "modelyard.json", model_file="model.onnx")
    (model / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InvalidInput, match=r"model\.onnx"):
        load_scorer(model)


def test_a_score_that_is_no_number_is_refused(model):
    golden = json.loads((model / "golden_rows.json").read_text())
    _edit(model / "golden_rows.json", rows=golden["rows"][:1], scores=[float("nan")])
    with pytest.raises(VerificationFailed):
        load_scorer(model)


def test_the_specification_travels_with_the_scorer(model):
    spec = read_spec(model)
    write_spec(model, spec)
    assert load_scorer(model).spec == spec
    assert load_scorer(model).spec.feature_names == FEATURES
