import numpy as np
import polars as pl
import pytest

from modelyard.components.artifacts.dataset import DatasetInfo, Roles, write_dataset
from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import InvalidInput
from modelyard.components.training import labelled_rows
from modelyard.components.training.labelled_rows import check_alike, fit_features, open_rows
from tests.support.labelled_rows import FEATURES, labelled_frame, write_rows


def test_batches_are_the_file_in_its_order(rows):
    data = open_rows(rows.train, "train")
    whole = pl.read_parquet(rows.train).select(FEATURES)
    assert pl.concat(data.batches(FEATURES, rows=700)).equals(whole)
    spec = ModelSpec(fit_features(data), "fraud", "model.ubj", 0.5)
    parts = list(data.matrices(spec, rows=700))
    np.testing.assert_array_equal(np.vstack([matrix for matrix, _ in parts]), spec.encode(whole))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), pl.read_parquet(rows.train)["fraud"])


def test_rows_are_taken_by_their_place_in_the_file(rows, monkeypatch):
    monkeypatch.setattr(labelled_rows, "BATCH_ROWS", 700)
    data = open_rows(rows.train, "train")
    places = np.array([0, 699, 700, 1400, 2999])
    assert data.take(places, FEATURES).equals(pl.read_parquet(rows.train).select(FEATURES)[places])


def test_levels_come_from_the_training_rows_alone_whatever_their_type(tmp_path):
    frame = labelled_frame(500, 0)
    for kind in (pl.String, pl.Categorical, pl.Enum(["IT", "FR", "DE", "ES"])):
        path = write_rows(tmp_path / "train.parquet", frame.with_columns(pl.col("country").cast(kind)))
        features = {feature.name: feature.categories for feature in fit_features(open_rows(path, "train"))}
        assert features == {"amount": None, "risk": None, "country": ("DE", "FR", "IT"), "night": None}


def test_facts_say_what_was_trained_on(rows):
    facts = open_rows(rows.train, "train").facts
    assert facts["rows"] == 3000
    assert facts["positives"] == pl.read_parquet(rows.train)["fraud"].sum()
    assert facts["start"].startswith("2024-01-01T00:00:00")
    assert facts["lineage"] == {"from": "a test"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.clear(), "no rows"),
        (lambda frame: frame.with_columns(fraud=pl.lit(0)), "both classes"),
        (lambda frame: frame.with_columns(fraud=pl.lit(2)), "0 or 1"),
        (lambda frame: frame.with_columns(fraud=pl.col("fraud").cast(pl.Float64) / 2), "0 or 1"),
        (lambda frame: frame.with_columns(fraud=pl.when(pl.col("fraud") == 1).then(1)), "0 or 1"),
        (lambda frame: frame.with_columns(fraud=pl.lit("yes")), "0 or 1"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(tmp_path, change, message):
    path = write_rows(tmp_path / "train.parquet", change(labelled_frame(50, 0)))
    with pytest.raises(InvalidInput, match=message):
        open_rows(path, "train")


@pytest.mark.parametrize(
    ("features", "message"), [((), "at least one"), (("risk", "fraud"), "cannot be a feature"), (("risk", "score"), "rename")]
)
def test_features_that_cannot_be_learned_from_are_refused(tmp_path, features, message):
    frame = labelled_frame(50, 0).with_columns(score=1.0)
    with pytest.raises(InvalidInput, match=message):
        open_rows(write_rows(tmp_path / "train.parquet", frame, features), "train")


def test_a_moment_is_no_feature(tmp_path):
    path = write_rows(tmp_path / "train.parquet", labelled_frame(50, 0), ("risk", "event_timestamp"))
    with pytest.raises(InvalidInput, match=r"event_timestamp.*Datetime"):
        fit_features(open_rows(path, "train"))


def test_an_identifier_is_no_category(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_rows, "MAX_CATEGORIES", 10)
    frame = labelled_frame(50, 0).with_columns(country=pl.int_range(50).cast(pl.String))
    with pytest.raises(InvalidInput, match=r"country.*50 levels"):
        fit_features(open_rows(write_rows(tmp_path / "train.parquet", frame), "train"))


def test_validation_rows_must_be_other_rows_of_the_same_kind(tmp_path, rows):
    train = open_rows(rows.train, "train")
    with pytest.raises(InvalidInput, match="these are the training rows"):
        check_alike(train, open_rows(rows.train, "validation"))
    fewer = write_rows(tmp_path / "fewer.parquet", labelled_frame(50, 1), ("risk", "amount"))
    with pytest.raises(InvalidInput, match="in the same order"):
        check_alike(train, open_rows(fewer, "validation"))
    other = tmp_path / "other.parquet"
    frame = labelled_frame(50, 1).rename({"fraud": "charged_back"})
    write_dataset(frame, other, DatasetInfo(Roles(FEATURES, "charged_back", "event_timestamp")))
    with pytest.raises(InvalidInput, match="it must be train's"):
        check_alike(train, open_rows(other, "validation"))
