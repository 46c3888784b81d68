import numpy as np
import pytest

from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
from tests.support.labelled_rows import FEATURES, labelled_frame, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(folder / "home"))
        train, validation = (write_rows(folder / f"{seed}.parquet", labelled_frame(600, seed)) for seed in (0, 1))
        train_boosted_trees(train, validation, folder / "model", "fraud", BoostingParameters(rounds=5, threads=1))
    return folder / "model"


def test_mlflow_scores_raw_rows_as_the_scorer_does(model):
    import mlflow

    frame = labelled_frame(50, 2).select(FEATURES)
    loaded = mlflow.pyfunc.load_model(str(model))
    np.testing.assert_array_equal(loaded.predict(frame.to_pandas()), load_scorer(model).score(frame))
    assert loaded.metadata.signature.inputs.input_names() == list(FEATURES)


def test_mlflow_refuses_rows_that_lack_a_column(model):
    import mlflow

    with pytest.raises(mlflow.exceptions.MlflowException, match="risk"):
        mlflow.pyfunc.load_model(str(model)).predict(labelled_frame(5, 2).select(FEATURES).drop("risk").to_pandas())


def test_mlflow_loads_the_booster_itself(model):
    import mlflow
    import xgboost

    booster = mlflow.xgboost.load_model(str(model))
    scorer = load_scorer(model)
    frame = labelled_frame(50, 2)
    types = ["q" if feature.categories is None else "c" for feature in scorer.spec.features]
    rows = xgboost.DMatrix(
        scorer.spec.encode(frame), feature_types=types, feature_names=list(FEATURES), enable_categorical=True
    )
    np.testing.assert_array_equal(booster.predict(rows), scorer.score(frame))


def test_the_signature_names_the_raw_columns(model):
    from mlflow.models import Model

    kinds = {column.name: column.type.name for column in Model.load(str(model)).signature.inputs}
    assert kinds == {"amount": "double", "risk": "double", "country": "string", "night": "boolean"}
