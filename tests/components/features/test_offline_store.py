"""The as-of store against Feast's own DuckDB store, which is slow but right."""

from datetime import timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.components.features.feature_repo import AS_OF_STORE, RepoSettings, plan_from_registry
from modelyard.components.features.point_in_time import point_in_time_join
from tests.support.feast_oracle import EPOCH, PROJECT, SERVICE, TTL, ask, create_repo, write_source

# Few keys and moments, so that ties, edges of the ttl and late corrections come up often.
_MOMENTS = [EPOCH + step * TTL / 2 + timedelta(microseconds=shift) for step in range(5) for shift in (-1, 0, 1)]
_moments = st.sampled_from(_MOMENTS)
_customers = st.sampled_from([1, 2, None])
_shops = st.sampled_from(["a", "b", None])
_values = st.one_of(st.none(), st.integers(0, 9).map(float))


def _rows(unique_by, **columns):
    moments = {name: st.one_of(_moments, st.none()) for name in ("event_timestamp", "created")}
    return st.lists(
        st.fixed_dictionaries({**moments, **columns}), max_size=25, unique_by=lambda row: tuple(row[name] for name in unique_by)
    )


_customer_rows = _rows(
    ("customer_id", "event_timestamp", "created"), customer_id=_customers, spent=_values, visits=st.integers(0, 9)
)
_pair_rows = _rows(("customer_id", "shop", "event_timestamp", "created"), customer_id=_customers, shop=_shops, score=_values)
_shop_rows = _rows(("shop", "event_timestamp"), shop=_shops, rating=_values)
_entity_rows = st.lists(
    st.fixed_dictionaries(
        {
            "event_timestamp": _moments,
            "customer_id": st.sampled_from([1, 2, 3, None]),
            "shop": st.sampled_from(["a", "b", "c", None]),
            "home_shop": st.sampled_from(["a", "b", None]),
        }
    ),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle") / "repo"
    create_repo(folder)
    return folder


def _frame(entity_rows):
    schema = {
        "event_timestamp": pl.Datetime("us", "UTC"),
        "customer_id": pl.Int64,
        "shop": pl.String,
        "home_shop": pl.String,
    }
    return pl.DataFrame(entity_rows, schema=schema).with_row_index("row")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(customer=_customer_rows, pair=_pair_rows, shop=_shop_rows, entity_rows=_entity_rows, cutoff=st.booleans())
def test_every_answer_is_that_of_feasts_duckdb_store(repo, customer, pair, shop, entity_rows, cutoff):
    for name, rows in (("customer", customer), ("pair", pair), ("shop", shop)):
        write_source(repo, name, rows)
    asked = _frame(entity_rows)

    expected = ask(repo, asked, "duckdb", cutoff=cutoff).sort("row")
    found = ask(repo, asked, AS_OF_STORE, cutoff=cutoff)
    features = ["customer__spent", "customer__visits", "pair__score", "shop__rating", "home__rating"]
    assert found["row"].to_list() == list(range(len(entity_rows)))
    assert found.select(features).equals(expected.select(features))

    repo_settings = RepoSettings(repo, PROJECT, "duckdb", repo / "data/registry.db")
    plan = plan_from_registry(repo_settings, SERVICE, full_feature_names=True)
    without_feast = point_in_time_join(asked, "event_timestamp", plan.sources, filter_by_created_timestamp=cutoff)
    assert without_feast.select(features).equals(expected.select(features))
