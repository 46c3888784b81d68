import json
import math

import numpy as np
import pytest

from modelyard.components.evaluation.evaluating import Settings, evaluate
from modelyard.components.evaluation.outputs import ROC_POINTS, confusion_matrix, figures, roc_points, write_outputs
from tests.components.evaluation.conftest import champion_of
from tests.components.evaluation.tiny_models import transactions, write_test_set

QUICK = Settings(draws=100)


@pytest.fixture(scope="module")
def result(strong, weak, test_set):
    return evaluate(strong, test_set, model_name="cards", champion=champion_of(weak), settings=QUICK)


def test_figures_are_finite_plain_floats_with_the_difference_to_the_champion(result):
    found = figures(result)

    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert found["pr_auc_difference"] == pytest.approx(result.difference["pr_auc"].value)
    assert found["rows"] == 5000


def test_the_confusion_matrix_counts_every_row_once(result):
    matrix = np.array(confusion_matrix(result))

    assert matrix.sum() == 5000
    assert matrix[1].sum() == result.data["positives"]
    assert matrix[1, 1] / matrix[1].sum() == pytest.approx(result.challenger.metrics["recall"].value)


def test_the_roc_curve_is_thinned_but_keeps_its_area(result):
    false_rate, true_rate, thresholds = roc_points(result)

    assert len(false_rate) == len(true_rate) == len(thresholds) <= ROC_POINTS
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert np.isfinite(thresholds).all()
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(result.challenger.metrics["roc_auc"].value, abs=2e-3)


def test_one_class_has_no_roc_curve(strong, tmp_path):
    test = write_test_set(transactions(500, 1).filter(fraud=0), tmp_path / "test.parquet")

    assert roc_points(evaluate(strong, test, model_name="cards", settings=QUICK)) is None


def test_the_files_hold_the_report_and_strict_json(result, tmp_path):
    page = write_outputs(result, report=tmp_path / "a" / "report", evaluation=tmp_path / "b" / "evaluation")

    assert (tmp_path / "a" / "report").read_text() == page
    content = json.loads((tmp_path / "b" / "evaluation").read_text(), parse_constant=pytest.fail)
    assert content["decision"] == result.decision
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report"]
