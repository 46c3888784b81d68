from datetime import timedelta

import polars as pl
import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.experiments.labelled_log import join_labels, read_labels
from tests.components.experiments.simulated_traffic import FIRST

NOW = FIRST + timedelta(days=10)


def log(rows=200, **columns):
    """Predictions of keys k0, k1, …, one an hour, of version 1 and 2 in turn."""
    entries = {
        "request_id": [f"r{number}" for number in range(rows)],
        "row": [0] * rows,
        "time": [FIRST + timedelta(hours=number) for number in range(rows)],
        "version": [str(1 + number % 2) for number in range(rows)],
        "key": [f"k{number}" for number in range(rows)],
        "score": [0.5] * rows,
        "decision": [1] * rows,
        "mirrored": [False] * rows,
        **columns,
    }
    return pl.DataFrame(entries).with_columns(pl.col("row").cast(pl.Int32), pl.col("decision").cast(pl.Int8))


def labels(rows=200):
    return pl.DataFrame({"request_id": [f"r{number}" for number in range(rows)], "label": [False] * rows})


def join(predictions=None, given=None, delay_days=0.0, split_by="key"):
    return join_labels(
        log() if predictions is None else predictions,
        labels() if given is None else given,
        0,
        control="1",
        trial="2",
        now=NOW,
        delay_days=delay_days,
        split_by=split_by,
    )


def changed(name, values):
    """The log with the first values of a column replaced."""
    frame = log()
    return frame.with_columns(pl.Series(name, [*values, *frame[name][len(values) :]], dtype=frame.schema[name]))


def test_labels_find_their_predictions_and_all_is_counted():
    found = join(given=labels(190).vstack(pl.DataFrame({"request_id": ["other"], "label": [True]})))
    assert found.rows.height == 190
    assert found.matured == (100, 100)
    assert found.unlabelled == (5, 5)
    assert (found.quality.labels, found.quality.unmatched_labels, found.quality.unlabelled) == (191, 1, 10)
    assert found.quality.unlabelled_share == pytest.approx(0.05)


def test_a_prediction_whose_label_may_still_come_is_left_out_even_if_it_is_known():
    early = labels().with_columns(pl.col("request_id").is_in(["r0", "r199"]).alias("label"))
    found = join(given=early, delay_days=9)
    assert found.rows.height == found.quality.matured == 24
    assert found.quality.immature == 176
    assert found.rows["label"].sum() == 1
    assert found.rows["time"].max() < found.until == FIRST + timedelta(days=1)


def test_a_row_logged_twice_counts_once_and_many_of_them_are_an_error():
    twice = log().vstack(log(1))
    assert join(twice).quality.duplicates == 1
    assert join(twice).rows.height == 200
    with pytest.raises(InvalidInput, match="an id of its own"):
        join(log().vstack(log(3)))


def test_copies_of_requests_that_the_other_version_answered_are_left_out():
    copies = log().with_columns(pl.lit("2").alias("version"), pl.lit(True).alias("mirrored")).vstack(log())
    found = join(copies)
    assert (found.quality.predictions, found.quality.mirrored, found.quality.duplicates) == (400, 200, 0)
    assert found.matured == (100, 100)
    assert found.quality.crossed_keys == 0
    only_copies = log().filter(pl.col("version") == "1").vstack(copies.head(200))
    with pytest.raises(InvalidInput, match="only predictions of it on mirrored requests"):
        join(only_copies)


def test_keys_that_both_versions_answered_are_left_out_and_many_of_them_are_an_error():
    found = join(changed("key", ["k9", "k9"]))
    assert (found.quality.crossed_keys, found.quality.crossed_rows) == (1, 3)
    assert found.rows.height == 197
    assert "k9" not in found.rows["key"]
    assert found.units.height == 197
    with pytest.raises(InvalidInput, match="after the share was changed"):
        join(changed("key", ["same"] * 2 + ["same too"] * 2 + [f"pair{number // 2}" for number in range(40)]))


def test_requests_without_a_key_stand_for_themselves():
    found = join(changed("key", ["", "", ""]))
    assert (found.quality.without_key, found.quality.keys, found.quality.crossed_keys) == (3, 200, 0)
    assert found.rows["key"].n_unique() == 200


def test_keys_are_split_by_their_first_requests_in_the_order_of_time():
    found = join(changed("key", ["late", "a", "late"]))
    assert found.units["in_trial"][:4].to_list() == [False, True, True, False]
    assert found.units.height == 199


def test_where_requests_were_split_keys_that_both_versions_answered_stay():
    frame = changed("key", [f"k{number % 20}" for number in range(200)]).with_columns(
        pl.when(pl.int_range(200) % 3 == 0).then(pl.lit("2")).otherwise(pl.lit("1")).alias("version")
    )
    with pytest.raises(InvalidInput, match="split_by = 'request'"):
        join(frame)
    found = join(frame, split_by="request")
    assert found.rows.height == 200
    assert (found.quality.keys, found.quality.crossed_keys, found.quality.crossed_rows) == (20, 20, 200)
    assert found.units["in_trial"].to_list() == [number % 3 == 0 for number in range(200)]


def test_a_request_of_several_rows_is_split_once():
    rows = log(request_id=[f"r{number // 2}" for number in range(200)], row=[number % 2 for number in range(200)])
    rows = rows.with_columns(pl.Series("version", [str(1 + number // 2 % 2) for number in range(200)]))
    given = labels(100).join(pl.DataFrame({"row": pl.Series([0, 1], dtype=pl.Int32)}), how="cross")
    found = join(rows, given, split_by="request")
    assert (found.rows.height, found.units.height) == (200, 100)


def test_keys_that_stay_with_a_version_were_not_split_by_request():
    frame = changed("key", [f"v{1 + number % 2}-{number % 40}" for number in range(200)])
    assert join(frame).quality.crossed_keys == 0
    with pytest.raises(InvalidInput, match=r"0 keys were answered by both versions, and about 3\d would be .* give 'key'"):
        join(frame, split_by="request")


def test_rows_without_score_or_decision_are_left_out():
    assert join(changed("score", [float("nan"), None])).quality.unusable == 2


def test_a_label_of_a_request_with_several_rows_must_say_which():
    several = log(
        request_id=[f"r{number // 2}" for number in range(200)],
        row=[number % 2 for number in range(200)],
        version=[str(1 + number // 2 % 2) for number in range(200)],
    )
    with pytest.raises(InvalidInput, match="add the column"):
        join(several)
    by_row = several.select("request_id", "row", (pl.col("row") == 1).alias("label"))
    found = join(several, by_row)
    assert found.rows.height == 200
    assert found.rows["label"].sum() == 100


@pytest.mark.parametrize(("versions", "field"), [(["1"] * 200, "version_b"), (["2"] * 200, "version_a")])
def test_a_version_without_predictions_is_named(versions, field):
    with pytest.raises(InvalidInput, match=field):
        join(log(version=versions))


def test_labels_of_something_else_are_an_error():
    with pytest.raises(InvalidInput, match="none belong together"):
        join(given=pl.DataFrame({"request_id": ["x"], "label": [True]}))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_labels_are_read_from_csv_and_parquet_as_they_come(tmp_path, form):
    path = tmp_path / "labels"
    frame = pl.DataFrame({"request_id": ["007", "8", "9"], "fraud": [1, 0, None], "row": [0, 1, None]})
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    found, conflicts = read_labels(str(path), "fraud")
    assert sorted(found.select("request_id", "row", "label").rows()) == [("007", 0, True), ("8", 1, False)]
    assert conflicts == 0


@pytest.mark.parametrize("values", [[True, False], ["1", "0"], ["TRUE", " false "], [1.0, 0.0]])
def test_labels_may_be_numbers_booleans_or_text(tmp_path, values):
    pl.DataFrame({"request_id": ["a", "b"], "label": values}, strict=False).write_parquet(tmp_path / "labels")
    assert sorted(read_labels(str(tmp_path / "labels"), "label")[0].rows()) == [("a", True), ("b", False)]


def test_a_label_given_twice_counts_once_and_contradictions_are_left_out_or_an_error(tmp_path):
    ids = [f"r{number}" for number in range(200)]
    frame = pl.DataFrame({"request_id": [*ids, "r0", "r1"], "label": [0] * 200 + [0, 1]})
    frame.write_parquet(tmp_path / "labels")
    found, conflicts = read_labels(str(tmp_path / "labels"), "label")
    assert (found.height, conflicts) == (199, 1)
    frame.vstack(pl.DataFrame({"request_id": ids[2:6], "label": [1] * 4})).write_parquet(tmp_path / "labels")
    with pytest.raises(InvalidInput, match="give one label each"):
        read_labels(str(tmp_path / "labels"), "label")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("request_id,label\na,2\n", "0 or 1"),
        ("request_id,fraud\na,1\n", "column = 'label'"),
        ("id,label\na,1\n", "column = 'request_id'"),
        ("", "readable"),
    ],
)
def test_unusable_labels_are_refused_by_what_is_wrong(tmp_path, content, match):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InvalidInput, match=match):
        read_labels(str(tmp_path / "labels.csv"), "label")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="nothing is there"):
        read_labels(str(tmp_path / "none"), "label")
