import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import read_spec, write_spec
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.evaluation.evaluating import Settings, evaluate
from modelyard.components.evaluation.metrics import Terms
from tests.components.evaluation.conftest import champion_of
from tests.components.evaluation.tiny_models import FEATURES, transactions, write_test_set

QUICK = Settings(cluster_by="customer_id", draws=200)


def _evaluate(model, test, settings=QUICK, **arguments):
    return evaluate(model, test, model_name="cards", settings=settings, **arguments)


def test_figures_are_those_of_the_model_on_the_test_rows(strong, test_set):
    frame = pl.read_parquet(test_set)
    scores = load_scorer(strong).score(frame)
    result = _evaluate(strong, test_set)

    labels = frame["fraud"].to_numpy()
    assert result.challenger.metrics["pr_auc"].value == pytest.approx(average_precision_score(labels, scores))
    assert result.challenger.metrics["roc_auc"].value == pytest.approx(roc_auc_score(labels, scores))
    for found in result.challenger.metrics.values():
        assert found.low <= found.value <= found.high


def test_a_better_model_passes_and_a_worse_one_fails_against_the_champion(strong, weak, test_set):
    better = _evaluate(strong, test_set, champion=champion_of(weak))
    worse = _evaluate(weak, test_set, champion=champion_of(strong))
    same = _evaluate(strong, test_set, champion=champion_of(strong))

    assert (better.decision, worse.decision, same.decision) == ("pass", "fail", "pass")
    assert better.difference["pr_auc"].value == pytest.approx(-worse.difference["pr_auc"].value)
    assert same.difference["pr_auc"].low == same.difference["pr_auc"].high == 0.0


def test_the_json_has_what_later_steps_read_and_equal_runs_write_equal_bytes(strong, weak, test_set):
    settings = replace(QUICK, slices=("country", "amount"))
    first, second = (_evaluate(strong, test_set, settings, champion=champion_of(weak)).content() for _ in range(2))

    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    assert first["format_version"] == 1
    assert first["model_digest"] == model_digest(strong)
    assert set(first["champion"]) == {"version", "digest", "metrics", "difference"}
    assert first["champion"]["digest"] == model_digest(weak)
    assert first["data"]["rows"] == 5000
    assert first["data"]["lineage"]["feature_service"] == "fraud_v1"
    assert first["bootstrap"] == {"draws": 200, "cluster_by": "customer_id", "confidence": 0.95, "seed": 0}
    assert set(first["gates"][0]) >= {
        "name",
        "kind",
        "metric",
        "threshold",
        "value",
        "low",
        "high",
        "decision",
        "reason",
    }
    by_country = [part for part in first["slices"] if part["column"] == "country"]
    assert sum(part["rows"] for part in by_country) == 5000
    rare = next(part for part in by_country if part["value"] == "<b>XX</b>")
    assert rare["metrics"] == {}
    assert next(part for part in by_country if part["value"] == "FR")["difference"]["pr_auc"]["low"] is not None


def test_a_model_altered_after_training_is_refused(strong, test_set, tmp_path):
    altered = shutil.copytree(strong, tmp_path / "model")
    write_spec(altered, replace(read_spec(altered), threshold=0.9))

    with pytest.raises(VerificationFailed, match="altered"):
        _evaluate(altered, test_set, expected_digest=model_digest(strong))


def test_a_champion_that_needs_a_feature_the_test_set_lacks_is_inconclusive(strong, weak, tmp_path):
    frame = transactions(3000, 5).drop("risk")
    test = write_test_set(frame, tmp_path / "test.parquet", ("amount", "hour", "country"))
    result = _evaluate(weak, test, champion=champion_of(strong))

    assert result.decision == "inconclusive"
    assert "risk" in result.reasons[0]
    assert result.challenger.metrics["pr_auc"].value is not None
    content = result.content()
    assert content["champion"] == {"version": "3", "digest": model_digest(strong), "metrics": {}, "difference": {}}


def test_a_champion_that_predicts_another_label_is_inconclusive(strong, test_set, tmp_path):
    other = shutil.copytree(strong, tmp_path / "other")
    write_spec(other, replace(read_spec(other), label="churn"))
    result = _evaluate(strong, test_set, champion=champion_of(other))

    assert result.decision == "inconclusive"
    assert "churn" in result.reasons[0]


def test_a_damaged_champion_is_an_error_and_not_a_first_model(strong, test_set, tmp_path):
    damaged = shutil.copytree(strong, tmp_path / "damaged")
    golden = json.loads((damaged / "golden_rows.json").read_text())
    golden["scores"][0] += 0.1
    (damaged / "golden_rows.json").write_text(json.dumps(golden))

    with pytest.raises(VerificationFailed):
        _evaluate(strong, test_set, champion=champion_of(damaged))


@pytest.mark.parametrize("kept", ["none", "negatives", "positives"])
def test_an_empty_or_one_sided_test_set_is_inconclusive(strong, tmp_path, kept):
    frame = transactions(1000, 3).filter(
        {"none": pl.lit(False), "negatives": pl.col("fraud") == 0}.get(kept, pl.col("fraud") == 1)
    )
    test = write_test_set(frame, tmp_path / "test.parquet")
    settings = replace(QUICK, slices=("country",), gates={"absolute": [{"metric": "brier", "max": 1}]})
    result = _evaluate(strong, test, settings, champion=champion_of(strong))

    assert result.decision == "inconclusive"
    json.dumps(result.content(), allow_nan=False)


def test_without_a_cluster_column_rows_are_resampled_and_card_precision_is_left_out(strong, test_set):
    result = _evaluate(strong, test_set, replace(QUICK, cluster_by=""))

    assert "card_precision" not in result.challenger.metrics
    assert "cluster_by" in result.skipped["card_precision"]
    assert result.challenger.metrics["pr_auc"].low is not None


def test_rows_without_a_customer_are_clusters_of_their_own(strong, tmp_path):
    frame = transactions(2000, 4).with_columns(customer_id=pl.when(pl.int_range(pl.len()) % 2 == 0).then("customer_id"))
    test = write_test_set(frame, tmp_path / "test.parquet")
    unknown = write_test_set(frame.with_columns(customer_id=pl.lit(None, pl.Int64)), tmp_path / "unknown.parquet")

    assert _evaluate(strong, test).challenger.metrics["pr_auc"].low is not None
    assert _evaluate(strong, unknown).challenger.metrics["pr_auc"].low is not None


def test_few_clusters_give_no_intervals_and_no_pass(strong, tmp_path):
    frame = transactions(2000, 4).with_columns(customer_id=pl.col("customer_id") % 5)
    test = write_test_set(frame, tmp_path / "test.parquet")
    result = _evaluate(strong, test)

    assert result.decision == "inconclusive"
    assert any("5 clusters" in note for note in result.notes)


def test_a_model_trained_on_the_test_period_is_pointed_out(strong, test_set, tmp_path):
    seen = shutil.copytree(strong, tmp_path / "seen")
    write_spec(
        seen,
        replace(read_spec(seen), data={"end": "2023-12-31T00:00:00+00:00", "validation": {"end": "2024-01-05T00:00:00+00:00"}}),
    )

    assert any("The model was trained on rows up to 2024-01-05" in note for note in _evaluate(seen, test_set).notes)
    assert not _evaluate(strong, test_set).notes


def test_size_and_latency_are_measured_only_for_a_gate(strong, test_set):
    gates = {"absolute": [{"metric": "model_bytes", "max": 10**7}, {"metric": "latency_ms", "max": 10_000}]}
    result = _evaluate(strong, test_set, replace(QUICK, gates=gates))

    by_metric = {gate.metric: gate for gate in result.gates}
    files = [path for path in strong.rglob("*") if path.is_file()]
    assert by_metric["model_bytes"].value == sum(path.stat().st_size for path in files)
    assert by_metric["latency_ms"].value > 0
    assert "latency_ms" not in json.dumps(_evaluate(strong, test_set).content())


@pytest.mark.parametrize("label", [2, -1, None])
def test_labels_other_than_0_and_1_are_refused(strong, tmp_path, label):
    frame = transactions(50, 1)
    labels = frame["fraud"].to_list()
    labels[7] = label
    test = write_test_set(frame.with_columns(fraud=pl.Series(labels, dtype=pl.Int64)), tmp_path / "test.parquet")

    with pytest.raises(InvalidInput, match="fraud"):
        _evaluate(strong, test)


def test_a_test_set_with_another_label_or_without_a_feature_is_refused(strong, tmp_path):
    frame = transactions(50, 1)
    roles = Roles(FEATURES, "hour", "event_timestamp", ("customer_id",))
    write_dataset(frame, tmp_path / "label.parquet", DatasetInfo(roles))
    with pytest.raises(InvalidInput, match="hour"):
        _evaluate(strong, tmp_path / "label.parquet")
    test = write_test_set(frame.drop("risk"), tmp_path / "feature.parquet", ("amount",))
    with pytest.raises(InvalidInput, match="risk"):
        _evaluate(strong, test)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"draws": 99}, "draws"),
        ({"confidence": 1.0}, "confidence"),
        ({"seed": -1}, "seed"),
        ({"cluster_by": "gone"}, "cluster_by"),
        ({"slices": ("gone",)}, "slices"),
        ({"gates": {"x": 1}}, "gates.x"),
        ({"terms": Terms(precision=0.0)}, "recall_at_precision"),
        ({"terms": Terms(cards_per_day=0)}, "cards_per_day"),
        ({"terms": Terms(false_negative_cost=-1.0)}, "false_negative_cost"),
        ({"terms": Terms(false_positive_cost=np.inf)}, "false_positive_cost"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(strong, test_set, change, field):
    with pytest.raises(InvalidInput) as refused:
        _evaluate(strong, test_set, replace(QUICK, **change))
    assert refused.value.field == field
