"""Hands predictions to the prediction log, if there is one. A request never waits for it and never fails for it."""

import time
from typing import TYPE_CHECKING

from modelyard.components.predictor.protocol import Answer

if TYPE_CHECKING:
    from modelyard.components.predictions.writer import PredictionLog
    from modelyard.components.predictor.served_model import LoadedModel

_CLOSE_SECONDS = 20.0


class LoggedPredictions:
    """The prediction logs of one process: one for each model that it has loaded.

    Args:
        destination: folder, ``s3://`` or ``gs://`` prefix; empty for no log.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._logs: dict[str, PredictionLog] = {}

    def open(self, model: "LoadedModel") -> "PredictionLog | None":
        """The log of this model's predictions, which begins if it is not there yet; None if nothing is logged.

        Raises:
            InvalidInput: the destination or the version cannot be used.
        """
        if not self._destination or model.digest in self._logs:
            return self._logs.get(model.digest)
        # Only here: it takes a while to import, and most of what it needs is of no use without it.
        from modelyard.components.predictions.writer import PredictionLog

        log = PredictionLog(
            self._destination,
            model_name=model.name,
            version=model.version,
            digest=model.digest,
            features=model.spec.features,
        )
        self._logs[model.digest] = log
        return log

    def append(
        self, model: "LoadedModel", request_id: bytes, key: bytes, at_ns: int, answer: Answer, *, mirrored: bool = False
    ) -> None:
        """Queues the rows of an answered request; the log counts and tells what it has to drop.

        Args:
            model: what answered it.
            request_id: what the answer called it.
            key: what the traffic is split by, or empty.
            at_ns: when it came, in nanoseconds since 1970.
            answer: what was asked and answered.
            mirrored: whether it was a copy, whose answer nobody got.
        """
        log = self.open(model)
        if log is not None:
            name = request_id.decode("latin-1")
            log.append(name, key.decode("latin-1"), at_ns, answer.rows, answer.scores, answer.decisions, mirrored=mirrored)

    def rows(self) -> tuple[int, int]:
        """How many rows were written and dropped so far."""
        return sum(log.written for log in self._logs.values()), sum(log.dropped for log in self._logs.values())

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Writes what is queued, in ``seconds`` for all together."""
        end = time.monotonic() + seconds
        for log in self._logs.values():
            log.close(max(end - time.monotonic(), 0.0))
