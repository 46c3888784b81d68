import os
import subprocess
import sys

import pytest

from modelyard.components.lean_imports import left_out
from tests.support.signed_models import train_small_model


@pytest.fixture
def in_a_step(monkeypatch):
    monkeypatch.setenv("_KFP_RUNTIME", "true")


@pytest.fixture
def rarely_used(tmp_path, monkeypatch):
    """A module that nothing has imported yet."""
    (tmp_path / "rarely_used.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield "rarely_used"
    sys.modules.pop("rarely_used", None)


def test_a_module_is_missing_in_the_block_and_there_after_it(in_a_step, rarely_used):
    with left_out(rarely_used), pytest.raises(ModuleNotFoundError):
        __import__(rarely_used)
    assert __import__(rarely_used).__name__ == rarely_used


def test_a_module_comes_back_after_a_failure_too(in_a_step, rarely_used):
    with pytest.raises(KeyError), left_out(rarely_used):
        raise KeyError
    assert __import__(rarely_used).__name__ == rarely_used


def test_a_module_that_is_loaded_already_stays(in_a_step, rarely_used):
    loaded = __import__(rarely_used)
    with left_out(rarely_used):
        assert __import__(rarely_used) is loaded
    assert sys.modules[rarely_used] is loaded


def test_nothing_is_left_out_outside_of_a_step(monkeypatch, rarely_used):
    monkeypatch.delenv("_KFP_RUNTIME", raising=False)
    with left_out(rarely_used):
        assert __import__(rarely_used).__name__ == rarely_used


def _run(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"} | variables
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment).stdout


def test_a_server_of_our_own_counts_as_a_step():
    code = """
from modelyard.components.lean_imports import left_out, treat_process_as_step
treat_process_as_step()
with left_out("colorsys"):
    try:
        import colorsys
    except ModuleNotFoundError:
        print("missing")
import colorsys
"""
    assert _run(code) == "missing\n"


_SCORE = """
import sys
import numpy as np
from modelyard.components.artifacts.scoring import load_scorer
print(load_scorer({model!r}).score_matrix(np.array([[3, 0.2], [np.nan, 0.9]], np.float32)).tolist())
"""


def test_a_step_scores_alike_without_scikit_learn_and_can_import_it_later(tmp_path):
    model = str(train_small_model(tmp_path / "model"))
    code = _SCORE.format(model=model) + (
        "print([name for name in ('sklearn', 'pandas') if name in sys.modules])\n"
        "import sklearn.linear_model, pandas\n"
        "print(sklearn.linear_model.LinearRegression().fit([[0], [1]], [0, 1]).predict([[1]]).round(6))\n"
    )
    scores, loaded, predicted = _run(code, _KFP_RUNTIME="true").splitlines()
    assert loaded == "[]"
    assert predicted == "[1.]"
    assert scores == _run(_SCORE.format(model=model)).strip()


def test_outside_of_a_step_xgboost_has_its_scikit_learn_classes(tmp_path):
    code = _SCORE.format(model=str(train_small_model(tmp_path / "model")))
    _run(code + "import xgboost; xgboost.XGBClassifier(n_estimators=1).fit([[0], [1]], [0, 1])")


def test_in_a_step_mlflow_keeps_runs_without_pandas_and_can_use_it_later(tmp_path):
    code = """
import sys
from modelyard.components import tracking
from modelyard.components.tracking.connection import experiment_id
client = tracking.client()
run = client.create_run(experiment_id(client, "fraud")).info.run_id
client.log_metric(run, "pr_auc", 0.5)
client.log_dict(run, {"a": 1}, "a.json")
print(client.get_run(run).data.metrics, "pandas" in sys.modules)
import sklearn, mlflow, pandas
print(len(mlflow.search_runs(experiment_names=["fraud"])))
"""
    home = {"MODELYARD_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    assert _run(code, _KFP_RUNTIME="true", **home).splitlines() == ["{'pr_auc': 0.5} False", "1"]
