import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from modelyard.components.artifacts.model import Feature
from modelyard.components.errors import InvalidInput
from modelyard.components.predictions import writer
from modelyard.components.predictions.reader import read_predictions
from modelyard.components.predictions.writer import PredictionLog
from modelyard.components.storage import uris
from modelyard.components.storage.files import PARTIAL, atomic_file
from tests.services.fixtures import rclone_s3  # noqa: F401
from tests.services.servers import free_port

FEATURES = (Feature("amount"), Feature("country", ("FR", "BE")))
NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp() * 1e9)


def make_log(destination, **settings) -> PredictionLog:
    settings = {"rotate_seconds": 1000.0, **settings}
    return PredictionLog(str(destination), model_name="fraud", version="3", digest="blake3:d", features=FEATURES, **settings)


def append(log, number, rows=None, at_ns=NOON, key="k") -> bool:
    rows = [[float(number), "FR"]] if rows is None else rows
    return log.append(f"r{number}", key, at_ns + number * 1000, rows, np.full(len(rows), 0.25), np.ones(len(rows), np.int32))


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.fixture
def blocked(tmp_path) -> Path:
    """A destination where nothing can be written until ``blocked`` is removed: a file is where its folder belongs."""
    path = tmp_path / "log"
    path.touch()
    return path


def test_what_is_appended_can_be_read_back(tmp_path):
    log = make_log(tmp_path)
    assert append(log, 0, [{"amount": 1.5, "country": "BE"}, {"amount": None, "country": "unseen"}])
    assert append(log, 1, np.array([[2.5, 0.0]], np.float32))
    assert log.close()

    found = read_predictions(str(tmp_path), "fraud")
    assert found["request_id"].to_list() == ["r0", "r0", "r1"]
    assert found["row"].to_list() == [0, 1, 0]
    assert found["time"][0] == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert found["features"].to_list() == [
        {"amount": 1.5, "country": "BE"},
        {"amount": None, "country": "unseen"},
        {"amount": 2.5, "country": "FR"},
    ]
    assert found.select("model_name", "version", "digest", "key", "score", "decision").unique().rows() == [
        ("fraud", "3", "blake3:d", "k", 0.25, 1)
    ]
    assert (log.written, log.dropped) == (3, 0)


def test_files_are_written_by_rows_and_by_age_without_a_close(tmp_path):
    by_rows, by_age = make_log(tmp_path / "rows", rotate_rows=2000), make_log(tmp_path / "age", rotate_seconds=0.05)
    for number in range(2000):
        append(by_rows, number)
    append(by_age, 0)
    wait_until(lambda: by_rows.written == 2000 and by_age.written == 1)
    append(by_age, 1)
    wait_until(lambda: by_age.written == 2)
    assert len(files(tmp_path / "rows")) == 1
    assert len(files(tmp_path / "age")) == 2
    assert by_rows.close()
    assert by_age.close()


def test_the_age_of_a_rotation_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_PREDICTION_LOG_SECONDS", "0.05")
    log = make_log(tmp_path, rotate_seconds=None)
    append(log, 0)
    wait_until(lambda: log.written == 1)
    assert log.close()


@pytest.mark.parametrize("value", ["soon", "0", "-1", "inf", "nan"])
def test_a_senseless_age_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("MODELYARD_PREDICTION_LOG_SECONDS", value)
    with pytest.raises(InvalidInput, match="MODELYARD_PREDICTION_LOG_SECONDS"):
        make_log(tmp_path, rotate_seconds=None)


def test_each_row_goes_to_the_folder_of_its_own_day(tmp_path):
    log = make_log(tmp_path)
    for hours in (0, 11, 13, 40):
        append(log, 0, at_ns=NOON + hours * 3600 * 10**9)
    assert log.close()
    assert {path.parent.name: pl.read_parquet(path).height for path in files(tmp_path)} == {
        "date=2026-05-01": 2,
        "date=2026-05-02": 1,
        "date=2026-05-03": 1,
    }


def test_only_the_owner_can_read_what_is_logged_on_a_laptop(tmp_path):
    previous = os.umask(0o022)
    try:
        log = make_log(tmp_path / "predictions")
        append(log, 0)
        assert log.close()
    finally:
        os.umask(previous)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent, tmp_path / "predictions"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("limits", [{"max_rows": 50}, {"max_bytes": 50 * 1000}])
def test_a_full_queue_refuses_more_counts_it_and_goes_on_when_the_disk_is_back(blocked, limits, monkeypatch):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.05)
    log = make_log(blocked, rotate_seconds=0.05, **limits)
    taken = sum(append(log, number) for number in range(1000))
    assert 0 < taken < 100
    assert log.dropped == 1000 - taken
    blocked.unlink()
    wait_until(lambda: log.written == taken)
    assert append(log, 1000)
    assert log.close()
    assert (log.written, log.dropped) == (taken + 1, 1000 - taken)
    assert read_predictions(str(blocked), "fraud").height == taken + 1


def test_long_texts_count_against_the_memory(blocked):
    log = make_log(blocked, max_bytes=1 << 20)
    assert append(log, 0, [{"amount": 1.0, "country": "x" * 600_000}])
    assert not append(log, 1, [{"amount": 1.0, "country": "x" * 600_000}])
    assert not append(log, 2, [[1.0, "x" * 600_000]])
    assert append(log, 3)
    log.close()


@pytest.mark.parametrize("names", [("r" * 250, ""), ("", "k" * 250)])
def test_ids_and_keys_count_against_the_memory_once_for_each_row(blocked, names):
    log = make_log(blocked, max_bytes=1 << 20)
    rows = np.zeros((3000, 2), np.float32)
    assert log.append(*names, 0, rows, np.zeros(3000), np.zeros(3000))
    assert not log.append(*names, 0, rows, np.zeros(3000), np.zeros(3000))
    assert log.append("r", "k", 0, rows, np.zeros(3000), np.zeros(3000))
    log.close()


def test_a_disk_that_fills_up_costs_no_row_that_fits_in_memory(tmp_path, monkeypatch):
    whole = writer._write_parquet

    def full(table, path):
        path.write_bytes(b"PAR1 and half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(writer, "_write_parquet", full)
    log = make_log(tmp_path, rotate_seconds=0.02)
    for number in range(10):
        append(log, number)
    wait_until(lambda: log._retry_at > 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(PARTIAL)]
    monkeypatch.setattr(writer, "_write_parquet", whole)
    wait_until(lambda: log.written == 10)
    assert log.close()
    assert log.dropped == 0
    assert not list(tmp_path.rglob(f"{PARTIAL}*"))


def test_a_request_is_not_held_up_by_a_disk_that_hangs(tmp_path, monkeypatch):
    hanging, hung = threading.Event(), threading.Event()

    def hang(table, path):
        hung.set()
        assert hanging.wait(60)
        writer.pq.write_table(table, path)

    monkeypatch.setattr(writer, "_write_parquet", hang)
    log = make_log(tmp_path, rotate_seconds=0.02, max_rows=10)
    append(log, 0)
    assert hung.wait(30)
    # This very thread would never come to the end if it had to wait for the other.
    taken = 1 + sum(append(log, number) for number in range(1, 100))
    assert taken == 10
    assert not log.close(timeout=0.05)
    assert log.dropped == 100
    hanging.set()
    log._thread.join(30)


def test_odd_values_cost_their_own_request_alone(tmp_path, caplog):
    log = make_log(tmp_path)
    for number in range(10):
        append(log, number)
    append(log, 10, [[object(), "FR"], [1.0, "FR"]])
    append(log, 11, [["Jane Doe", "FR"]])
    append(log, 12, [[1.0]])
    append(log, 13, at_ns=10**30)
    append(log, 14, [[2**70, "\ud800"]])
    append(log, 15, [[True, 7]])
    assert not log.append("r", "k", NOON, None, None, None)
    assert log.append("r", "k", NOON, [], np.empty(0), np.empty(0))
    with caplog.at_level(logging.WARNING):
        assert log.close()
    assert (log.written, log.dropped) == (12, 6)
    found = read_predictions(str(tmp_path), "fraud")["features"].to_list()
    assert found[-2:] == [{"amount": 2.0**70, "country": "?"}, {"amount": 1.0, "country": "7"}]
    assert "dropped 6 rows" in caplog.text
    assert "Jane" not in caplog.text


def test_what_is_dropped_is_told_with_the_reason_and_not_again_and_again(blocked, monkeypatch, caplog):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.02)
    with caplog.at_level(logging.WARNING):
        log = make_log(blocked, rotate_seconds=0.02, max_rows=5)
        for number in range(5):
            append(log, number)
        wait_until(lambda: caplog.records)
        assert f"5 wait to be written: NotADirectoryError: [Errno 20] Not a directory: '{blocked}" in caplog.text
        for number in range(5, 20):
            append(log, number)
        time.sleep(0.3)
        assert len(caplog.records) == 1
        assert not log.close()
        assert log.dropped == 20
        assert "has dropped 20 rows" in caplog.records[1].getMessage()
        assert len(caplog.records) == 2


def test_a_closed_log_takes_nothing_more_and_can_be_closed_again(tmp_path):
    log = make_log(tmp_path)
    append(log, 0)
    assert log.close()
    assert not append(log, 1)
    assert log.close()
    assert (log.written, log.dropped) == (1, 1)


def test_rows_from_many_threads_are_all_counted_once(tmp_path):
    log = make_log(tmp_path, rotate_rows=500, max_rows=1500)

    def send(first):
        for number in range(first, first + 1000):
            append(log, number)

    threads = [threading.Thread(target=send, args=(1000 * part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.close()
    found = read_predictions(str(tmp_path), "fraud")
    assert log.written + log.dropped == 4000
    assert found.height == found["request_id"].n_unique() == log.written > 0


_ENDLESS = """
import sys, time
import numpy as np
from modelyard.components.artifacts.model import Feature
from modelyard.components.predictions.writer import PredictionLog
log = PredictionLog(sys.argv[1], model_name="fraud", version="3", digest="d", features=(Feature("amount"),), rotate_rows=300,
                    rotate_seconds=0.02)
number = 0
while True:
    log.append(f"{sys.argv[2]}-{number}", "", time.time_ns(), [[float(number)]], np.zeros(1), np.zeros(1))
    number += 1
    if number % 20 == 0:
        print(log.written, flush=True)
        time.sleep(0.001)
"""


def test_a_kill_at_any_moment_leaves_whole_files_and_all_that_was_said_to_be_written(tmp_path):
    said = 0
    for attempt in range(3):
        command = [sys.executable, "-c", _ENDLESS, str(tmp_path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            wanted = 500 + 317 * attempt
            lines = iter(process.stdout)
            written = next(count for count in map(int, lines) if count > wanted)
            process.send_signal(signal.SIGKILL)
            said += max([written, *(int(line) for line in lines if line.endswith("\n"))])
    assert read_predictions(str(tmp_path), "fraud").height >= said


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    day = tmp_path / "fraud" / "date=2026-05-01"
    day.mkdir(parents=True)
    (day / f"{PARTIAL}3-20260501T120000-abc.parquet-0123456789abcdef").write_bytes(b"half")
    with atomic_file(day / "2-20260501T120000-def.parquet") as living:
        log = make_log(tmp_path)
        wait_until(lambda: list(day.iterdir()) == [living])
        assert log.close()
        living.write_bytes(b"whole")
    assert [path.name for path in day.iterdir()] == ["2-20260501T120000-def.parquet"]


def test_days_older_than_wanted_are_removed_and_nothing_else_is(tmp_path, monkeypatch):
    today = datetime.now(UTC).date()
    kept = [f"date={today - timedelta(days=2)}", "date=2001-99-99", "notes"]
    for name in (*kept, f"date={today - timedelta(days=3)}", "date=2001-01-01"):
        (tmp_path / "fraud" / name).mkdir(parents=True)
        (tmp_path / "fraud" / name / "1-20260501T120000-abc.parquet").touch()
    monkeypatch.setenv("MODELYARD_PREDICTION_LOG_DAYS", "2")
    log = make_log(tmp_path)
    wait_until(lambda: len(list((tmp_path / "fraud").iterdir())) == 3)
    assert log.close()
    assert sorted(path.name for path in (tmp_path / "fraud").iterdir()) == sorted(kept)


@pytest.mark.parametrize("entries", [{"model_name": "../up"}, {"version": "a/b"}, {"destination": "ftp://host/log"}])
def test_names_that_would_lead_elsewhere_are_refused(tmp_path, entries):
    arguments = {"destination": str(tmp_path), "model_name": "fraud", "version": "3", **entries}
    with pytest.raises(InvalidInput):
        PredictionLog(arguments.pop("destination"), digest="d", features=FEATURES, **arguments)


@pytest.mark.server
def test_a_log_in_a_bucket_waits_for_the_store_and_arrives_once_it_is_there(tmp_path, rclone_s3, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.1)
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    log = make_log("s3://bucket/predictions", rotate_seconds=0.05)
    append(log, 0)
    wait_until(lambda: log._retry_at > 0)
    assert log.written == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone_s3.environment["AWS_ENDPOINT_URL"])
    wait_until(lambda: log.written == 1)
    assert log.close()
    assert read_predictions("s3://bucket/predictions", "fraud")["request_id"].to_list() == ["r0"]
    assert not files(tmp_path / "home")


@pytest.mark.server
def test_what_a_log_could_not_send_is_sent_by_the_next_one(tmp_path, rclone_s3, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    first = make_log("s3://bucket/later")
    append(first, 0)
    first.close(60)
    (waiting,) = files(tmp_path / "home")
    assert stat.S_IMODE(waiting.stat().st_mode) == 0o600
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone_s3.environment["AWS_ENDPOINT_URL"])
    second = make_log("s3://bucket/later")
    append(second, 1)
    assert second.close(60)
    assert uris.exists("s3://bucket/later/fraud")
    assert read_predictions("s3://bucket/later", "fraud")["request_id"].to_list() == ["r0", "r1"]
    start = datetime(2026, 5, 1, tzinfo=UTC)
    assert read_predictions("s3://bucket/later", "fraud", start=start, end=start + timedelta(days=1)).height == 2
    with pytest.raises(InvalidInput, match="no rows"):
        read_predictions("s3://bucket/later", "fraud", start=start + timedelta(days=1), end=start + timedelta(days=2))


def test_in_a_pod_what_could_not_be_sent_is_lost_at_the_end_and_counted(monkeypatch, tmp_path):
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    log = make_log("s3://bucket/pod")
    append(log, 0)
    assert not log.close(60)
    assert (log.written, log.dropped) == (0, 1)


def test_the_log_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, modelyard.components.predictions.writer;"
        "print(*{'sklearn', 'scipy', 'matplotlib', 'mlflow', 'xgboost', 'pandas', 'kfp', 'boto3', 'google'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert loaded.split() == []
