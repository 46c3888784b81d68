"""Training data from feature repos of several stores, and what is refused."""

import json
from datetime import datetime, timedelta

import polars as pl
import pytest

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.artifacts.model import read_spec
from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.evaluation.evaluating import Settings, evaluate
from modelyard.components.features.fetching import Request, fetch_training_data, parse_moment
from modelyard.components.features.simulated_repo import ENTITY_FEATURES, FEATURE_SERVICE, LABEL, write_simulated_repo
from modelyard.components.features.simulation import Scale
from modelyard.components.features.splitting import PARTS, Split, split_dataset
from modelyard.components.training.boosted_trees import BoostingParameters, train_boosted_trees
from tests.support.feast_oracle import EPOCH, SERVICE, TTL, choose_store, create_repo, write_source

HOUR = timedelta(hours=1)
FEATURES = ["customer__spent", "customer__visits", "pair__score", "shop__rating", "home__rating"]


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("applied") / "repo"
    create_repo(folder)
    event = {"event_timestamp": EPOCH, "created": EPOCH}
    late = {"event_timestamp": EPOCH, "created": EPOCH + HOUR}
    customers = [{"customer_id": key, "spent": 10.0 * key, "visits": key} for key in (1, 2)]
    write_source(folder, "customer", [*(row | event for row in customers), customers[0] | late | {"spent": 99.0}])
    write_source(folder, "pair", [{"customer_id": 1, "shop": "a", "score": 0.5} | event])
    write_source(folder, "shop", [{"shop": shop, "rating": rating} | event for shop, rating in (("a", 1.0), ("b", 2.0))])
    return folder


@pytest.fixture
def repo(applied):
    choose_store(applied, "duckdb")
    return applied


def _rows(**columns):
    rows = {
        "event_timestamp": [EPOCH, EPOCH, EPOCH + HOUR, EPOCH + 2 * TTL, EPOCH - HOUR],
        "customer_id": [1, 1, 1, 2, 7],
        "shop": ["a", "a", "b", "a", "z"],
        "home_shop": ["b", "b", "a", "a", "a"],
        "amount": [1.5, 1.5, 2.5, 3.5, 4.5],
        "label": [0, 1, 0, 1, 0],
    }
    return pl.DataFrame(rows | columns)


def _fetch(repo, tmp_path, rows, **changes):
    source = rows
    if isinstance(rows, pl.DataFrame):
        source = tmp_path / "rows.parquet"
        rows.write_parquet(source)
    request = {"full_feature_names": True, "label": "label", "feature_service": SERVICE, **changes}
    fetched = fetch_training_data(Request(str(repo), str(source), **request), tmp_path / "data")
    frame, info = read_dataset(tmp_path / "data")
    assert fetched.rows == frame.height
    assert fetched.digest == file_digest(tmp_path / "data")
    return frame, info


ANSWERS = [
    (10.0, 1, 0.5, 1.0, 2.0),
    (10.0, 1, 0.5, 1.0, 2.0),
    (99.0, 1, None, 2.0, 1.0),
    (None, None, None, None, None),
    (None, None, None, None, None),
]


@pytest.mark.parametrize(
    "store", ["duckdb", "file", "dask", "modelyard.components.features.offline_store.AsOfDuckDBOfflineStore"]
)
def test_every_row_comes_back_in_order_with_what_was_known_then(repo, tmp_path, store):
    choose_store(repo, store)
    frame, info = _fetch(repo, tmp_path, _rows(), entity_features=("amount",))
    assert frame.select(FEATURES).rows() == ANSWERS
    assert frame["label"].to_list() == [0, 1, 0, 1, 0]
    assert info.roles.features == (*FEATURES, "amount")
    assert info.roles.entities == ("customer_id", "shop", "home_shop")
    assert info.roles.label == "label"
    assert info.roles.timestamp == "event_timestamp"


def test_a_store_that_this_package_does_not_know_is_called_and_its_rows_are_put_in_order(repo, tmp_path):
    choose_store(repo, "tests.support.feast_oracle.ElsewhereOfflineStore")
    rows = _rows().rename({"event_timestamp": "paid_at"})
    frame, info = _fetch(repo, tmp_path, rows, entity_features=("amount",), timestamp_column="paid_at")
    assert frame.select(FEATURES).rows() == ANSWERS
    assert frame["label"].to_list() == [0, 1, 0, 1, 0]
    assert frame["paid_at"].to_list() == rows["paid_at"].to_list()
    assert info.roles.features == (*FEATURES, "amount")
    assert set(info.roles.entities) == {"customer_id", "shop", "home_shop"}


def test_a_store_that_loses_rows_is_found_out(repo, tmp_path):
    choose_store(repo, "tests.support.feast_oracle.LossyOfflineStore")
    with pytest.raises(ModelyardError, match=r"returned . of 5 entity rows, in . rows: it does not fit for training data"):
        _fetch(repo, tmp_path, _rows())
    assert not (tmp_path / "data").exists()


def test_the_revision_is_the_same_through_feast_and_without_it(repo, tmp_path):
    _, without = _fetch(repo, tmp_path, _rows())
    choose_store(repo, "tests.support.feast_oracle.ElsewhereOfflineStore")
    _, through = _fetch(repo, tmp_path, _rows())
    assert without.lineage["repo_revision"] == through.lineage["repo_revision"]


def test_feasts_ray_store_is_refused(repo, tmp_path):
    choose_store(repo, "ray")
    with pytest.raises(InvalidInput, match="offline_store = 'ray': it ignores the ttl"):
        _fetch(repo, tmp_path, _rows())


def test_late_corrections_are_let_in_only_on_demand(repo, tmp_path):
    frame, _ = _fetch(repo, tmp_path, _rows(), filter_by_created_timestamp=False)
    assert frame["customer__spent"].to_list() == [99.0, 99.0, 99.0, None, None]


def test_the_span_includes_its_start_and_not_its_end(repo, tmp_path):
    frame, info = _fetch(repo, tmp_path, _rows(), start="2024-01-01", end="2024-01-01T01:00:00Z")
    assert frame["event_timestamp"].to_list() == [EPOCH, EPOCH]
    assert info.lineage["start"] == info.lineage["end"] == "2024-01-01T00:00:00+00:00"
    frame, _ = _fetch(repo, tmp_path, _rows(), end="2024-01-01T10:00:00+09:00")
    assert frame.height == 3


def test_csv_files_and_folders_of_parts_are_read_as_well(repo, tmp_path):
    expected, _ = _fetch(repo, tmp_path, _rows())
    _rows().with_columns(pl.col("event_timestamp").dt.to_string("iso:strict")).write_csv(tmp_path / "rows.csv")
    assert _fetch(repo, tmp_path, tmp_path / "rows.csv")[0].equals(expected)
    parts = tmp_path / "parts"
    parts.mkdir()
    _rows()[:2].write_parquet(parts / "1.parquet")
    _rows()[2:].write_parquet(parts / "2.parquet")
    (parts / "_SUCCESS").touch()
    assert _fetch(repo, tmp_path, parts)[0].equals(expected)


def test_booleans_and_naive_timestamps_are_understood(repo, tmp_path):
    rows = _rows().with_columns(pl.col("label") == 1, pl.col("event_timestamp").dt.replace_time_zone(None))
    frame, _ = _fetch(repo, tmp_path, rows)
    assert frame.select(FEATURES).rows() == ANSWERS
    assert frame["label"].to_list() == [0, 1, 0, 1, 0]


def test_equal_inputs_give_equal_bytes_that_name_no_place(repo, tmp_path):
    _, info = _fetch(repo, tmp_path, _rows())
    first = (tmp_path / "data").read_bytes()
    _fetch(repo, tmp_path, _rows())
    assert (tmp_path / "data").read_bytes() == first
    assert str(tmp_path) not in json.dumps(info.lineage)


def test_the_lineage_tells_where_the_rows_came_from(repo, tmp_path):
    _, info = _fetch(repo, tmp_path, _rows(), start="2024-01-01")
    lineage = info.lineage
    assert lineage["feature_service"] == SERVICE
    assert lineage["repo_revision"].startswith("blake3:")
    assert lineage["entity_rows"] == {"digest": file_digest(tmp_path / "rows.parquet"), "rows": 4}
    assert (lineage["rows"], lineage["positives"]) == (4, 2)
    assert lineage["end"] == (EPOCH + 2 * TTL).isoformat()
    assert lineage["without_features"] == {"customer": 0.25, "pair": 0.5, "shop": 0.25, "home": 0.25}


def test_a_view_that_has_nothing_for_any_row_is_refused(repo, tmp_path):
    with pytest.raises(
        InvalidInput, match="feature view = 'pair': none of its features has a value for any row: check its ttl"
    ):
        _fetch(repo, tmp_path, _rows(shop=["b"] * 5))


@pytest.mark.parametrize("store", ["duckdb", "tests.support.feast_oracle.ElsewhereOfflineStore"])
def test_kept_columns_stay_as_they_were_given_and_are_no_features(repo, tmp_path, store):
    choose_store(repo, store)
    channel = pl.Series("channel", ["web", "web", None, "app", "app"], dtype=pl.Categorical)
    rows = _rows(channel=channel, seen=[True, None, False, True, None])
    plain, without = _fetch(repo, tmp_path, rows)
    kept = ("channel", "seen", "shop", "channel")
    frame, info = _fetch(repo, tmp_path, rows, kept_columns=kept)
    assert info.roles == without.roles
    assert frame.columns == [*plain.columns, "channel", "seen"]
    assert frame.drop("channel", "seen").equals(plain)
    assert frame.select("channel", "seen").equals(rows.select("channel", "seen"))
    assert (without.lineage["kept_columns"], info.lineage["kept_columns"]) == ([], list(kept))


def test_kept_columns_group_slice_and_cluster_and_no_model_sees_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    write_simulated_repo(tmp_path / "repo", tmp_path / "rows.parquet", Scale(customers=120, terminals=400, days=60, seed=3))
    rows = pl.read_parquet(tmp_path / "rows.parquet").with_columns(
        household=pl.col("customer_id") // 2,
        # A model that saw this column would be never wrong.
        outcome=pl.when(pl.col(LABEL) == 1).then(pl.lit("charged back")).otherwise(pl.lit("paid")),
    )
    kept = ("household", "outcome")
    _, info = _fetch(
        tmp_path / "repo",
        tmp_path,
        rows,
        feature_service=FEATURE_SERVICE,
        label=LABEL,
        full_feature_names=False,
        entity_features=ENTITY_FEATURES,
        kept_columns=kept,
    )
    train, validation, test = (tmp_path / name for name in PARTS)
    split_dataset(tmp_path / "data", train, validation, test, Split(group_by="household"))
    households = [set(pl.read_parquet(part)["household"]) for part in (train, validation, test)]
    assert all(households)
    assert sum(map(len, households)) == len(set().union(*households))

    model = tmp_path / "model"
    train_boosted_trees(train, validation, model, "cards", BoostingParameters(rounds=5, threads=1))
    assert read_spec(model).feature_names == info.roles.features
    assert not set(kept) & set(info.roles.features)
    settings = Settings(slices=["outcome"], cluster_by="household", draws=200)
    evaluation = evaluate(model, test, model_name="cards", settings=settings).content()
    assert {part["value"] for part in evaluation["slices"]} == {"charged back", "paid"}
    assert evaluation["bootstrap"]["cluster_by"] == "household"
    for settings in (Settings(slices=["country"]), Settings(cluster_by="country")):
        with pytest.raises(InvalidInput, match=r"= 'country': .* in fetch_features' kept_columns to have it here"):
            evaluate(model, test, model_name="cards", settings=settings)


def test_a_kept_column_that_a_view_serves_as_a_feature_is_refused(repo, tmp_path):
    rows = _rows(customer__spent=[0.0] * 5)
    with pytest.raises(InvalidInput, match="kept_columns = 'customer__spent': it is a feature"):
        _fetch(repo, tmp_path, rows, kept_columns=("customer__spent",))


def test_a_feature_that_no_row_has_a_value_for_is_refused(tmp_path):
    folder = tmp_path / "repo"
    create_repo(folder)
    event = {"event_timestamp": EPOCH, "created": EPOCH}
    empty = [{"customer_id": key, "spent": None, "visits": key} | event for key in (1, 2)]
    write_source(folder, "customer", empty)
    write_source(folder, "pair", [{"customer_id": 1, "shop": "a", "score": 0.5} | event])
    write_source(folder, "shop", [{"shop": shop, "rating": 1.0} | event for shop in ("a", "b")])
    for store in ("duckdb", "tests.support.feast_oracle.ElsewhereOfflineStore"):
        choose_store(folder, store)
        with pytest.raises(InvalidInput, match="feature = 'customer__spent': no row has a value for it"):
            _fetch(folder, tmp_path, _rows())
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_column_without_a_value_can_be_kept_but_is_no_feature(repo, tmp_path, nothing):
    rows = _rows(amount=pl.Series([nothing] * 5, dtype=pl.Float64))
    with pytest.raises(InvalidInput, match="entity_features = 'amount': no row has a value for it"):
        _fetch(repo, tmp_path, rows, entity_features=("amount",))
    assert _fetch(repo, tmp_path, rows, kept_columns=("amount",))[0].columns[-1] == "amount"


def test_views_that_share_a_feature_name_need_full_names(repo, tmp_path):
    with pytest.raises(InvalidInput, match="feature = 'rating': both home and shop have it; ask for full feature names"):
        _fetch(repo, tmp_path, _rows(), full_feature_names=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_service": "loans"}, "feature_service = 'loans': the feature repo has no such service; it has everything"),
        ({"label": "fraud"}, "label = 'fraud': the entity rows lack this column; they have event_timestamp, customer_id"),
        ({"timestamp_column": "at"}, "timestamp_column = 'at'"),
        ({"entity_features": ("size",)}, "entity_features = 'size'"),
        ({"entity_features": ("label",)}, "it cannot be a feature"),
        (
            {"kept_columns": ("size",)},
            "kept_columns = 'size': the entity rows lack this column; they have event_timestamp, cust",
        ),
        ({"kept_columns": ("label",)}, "kept_columns = 'label': the label stays in the dataset anyway"),
        ({"entity_features": ("amount",), "kept_columns": ("amount",)}, "kept_columns = 'amount': it is a feature"),
        ({"start": "yesterday"}, "start = 'yesterday': give an ISO date or time"),
        (
            {"start": "2030-01-01"},
            "there is no row in this span; the 5 given are from 2023-12-31 23:00:00+00:00 to 2024-01-01 04",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(repo, tmp_path, changes, message):
    with pytest.raises(InvalidInput) as error:
        _fetch(repo, tmp_path, _rows(), **changes)
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1, 2, 1, 0]}, "label = 2: the label must be 0 or 1 in every row, but it is not in 1"),
        ({"label": [0, 1, None, 1, None]}, "label = None: the label must be 0 or 1 in every row, but it is not in 2"),
        ({"label": ["no"] * 5}, "label = 'String': the label must be a number"),
        ({"event_timestamp": [EPOCH, None, None, EPOCH, EPOCH]}, "event_timestamp = '2 null values'"),
        ({"event_timestamp": ["2024-01-01", "noon", "x", "y", "z"]}, "event_timestamp = 'noon': its values must be ISO"),
        ({"event_timestamp": [1, 2, 3, 4, 5]}, "event_timestamp = 'Int64': it must be a column of timestamps"),
        ({"customer_id": ["1"] * 5}, "customer_id = 'String': it must have the type of the join key"),
    ],
)
def test_entity_rows_that_cannot_be_used_are_refused(repo, tmp_path, columns, message):
    with pytest.raises(InvalidInput) as error:
        _fetch(repo, tmp_path, _rows(**columns))
    assert message in str(error.value)


def test_a_missing_join_key_is_named(repo, tmp_path):
    with pytest.raises(InvalidInput, match="join key = 'home_shop': the entity rows lack this column"):
        _fetch(repo, tmp_path, _rows().drop("home_shop"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 cut off", "not a whole Parquet file"),
        (b"", "the file holds no rows"),
        (b"event_timestamp,customer_id,label\n", "the file holds no rows"),
        (b"Dear reader,\nthese are no rows, whatever, they, look like\n", r"with commas and a header line \(found more fields"),
        (b"event_timestamp;customer_id;label\n2024-01-01;1;0\n", "its first line has no comma: 'event_timestamp;customer_id"),
        (b'{"label":1,"shop":2}\n{"label":1,"shop":2}\n', r"with commas and a header line \(could not parse"),
        (b"\x80\x04\x95 no text", "neither as Parquet nor as CSV with commas"),
        (None, "entity_rows_uri = '.*/given': nothing is there"),
    ],
)
def test_files_that_cannot_be_read_are_refused(repo, tmp_path, content, message):
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as error:
        _fetch(repo, tmp_path, path)
    assert "\n" not in str(error.value)


def test_tables_without_rows_are_refused(repo, tmp_path):
    with pytest.raises(InvalidInput, match=r"rows\.parquet': the file holds no rows"):
        _fetch(repo, tmp_path, _rows()[:0])
    (tmp_path / "parts").mkdir()
    _rows()[:0].write_parquet(tmp_path / "parts" / "1.parquet")
    with pytest.raises(InvalidInput, match=r"parts': the folder holds no rows"):
        _fetch(repo, tmp_path, tmp_path / "parts")


def test_a_folder_without_parts_is_refused(repo, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidInput, match=r"the folder holds no \.parquet file"):
        _fetch(repo, tmp_path, tmp_path / "nothing")


def test_a_folder_of_several_tables_is_refused(repo, tmp_path):
    (tmp_path / "tables").mkdir()
    _rows().write_parquet(tmp_path / "tables" / "a.parquet")
    _rows().drop("label").write_parquet(tmp_path / "tables" / "b.parquet")
    with pytest.raises(InvalidInput, match=r"entity_rows_uri = .* are not parts of one table"):
        _fetch(repo, tmp_path, tmp_path / "tables")


def test_a_missing_feature_repo_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"feature_repo_uri = '.*/nowhere': nothing is there"):
        _fetch(tmp_path / "nowhere", tmp_path, _rows())


def test_moments_are_utc_unless_they_say_otherwise():
    assert parse_moment("start", "") is None
    assert parse_moment("start", "2024-01-01") == EPOCH
    assert parse_moment("start", "2024-01-01T09:00:00+09:00") == EPOCH
    assert parse_moment("start", "2024-01-01T09:00:00+09:00").utcoffset() == timedelta(0)
    assert isinstance(parse_moment("start", "2024-01-01T00:00:00Z"), datetime)
