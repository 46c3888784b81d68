"""The prediction log of a served model: what was asked and what was answered, as Parquet files.

It never gets in the way of an answer. ``append`` puts a request in a queue, bounded by rows and by bytes, and returns; a thread
of the log's own converts, writes and sends. A full disk or a store out of reach makes the queue fill up, and what no longer
fits is counted as dropped and told, at most once a minute; once the disk is back, the log goes on with what it has. A killed
process loses what it had not written yet, which is no older than a rotation, and leaves no half file.

    log = PredictionLog("predictions", model_name="fraud", version="3", digest="blake3:…", features=spec.features)
    log.append(request_id, customer, time.time_ns(), rows, scores, decisions)
    log.close()

| variable | means | default |
|---|---|---|
| ``MODELYARD_PREDICTION_LOG_SECONDS`` | age at which rows are written, and the most that a kill can lose | 60 |
| ``MODELYARD_PREDICTION_LOG_DAYS`` | days after which rows on this machine are removed | kept |

In a bucket a lifecycle rule removes what is old.

Features and keys are personal data. Let keys be pseudonyms, such as a customer's number, never a name, an address or a card.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modelyard.components.artifacts.model import Feature
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.predictions.columns import Answered, complete, date_of, record_batch
from modelyard.components.predictions.destination import open_destination
from modelyard.components.predictions.layout import check_version

ROTATE_ROWS = 10_000
ROTATE_SECONDS = 60.0
MAX_ROWS = 100_000
MAX_BYTES = 64 * 1024 * 1024
_TELL_SECONDS = 60.0
_RETRY_SECONDS = 5.0
# Rows that are converted at once. The thread then sleeps, so that requests get the interpreter in between.
_PIECE_ROWS = 256
_BREATH_SECONDS = 0.0005
_CONVERT_AT_ROWS = 1024
# What CPython takes for a request and for each value in it, roughly.
_REQUEST_BYTES = 600
_VALUE_BYTES = 64
_logger = logging.getLogger(__name__)


class PredictionLog:
    """Takes answered requests, and writes them in a thread of its own.

    Args:
        destination: folder, ``s3://`` or ``gs://`` prefix of the log; see ``layout`` for what is below it.
        model_name: name of the served model.
        version: its version in the registry.
        digest: its model digest.
        features: its features, in order.
        rotate_rows: rows at which a file is written.
        rotate_seconds: age of the oldest row at which one is; None takes it from the environment.
        max_rows: rows that may wait in memory.
        max_bytes: memory that they may take, in bytes, roughly.

    Raises:
        InvalidInput: a name that cannot be a folder's or a file's, or a variable of the environment that is no number.
    """

    def __init__(
        self,
        destination: str,
        *,
        model_name: str,
        version: str,
        digest: str,
        features: Sequence[Feature],
        rotate_rows: int = ROTATE_ROWS,
        rotate_seconds: float | None = None,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._model_name = check_model_name(model_name)
        self._version = check_version(version)
        self._digest = digest
        self._features = tuple(features)
        self._rotate_rows = rotate_rows
        if rotate_seconds is None:
            rotate_seconds = _number("MODELYARD_PREDICTION_LOG_SECONDS") or ROTATE_SECONDS
        self._rotate_seconds = rotate_seconds
        self._max_rows, self._max_bytes = max_rows, max_bytes
        keep_days = _number("MODELYARD_PREDICTION_LOG_DAYS")
        self._destination = open_destination(destination, model_name, None if keep_days is None else int(keep_days))
        self._row_bytes = _VALUE_BYTES * (len(self._features) + 2)
        self._texts = [(position, feature.name) for position, feature in enumerate(self._features) if feature.categories]

        # Counters only grow, and each has one owner: those who append (under their lock), or the thread. So nobody who appends
        # ever waits for the thread.
        self._queue: deque[Answered] = deque()
        self._appending = threading.Lock()
        self._given_rows = self._given_bytes = self._refused = 0
        self._taken_rows = self._settled_rows = self._settled_bytes = self._lost = 0

        self._held: dict[int, list[pa.RecordBatch]] = {}
        self._held_bytes: dict[int, int] = {}
        self._oldest: float | None = None
        self._retry_at = 0.0
        self._fault = ""
        self._told_dropped = 0
        self._told_at = -_TELL_SECONDS
        self._closing = self._given_up = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"prediction-log-{model_name}", daemon=True)
        self._thread.start()

    @property
    def written(self) -> int:
        """Rows that are where they belong."""
        return self._destination.rows

    @property
    def dropped(self) -> int:
        """Rows that never will be."""
        unwritten = self._given_rows - self._settled_rows + self._destination.at_stake if self._given_up else 0
        return self._refused + self._lost + unwritten

    def append(
        self,
        request_id: str,
        key: str,
        at_ns: int,
        rows: Any,
        scores: np.ndarray,
        decisions: np.ndarray,
        *,
        mirrored: bool = False,
    ) -> bool:
        """Hands over an answered request, whose content must not be changed any more.

        It takes microseconds, waits for nothing and never raises: what the log cannot take is counted as dropped and told.

        Args:
            request_id: as the answer said.
            key: what the traffic is split by, or empty.
            at_ns: when the request came, in nanoseconds since 1970.
            rows: its rows: dictionaries by feature name, lists in feature order, or an array of shape (rows,
                features); in one of floats, categories are codes.
            scores: shape (rows,).
            decisions: 0 or 1, shape (rows,).
            mirrored: whether it was a copy, whose answer nobody got.

        Returns:
            Whether it was taken; not so if the queue is full, the log is closed, or this is no request.
        """
        try:
            count = len(rows)
            if not count:
                return True
            # Both are written once for each row.
            size = self._size(rows, count) + count * (len(request_id) + len(key))
            answered = Answered(request_id, key, at_ns, rows, scores, decisions, count, size, mirrored)
        except (TypeError, AttributeError, IndexError):
            return self._refuse(1, "a request was not of rows")
        with self._appending:
            waiting = self._given_rows - self._settled_rows
            if (
                self._closing
                or waiting + count > self._max_rows
                or self._given_bytes - self._settled_bytes + answered.size > self._max_bytes
            ):
                self._refused += count
                return False
            self._given_rows += count
            self._given_bytes += answered.size
            self._queue.append(answered)
        if (len(self._queue) == 1 or self._given_rows - self._taken_rows >= _CONVERT_AT_ROWS) and not self._wake.is_set():
            self._wake.set()
        return True

    def close(self, timeout: float = 10.0) -> bool:
        """Writes what is there and ends; returns whether that was done in ``timeout`` seconds. Can be called again."""
        with self._appending:
            self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        unwritten = self._given_rows - self._settled_rows + self._destination.at_stake
        self._given_up = self._thread.is_alive() or unwritten > 0
        self._tell(at_once=True)
        return not self._given_up

    def _size(self, rows: Any, count: int) -> int:
        """Memory of a request, roughly: exact counting would take longer than all the rest."""
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "f":
            return _REQUEST_BYTES + rows.nbytes + 16 * count
        size = _REQUEST_BYTES + count * self._row_bytes
        if self._texts:
            named = isinstance(rows[0], dict)
            for position, name in self._texts:
                for row in rows:
                    value = row.get(name) if named else row[position]
                    if isinstance(value, str):
                        size += len(value)
        return size

    def _refuse(self, rows: int, reason: str) -> bool:
        with self._appending:
            self._refused += rows
            self._fault = reason
        self._wake.set()
        return False

    def _run(self) -> None:
        self._attempt(self._destination.prepare)
        while True:
            self._wake.wait(self._patience())
            self._wake.clear()
            closing = self._closing
            if closing or self._is_due() or self._given_rows - self._taken_rows >= _CONVERT_AT_ROWS:
                self._take()
                if closing or self._is_due():
                    self._write()
            elif self._oldest is None and self._queue:
                self._oldest = time.monotonic()
            self._tell()
            if closing:
                return

    def _patience(self) -> float | None:
        """Seconds until there is something to do; None if only a request can bring it."""
        moments = []
        if self._oldest is not None:
            moments.append(max(self._oldest + self._rotate_seconds, self._retry_at))
        elif self._retry_at:
            moments.append(self._retry_at)
        if self.dropped > self._told_dropped:
            moments.append(self._told_at + _TELL_SECONDS)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        if self._retry_at or (self._oldest is not None and now >= self._oldest + self._rotate_seconds):
            return True
        waiting_bytes = self._given_bytes - self._settled_bytes
        return self._given_rows - self._settled_rows >= self._rotate_rows or waiting_bytes >= self._max_bytes // 4

    def _take(self) -> None:
        """Converts everything in the queue, a piece at a time."""
        while self._queue:
            requests, rows = [], 0
            while self._queue and rows < _PIECE_ROWS:
                request = self._queue.popleft()
                requests.append(request)
                rows += request.height
            self._taken_rows += rows
            self._convert(requests)
            if self._oldest is None:
                self._oldest = time.monotonic()
            time.sleep(_BREATH_SECONDS)

    def _convert(self, requests: list[Answered]) -> None:
        try:
            day = requests[0].day
            date_of(day)
            batch = record_batch(requests, self._features) if {request.day for request in requests} == {day} else None
        except Exception as error:  # noqa: BLE001 - whatever a request holds, it must not end the log
            batch = None
            if len(requests) == 1:
                # Not the error's text, which may quote what the request holds.
                self._fault = f"a request holds what the log has no column for ({type(error).__name__})"
                self._lost += requests[0].height
                self._settled_rows += requests[0].height
                self._settled_bytes += requests[0].size
                return
        if batch is None:
            for request in requests:
                self._convert([request])
            return
        self._held.setdefault(day, []).append(batch)
        self._held_bytes[day] = self._held_bytes.get(day, 0) + sum(request.size for request in requests)

    def _write(self) -> None:
        """Writes what is held, one file for each day, and sends it."""
        done = self._attempt(self._write_days) and self._attempt(self._destination.deliver)
        self._retry_at = 0.0 if done else time.monotonic() + min(_RETRY_SECONDS, self._rotate_seconds)

    def _write_days(self) -> None:
        for day in sorted(self._held):
            table = complete(self._held[day], self._model_name, self._version, self._digest)
            write = partial(_write_parquet, table)
            self._destination.add(self._version, date_of(day), table.num_rows, write)
            del self._held[day]
            self._settled_rows += table.num_rows
            self._settled_bytes += self._held_bytes.pop(day)
        self._oldest = time.monotonic() if self._queue else None

    def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a disk or a store does, it must not end the log
            self._fault = f"{type(error).__name__}: {error}"
            return False
        return True

    def _tell(self, at_once: bool = False) -> None:
        """Says what was dropped, or waits, and why."""
        dropped, now = self.dropped - self._told_dropped, time.monotonic()
        if not (dropped or self._retry_at) or (not at_once and now < self._told_at + _TELL_SECONDS):
            return
        _logger.warning(
            "the prediction log of %s, version %s, has dropped %d rows, and %d wait to be written: %s",
            self._model_name,
            self._version,
            dropped,
            self._given_rows - self._settled_rows,
            self._fault or "more came than could be written",
        )
        self._told_dropped += dropped
        self._told_at, self._fault = now, ""


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _number(variable: str) -> float | None:
    """A positive number of the environment; None if it is not set."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidInput(variable, text, "give a number") from error
    if not 0 < value < float("inf"):
        raise InvalidInput(variable, text, "give a number above 0")
    return value
