"""Point-in-time features for entity rows: this package's join, a bare polars ``join_asof``, and Feast's own duckdb store.

Two views, customers' and terminals', of ten numbers each. The bare join is what one would write by hand for these rows: it
knows that no key is null and that every row was known at the moment it is about. A second set, where some were not, is compared
with Feast's store alone, whose answers are the right ones in both.
"""

import json
import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import Clock, Measurement, MeasurementFailed, Task, measure, measure_in_turn

if TYPE_CHECKING:
    import polars as pl

LIMIT = 1.5
SEED = 20_180_401
DAYS, TTL_DAYS = 183, 30
FEATURES = 10
SERVICE = "both"
_ROW = "row"
_OURS, _BARE, _STORE, _FEAST = "modelyard", "polars join_asof", "modelyard's store in Feast", "Feast's duckdb store"
_FEATURE_STORE = {
    "project": "benchmark",
    "provider": "local",
    "registry": "registry.db",
    "offline_store": {"type": "duckdb"},
    "online_store": {"type": "sqlite", "path": "online.db"},
    "entity_key_serialization_version": 3,
}
_DAY = 86_400_000_000
# 2018-04-01 in microseconds since 1970.
_START = 17_622 * _DAY


class _View:
    """A feature view; its rows are in the order of their events, as a log's are."""

    def __init__(self, entity: str) -> None:
        self.entity = entity
        self.key = f"{entity}_id"
        self.name = f"{entity}_features"
        self.file = f"{self.name}.parquet"
        self.features = tuple(f"{entity}_feature_{number}" for number in range(FEATURES))


_VIEWS = (_View("customer"), _View("terminal"))
_FEATURES = tuple(name for view in _VIEWS for name in view.features)


def _measure(setting: Setting) -> list[Row]:
    asked = setting.size((100_000, 1_000_000), (300,))
    plain, late = setting.scratch / "plain", setting.scratch / "late"
    sizes = {
        "rows": setting.size([5_000_000, 1_000_000], [5_000, 1_000]),
        "keys": setting.size([50_000, 10_000], [50, 10]),
    }
    setting.say("writing the feature rows")
    measure(Task(write_rows, {"folder": str(plain), **sizes, "entity_rows": max(asked), "late": 0.0}), setting.scratch)
    measure(Task(apply_repo, {"folder": str(plain)}), setting.scratch)
    rows = [row for count in asked for row in _plain_rows(plain, count, sizes["rows"], setting)]
    measure(Task(write_rows, {"folder": str(late), **sizes, "entity_rows": min(asked), "late": 0.05}), setting.scratch)
    shutil.copytree(plain, late, ignore=shutil.ignore_patterns("*.parquet"), dirs_exist_ok=True)
    rows.append(_late_row(late, min(asked), sizes["rows"], setting))
    return rows


FIGURE = Figure("fetch", "Point-in-time features", _measure, needs=("feast", "duckdb", "ibis"))


def _plain_rows(folder: Path, count: int, rows: list[int], setting: Setting) -> list[Row]:
    setting.say(f"joining {count:,} entity rows by hand and with modelyard")
    tasks = {_OURS: _task(join, folder, count, _OURS), _BARE: _task(bare_join, folder, count, _BARE)}
    measured = measure_in_turn(tasks, setting.scratch, setting.size(5, 1))
    setting.say(f"joining {count:,} entity rows with Feast")
    tasks = {
        _STORE: _task(feast_join, folder, count, _STORE, as_of=True),
        _FEAST: _task(feast_join, folder, count, _FEAST, as_of=False),
    }
    measured |= measure_in_turn(tasks, setting.scratch)
    differences = _differences(folder, [_OURS, _BARE, _STORE], setting)
    if differences[_BARE]:
        raise MeasurementFailed(f"the join by hand differs from Feast's in {differences[_BARE]} values: it is no fair peer")
    work = f"{count:,} entity rows x views of {rows[0]:,} and {rows[1]:,} rows"
    ours, bare = measured[_OURS], measured[_BARE]
    return [
        Row(
            work=work,
            unit="s",
            ours=ours.seconds,
            peer_name=_BARE,
            peer=bare.seconds,
            target=f"at most {LIMIT} x the bare join, same values as Feast's duckdb store",
            reached=ours.seconds <= LIMIT * bare.seconds and differences[_OURS] == 0,
            differences=differences[_OURS],
            note=_note(ours, bare),
            measurements={_OURS: ours, _BARE: bare},
        ),
        _store_row(f"{work}, through Feast", measured, differences[_STORE]),
    ]


def _late_row(folder: Path, count: int, rows: list[int], setting: Setting) -> Row:
    setting.say(f"joining {count:,} entity rows where feature rows came late")
    tasks = {
        _OURS: _task(join, folder, count, _OURS),
        _STORE: _task(feast_join, folder, count, _STORE, as_of=True),
        _FEAST: _task(feast_join, folder, count, _FEAST, as_of=False),
    }
    measured = measure_in_turn(tasks, setting.scratch)
    differences = _differences(folder, [_OURS, _STORE], setting)
    work = f"{count:,} entity rows x views of {rows[0]:,} and {rows[1]:,} rows, 5 % of which came late, through Feast"
    return _store_row(work, measured, differences[_OURS] + differences[_STORE])


def _store_row(work: str, measured: Mapping[str, Measurement], differences: int) -> Row:
    ours, peer = measured[_STORE], measured[_FEAST]
    return Row(
        work=work,
        unit="s",
        ours=ours.seconds,
        peer_name=_FEAST,
        peer=peer.seconds,
        target="same values",
        reached=differences == 0,
        differences=differences,
        note=_note(ours, peer),
        measurements={_STORE: ours, _FEAST: peer},
    )


def _note(ours: Measurement, peer: Measurement) -> str:
    return f"CPU {ours.cpu_seconds:.1f} / {peer.cpu_seconds:.1f} s, peak {ours.peak_gib:.1f} / {peer.peak_gib:.1f} GiB"


def _task(work: Any, folder: Path, count: int, result: str, **arguments: Any) -> Task:
    return Task(work, {"folder": str(folder), "count": count, "result": _result_file(result), **arguments})


def _result_file(name: str) -> str:
    return f"{name.replace(' ', '_')}.result.parquet"


def _differences(folder: Path, names: list[str], setting: Setting) -> dict[str, int]:
    files = [_result_file(name) for name in names]
    task = Task(compare, {"folder": str(folder), "results": files, "expected": _result_file(_FEAST)})
    counts = measure(task, setting.scratch).facts["differences"]
    return dict(zip(names, counts, strict=True))


# What follows runs in processes of its own.


def write_rows(clock: Clock, folder: str, rows: list[int], keys: list[int], entity_rows: int, late: float) -> dict[str, Any]:
    """Writes the views' rows and the entity rows; of the former a share ``late`` was created days after its event."""
    import numpy as np
    import polars as pl

    draws = np.random.default_rng(SEED)
    Path(folder).mkdir()

    def moments(microseconds: Any) -> pl.Series:
        return pl.Series(microseconds + _START).cast(pl.Datetime("us", "UTC"))

    for view, count, different in zip(_VIEWS, rows, keys, strict=True):
        # An event a key and moment: which of several at once counts is a matter of taste.
        events = np.sort(draws.choice(DAYS * _DAY // 1000, count, replace=False, shuffle=False)) * 1000
        delays = np.where(draws.random(count) < late, draws.integers(1, 5 * _DAY, count), 0)
        frame = pl.DataFrame({view.key: draws.integers(0, different, count)}).with_columns(
            moments(events).alias("event_timestamp"),
            moments(events + delays).alias("created"),
            *(pl.Series(name, draws.random(count)) for name in view.features),
        )
        frame.write_parquet(Path(folder, view.file))
    columns = {view.key: draws.integers(0, different, entity_rows) for view, different in zip(_VIEWS, keys, strict=True)}
    pl.DataFrame(columns).with_columns(
        moments(draws.integers(0, DAYS * _DAY, entity_rows)).alias("event_timestamp")
    ).with_row_index(_ROW).write_parquet(Path(folder, "entity_rows.parquet"))
    return {}


def apply_repo(clock: Clock, folder: str) -> dict[str, Any]:
    """Makes the folder a Feast repo."""
    # JSON is YAML, too.
    Path(folder, "feature_store.yaml").write_text(json.dumps(_FEATURE_STORE), encoding="utf-8")
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    definitions: list[Any] = []
    for view in _VIEWS:
        entity = Entity(name=view.entity, join_keys=[view.key], value_type=ValueType.INT64)
        source = FileSource(path=view.file, timestamp_field="event_timestamp", created_timestamp_column="created")
        schema = [Field(name=name, dtype=Float64) for name in view.features]
        definitions += [
            entity,
            FeatureView(name=view.name, entities=[entity], ttl=timedelta(days=TTL_DAYS), schema=schema, source=source),
        ]
    definitions.append(FeatureService(name=SERVICE, features=definitions[1::2]))
    FeatureStore(repo_path=folder).apply(definitions)
    return {}


def join(clock: Clock, folder: str, count: int, result: str) -> dict[str, Any]:
    """As ``fetch_features`` does it, but for the dataset's writing."""
    from modelyard.components.features.feature_repo import plan_from_registry, read_settings
    from modelyard.components.features.point_in_time import point_in_time_join

    path = _warmed(Path(folder))
    with clock:
        plan = plan_from_registry(read_settings(Path(folder)), SERVICE)
        if plan is None:
            raise MeasurementFailed("this feature repo is one that modelyard reads without Feast, but it did not")
        frame = point_in_time_join(_asked(path, count), "event_timestamp", plan.sources)
    return _keep(frame, folder, result)


def bare_join(clock: Clock, folder: str, count: int, result: str) -> dict[str, Any]:
    """As one would write it by hand."""
    import polars as pl

    path = _warmed(Path(folder))
    with clock:
        frame = _asked(path, count).sort("event_timestamp")
        for view in _VIEWS:
            source = pl.read_parquet(Path(folder, view.file), columns=[view.key, "event_timestamp", *view.features])
            frame = frame.join_asof(
                source.sort("event_timestamp"),
                on="event_timestamp",
                by=view.key,
                tolerance=timedelta(days=TTL_DAYS),
                check_sortedness=False,
            )
        frame = frame.sort(_ROW)
    return _keep(frame, folder, result)


def feast_join(clock: Clock, folder: str, count: int, result: str, as_of: bool) -> dict[str, Any]:
    """As ``FeatureStore.get_historical_features`` does it, with Feast's duckdb store or with this package's."""
    import polars as pl
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    from modelyard.components.features.feature_repo import AS_OF_STORE

    path = _warmed(Path(folder))
    # Feast's store finds relative paths from here.
    os.chdir(folder)
    config = load_repo_config(Path(folder), Path("feature_store.yaml"))
    if as_of:
        config.offline_config = {"type": AS_OF_STORE}
    store = FeatureStore(config=config)
    asked = _asked(path, count).to_pandas()
    with clock:
        job = store.get_historical_features(
            entity_df=asked, features=store.get_feature_service(SERVICE), filter_by_created_timestamp=True
        )
        table = job.to_arrow()
    return _keep(pl.DataFrame(table), folder, result)


def _warmed(folder: Path) -> Path:
    """Reads all inputs once, so that nobody pays for the disk; returns the path of the entity rows."""
    for name in (*(view.file for view in _VIEWS), "entity_rows.parquet"):
        with (folder / name).open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return folder / "entity_rows.parquet"


def _asked(path: Path, count: int) -> "pl.DataFrame":
    import polars as pl

    return pl.read_parquet(path, n_rows=count)


def _keep(frame: "pl.DataFrame", folder: str, result: str) -> dict[str, Any]:
    frame.sort(_ROW).select(_ROW, *_FEATURES).write_parquet(Path(folder, result), compression="uncompressed")
    return {"rows": frame.height}


def compare(clock: Clock, folder: str, results: list[str], expected: str) -> dict[str, Any]:
    """Counts the values in which each result differs; a missing or additional row counts as one for each feature."""
    import polars as pl

    right = pl.read_parquet(Path(folder, expected))
    counts = []
    for result in results:
        found = pl.read_parquet(Path(folder, result))
        both = right.join(found, on=_ROW, suffix="_found", validate="1:1")
        unequal = both.select(pl.col(name).ne_missing(pl.col(f"{name}_found")).sum() for name in _FEATURES)
        strays = right.height + found.height - 2 * both.height
        counts.append(int(sum(unequal.row(0))) + strays * len(_FEATURES))
    return {"differences": counts}
