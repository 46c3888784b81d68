"""Training data from a feature repo whose offline store is Spark, run here; the answers on files are the oracle."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from modelyard.components.artifacts.dataset import read_dataset
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.features.component import fetch_features
from modelyard.components.features.fetching import Request, fetch_training_data
from modelyard.components.features.spark_session import spark_store
from tests.support.feast_oracle import EPOCH, PROJECT, SERVICE, TTL, create_repo, write_source
from tests.support.kfp_runner import run_component

MISSING = [
    *(["pyspark (install modelyard[spark])"] if importlib.util.find_spec("pyspark") is None else []),
    *(["Java 17 (put java on the PATH, or set JAVA_HOME)"] if not (shutil.which("java") or "JAVA_HOME" in os.environ) else []),
]


def needs_spark(test):
    """Marks a test that runs Spark here; the reason of a skip says what is missing."""
    test = pytest.mark.skipif(bool(MISSING), reason=f"Spark cannot run here: {' and '.join(MISSING)} missing")(test)
    return pytest.mark.filterwarnings("ignore:The spark:RuntimeWarning")(pytest.mark.spark(test))


# One of the hours that New York had twice.
TWICE = datetime(2024, 11, 3, 5, 30, tzinfo=UTC)
LARGE = 2**53
FEATURES = ["customer__spent", "customer__visits", "pair__score", "shop__rating", "home__rating"]


def spark_source(**arguments):
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    return SparkSource(file_format="parquet", **arguments)


# What spares a small Spark its preparations for large data.
SMALL = {
    "spark.master": "local[1]",
    "spark.default.parallelism": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto",
}


def choose_spark(folder, **conf):
    """Rewrites ``feature_store.yaml`` for a Spark in this process."""
    settings = {
        "project": PROJECT,
        "provider": "local",
        "registry": "data/registry.db",
        "offline_store": {"type": "spark", "spark_conf": SMALL | conf},
        "online_store": {"type": "sqlite", "path": "data/online.db"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def spark():
    """One session for the module, in the time zone of a notebook elsewhere; nothing of it is left."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for name, value in spark_store({"type": "spark", "spark_conf": SMALL})["spark_conf"].items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "America/New_York")
    gateway = SparkContext._gateway
    yield session
    session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(30)
    SparkContext._gateway = SparkContext._jvm = None


@pytest.fixture
def repos(tmp_path):
    """The same definitions over the same files, once for Spark and once for DuckDB."""
    for name, source in (("spark", {"source": spark_source}), ("duckdb", {})):
        create_repo(tmp_path / name, **source)
    choose_spark(tmp_path / "spark")
    return tmp_path / "spark", tmp_path / "duckdb"


def fill(repos, **sources):
    for repo in repos:
        for name, rows in sources.items():
            write_source(repo, name, rows)


def fetch(repo, rows, folder, **changes):
    rows.write_parquet(folder / "rows.parquet")
    request = {"full_feature_names": True, "label": "label", "feature_service": SERVICE, **changes}
    fetch_training_data(Request(str(repo), str(folder / "rows.parquet"), **request), folder / "data")
    return read_dataset(folder / "data")


def simulated(seed, rows, start=EPOCH):
    """Sources and entity rows of few keys and moments: ties, edges of the ttl, late corrections, gaps, keys that look alike."""
    draw = random.Random(seed)
    moments = [start + step * TTL / 2 + timedelta(microseconds=shift) for step in range(5) for shift in (-1, 0, 1)]
    customers, shops = (1, 11, LARGE, LARGE + 1, None), ("a", "1a", "b", None)

    def source(keys, values):
        found = {}
        for _ in range(rows):
            row = {key: draw.choice(among) for key, among in keys.items()}
            row |= {"event_timestamp": draw.choice(moments), "created": draw.choice(moments)}
            found[tuple(row.values())] = row | {name: draw.choice(among) for name, among in values.items()}
        return list(found.values())

    shop_rows = source({"shop": shops}, {"rating": (1.0, 2.0, None)})
    sources = {
        "customer": source({"customer_id": customers}, {"spent": (1.5, 2.5, None), "visits": (LARGE + 1, 7, None)}),
        "pair": source({"customer_id": customers, "shop": shops}, {"score": (0.5, 0.25, None)}),
        # Two rows of one key and moment have no order where nothing says when they were created.
        "shop": list({(row["shop"], row["event_timestamp"]): row for row in shop_rows}.values()),
    }
    asked = pl.DataFrame(
        {
            "event_timestamp": [draw.choice(moments) for _ in range(rows)],
            "customer_id": [draw.choice((*customers, 7)) for _ in range(rows)],
            "shop": [draw.choice((*shops, "z")) for _ in range(rows)],
            "home_shop": [draw.choice(shops) for _ in range(rows)],
            "amount": [draw.choice((1, 2, None)) for _ in range(rows)],
            "channel": pl.Series([draw.choice(("web", "app")) for _ in range(rows)], dtype=pl.Categorical),
            "label": [draw.choice((0, 1)) for _ in range(rows)],
        }
    )
    return sources, asked


def assert_equal_answers(repos, rows, tmp_path, **changes):
    asked = {"entity_features": ("amount",), "kept_columns": ("channel",), **changes}
    found, info = fetch(repos[0], rows, tmp_path, **asked)
    expected, others = fetch(repos[1], rows, tmp_path, **asked)
    assert found.schema == expected.schema
    assert found.equals(expected)
    assert info.roles == others.roles
    assert (info.lineage["offline_store"], others.lineage["offline_store"]) == ("spark", "duckdb")
    return found


@needs_spark
@pytest.mark.slow
def test_every_answer_is_that_of_the_same_files_without_spark(spark, repos, tmp_path):
    sources, rows = simulated(1, 300, TWICE - TTL)
    fill(repos, **sources)
    found = assert_equal_answers(repos, rows, tmp_path)
    assert found["customer__visits"].max() == LARGE + 1
    assert all(0 < found[name].null_count() < found.height for name in FEATURES)
    assert spark.conf.get("spark.sql.session.timeZone") == "America/New_York"


@needs_spark
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cutoff", [True, False])
def test_every_answer_is_that_of_the_same_files_whatever_is_in_them(spark, repos, tmp_path, seed, cutoff):
    sources, rows = simulated(10 + seed, 400)
    fill(repos, **sources)
    assert_equal_answers(repos, rows, tmp_path, filter_by_created_timestamp=cutoff)


@needs_spark
@pytest.mark.slow
def test_a_source_that_has_two_rows_of_one_moment_is_found_out(spark, repos, tmp_path):
    sources, rows = simulated(0, 50)
    sources["shop"] += [row | {"rating": 9.0} for row in sources["shop"]]
    fill(repos, **sources)
    with pytest.raises(
        ModelyardError, match=r"store spark returned 50 of 50 entity rows, in \d+ rows: .* two of one key, moment"
    ):
        fetch(repos[0], rows, tmp_path)
    assert not (tmp_path / "data").exists()


@needs_spark
@pytest.mark.slow
def test_a_source_that_is_not_there_is_named_and_where_it_is_looked_for(spark, repos, tmp_path):
    sources, rows = simulated(0, 50)
    fill(repos, **sources)
    (repos[0] / "data/shop.parquet").unlink()
    with pytest.raises(InvalidInput, match=r"table at '.*shop.parquet'.* looked for where Spark runs, not in the feature repo"):
        fetch(repos[0], rows, tmp_path)


@needs_spark
@pytest.mark.slow
def test_what_spark_cannot_do_is_said_in_a_line(spark, repos, tmp_path):
    sources, rows = simulated(0, 50)
    fill(repos, **sources)
    pl.read_parquet(repos[0] / "data/shop.parquet").drop("rating").write_parquet(repos[0] / "data/shop.parquet")
    with pytest.raises(ModelyardError, match=r"Spark could not join the features: .*rating") as error:
        fetch(repos[0], rows, tmp_path)
    assert "\n" not in str(error.value)


@needs_spark
@pytest.mark.slow
def test_a_step_fetches_from_spark_in_any_time_zone(repos, tmp_path, monkeypatch):
    sources, rows = simulated(2, 200, TWICE - TTL)
    fill(repos, **sources)
    choose_spark(repos[0], **{"spark.sql.session.timeZone": "America/New_York"})
    monkeypatch.setenv("TZ", "America/New_York")
    expected, _ = fetch(repos[1], rows, tmp_path)
    outputs = run_component(
        fetch_features,
        tmp_path / "run",
        feature_repo_uri=str(repos[0]),
        entity_rows_uri=str(tmp_path / "rows.parquet"),
        feature_service=SERVICE,
        label="label",
        full_feature_names=True,
    )
    assert read_dataset(outputs["training_data"].path)[0].equals(expected)
    assert outputs["rows"] == rows.height
    assert not list((tmp_path / "run/elsewhere").iterdir())


_LISTENERS = """
import sys
import psutil
from modelyard.components.features.fetching import Request, fetch_training_data

fetch_training_data(Request(sys.argv[1], sys.argv[2], sys.argv[3], "label", full_feature_names=True), sys.argv[4])
for process in psutil.Process().children(recursive=True):
    for connection in process.connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print("LISTENS", connection.laddr.ip)
"""


def _fetch_elsewhere(repo, rows, folder, script=_LISTENERS, **environment):
    rows.write_parquet(folder / "rows.parquet")
    return subprocess.run(
        [sys.executable, "-c", script, str(repo), str(folder / "rows.parquet"), SERVICE, str(folder / "data")],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_spark
@pytest.mark.slow
def test_a_spark_on_this_machine_listens_on_loopback_alone(repos, tmp_path):
    sources, rows = simulated(0, 50)
    fill(repos, **sources)
    done = _fetch_elsewhere(repos[0], rows, tmp_path)
    assert done.returncode == 0, done.stderr
    listening = {line.split()[1].removeprefix("::ffff:") for line in done.stdout.splitlines() if line.startswith("LISTENS")}
    assert listening == {"127.0.0.1"}


@needs_spark
@pytest.mark.slow
def test_without_java_the_error_says_what_to_install(repos, tmp_path):
    sources, rows = simulated(0, 50)
    fill(repos, **sources)
    done = _fetch_elsewhere(repos[0], rows, tmp_path, PATH=str(tmp_path), JAVA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "NotAvailable: Spark does not start: install Java 17" in done.stderr
    assert not (tmp_path / "data").exists()


@needs_spark
def test_without_pyspark_the_error_says_what_is_missing(repos, tmp_path, monkeypatch):
    _, rows = simulated(0, 5)
    for name in [name for name in sys.modules if name.startswith("feast.infra.offline_stores.contrib.spark")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(NotAvailable, match=r"store spark needs a library that is not installed \(.*pyspark.*\): add it"):
        fetch(repos[0], rows, tmp_path)


def test_a_session_is_in_utc_and_a_spark_on_this_machine_keeps_to_loopback(monkeypatch):
    for name in ("SPARK_CONF_DIR", "SPARK_HOME", "SPARK_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    utc = {"spark.sql.session.timeZone": "UTC"}
    loopback = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    for given in ("spark", {"type": "spark"}, {"type": "spark", "spark_conf": {"spark.sql.session.timeZone": "Asia/Tokyo"}}):
        assert spark_store(given) == {"type": "spark", "spark_conf": utc | loopback}
    asked = {"spark.master": "local[4]", "spark.ui.enabled": "true"}
    assert spark_store({"type": "spark", "spark_conf": asked, "region": "x"}) == {
        "type": "spark",
        "spark_conf": utc | loopback | asked,
        "region": "x",
    }
    # Executors elsewhere have to reach the driver.
    for elsewhere in ({"spark.master": "k8s://https://cluster"}, {"spark.remote": "sc://cluster"}):
        assert spark_store({"type": "spark", "spark_conf": elsewhere})["spark_conf"] == utc | elsewhere
    monkeypatch.setenv("SPARK_CONF_DIR", "/etc/spark")
    assert spark_store("spark")["spark_conf"] == utc
