"""Hands predictions to the prediction log, if there is one, and says when it drops some. A request never waits for it."""

import logging
import time
from typing import TYPE_CHECKING

from modelyard.components.predictor.protocol import Answer

if TYPE_CHECKING:
    from modelyard.components.predictions.writer import PredictionLog
    from modelyard.components.predictor.served_model import LoadedModel

_TELL_EVERY_SECONDS = 60.0
_CLOSE_SECONDS = 20.0

logger = logging.getLogger("modelyard.predictor")


class LoggedPredictions:
    """The prediction log of the model that is loaded now.

    Args:
        destination: folder, ``s3://`` or ``gs://`` prefix; empty for no log.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._log: PredictionLog | None = None
        self._before = (0, 0)
        self._told = 0
        self._told_at = -_TELL_EVERY_SECONDS

    def open(self, model: "LoadedModel") -> None:
        """Logs this model's predictions from now on.

        Raises:
            InvalidInput: the destination cannot be used.
        """
        if not self._destination:
            return
        from modelyard.components.predictions.writer import PredictionLog

        before = self._log
        self._log = PredictionLog(
            self._destination,
            model_name=model.name,
            version=model.version,
            digest=model.digest,
            features=model.spec.features,
        )
        if before is not None:
            before.close(_CLOSE_SECONDS)
            self._before = (self._before[0] + before.written, self._before[1] + before.dropped)

    def append(self, request_id: str, key: bytes, answer: Answer) -> None:
        """Queues the rows of an answered request; drops them if the log cannot keep up."""
        if self._log is None:
            return
        key_text = key.decode("latin-1")
        self._log.append(request_id, key_text, time.time_ns(), answer.rows, answer.scores, answer.decisions)
        if self._log.dropped + self._before[1] != self._told:
            self._tell()

    def rows(self) -> tuple[int, int]:
        """How many rows were written and dropped so far."""
        written, dropped = (self._log.written, self._log.dropped) if self._log is not None else (0, 0)
        return self._before[0] + written, self._before[1] + dropped

    def close(self) -> None:
        """Writes what is queued."""
        if self._log is not None:
            self._log.close(_CLOSE_SECONDS)
            self._told_at = -_TELL_EVERY_SECONDS
            if self.rows()[1] != self._told:
                self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_SECONDS:
            dropped = self.rows()[1]
            logger.warning(
                "the prediction log dropped %d rows more, %d in all: it cannot keep up", dropped - self._told, dropped
            )
            self._told, self._told_at = dropped, now
