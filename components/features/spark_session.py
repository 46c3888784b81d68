"""Spark as Feast's offline store, set up so that its answers are right and so that it serves nobody but this step.

Feast writes moments into Spark's SQL as UTC without saying so, and has Spark compare keys and times as texts: in a session of
another time zone features are silently lost, and two moments are one where clocks are set back. Its results come by pandas,
which makes other numbers of large whole ones among gaps. A local Spark opens its driver and its web page to the network.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from feast.errors import DataSourceNotFoundException
from feast.infra.offline_stores.offline_store import RetrievalJob

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable

SPARK_STORES = ("spark", "feast.infra.offline_stores.contrib.spark_offline_store.spark.SparkOfflineStore")

_TIME_ZONE = "spark.sql.session.timeZone"
# What each of these names may configure a master that is elsewhere.
_CONFIGURED_ELSEWHERE = ("SPARK_CONF_DIR", "SPARK_HOME", "SPARK_REMOTE")
_ON_LOOPBACK = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


def spark_store(settings: Any) -> dict[str, Any]:
    """The repo's settings of its Spark store, with what a session needs on top.

    Args:
        settings: ``offline_store`` of the repo's ``feature_store.yaml``: the store's type, or a mapping.

    Returns:
        A mapping. The session's time zone is UTC whatever was set; a Spark on this machine listens on loopback unless the
        settings say otherwise.
    """
    settings = dict(settings) if isinstance(settings, dict) else {"type": settings}
    given = dict(settings.get("spark_conf") or {})
    local = "spark.remote" not in given and not any(name in os.environ for name in _CONFIGURED_ELSEWHERE)
    if given.get("spark.master", "local" if local else "").startswith("local"):
        given = _ON_LOOPBACK | given
    return settings | {"spark_conf": given | {_TIME_ZONE: "UTC"}}


@contextmanager
def spark_session() -> Iterator[None]:
    """Lets Feast use Spark in the block: in UTC, also where a session is there already, and with errors a user can act on.

    Raises:
        NotAvailable: Spark does not start.
        InvalidInput: a source's table or path is not there.
        ModelyardError: Spark fails with the query.
    """
    from pyspark.errors import PySparkException, PySparkRuntimeError
    from pyspark.sql import SparkSession

    # Feast takes an active session as it is.
    session = SparkSession.getActiveSession()
    zone = str(session.conf.get(_TIME_ZONE)) if session else ""
    try:
        if session:
            session.conf.set(_TIME_ZONE, "UTC")
        yield
    except DataSourceNotFoundException as error:
        raise InvalidInput(
            "offline_store",
            "spark",
            f"{error} A relative path of a source is looked for where Spark runs, not in the feature repo: give an absolute "
            "path or a URI",
        ) from error
    except PySparkRuntimeError as error:
        if error.getCondition() != "JAVA_GATEWAY_EXITED":
            raise ModelyardError(f"Spark failed: {_first_line(error)}") from error
        raise NotAvailable("Spark does not start: install Java 17 or newer, or set JAVA_HOME to where it is") from error
    except PySparkException as error:
        raise ModelyardError(f"Spark could not join the features: {_first_line(error)}") from error
    finally:
        if session:
            session.conf.set(_TIME_ZONE, zone)


def keep_whole_numbers(job: RetrievalJob) -> None:
    """Has a Spark job hand over its result without the detour over pandas."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkRetrievalJob

    # What goes through a staging location is read from Parquet files, as it is.
    if isinstance(job, SparkRetrievalJob) and not job._should_use_staging_for_arrow():

        def to_arrow(timeout: int | None = None) -> pa.Table:
            return job.to_spark_df().toArrow()

        job._to_arrow_internal = to_arrow  # type: ignore[method-assign]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
