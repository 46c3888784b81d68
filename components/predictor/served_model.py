"""The model that a predictor serves: a ``kserve.Model`` that verifies what it loads, each time it loads.

It stands under this package's own server and works in KServe's as well:

    >>> model = ServedModel("fraud", "/mnt/models", Configuration.from_environment())
    >>> model.load()
    True
    >>> kserve.ModelServer().start([model])
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from kserve.errors import InvalidInput as KServeInvalidInput
from kserve.model import Model
from kserve.protocol.infer_type import InferRequest, InferResponse

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.artifacts.scoring import Scorer
from modelyard.components.errors import InvalidInput
from modelyard.components.predictor import protocol_v1, protocol_v2
from modelyard.components.predictor.configuration import DEFAULT_MAX_REQUEST_ROWS, UNVERSIONED, Configuration
from modelyard.components.predictor.rows import RowReader
from modelyard.components.signing.verification import load_verified_model, verify_model

_PLATFORMS = {".ubj": "xgboost", ".onnx": "onnx"}


@dataclass(frozen=True)
class LoadedModel:
    """A verified model in memory. A reload makes another one, so that a request is answered by one model throughout.

    Attributes:
        name: the registered model.
        version: its version in the registry.
        digest: its model digest.
        threshold: score at or above which the decision is 1.
        scorer: what scores it.
        max_rows: most rows that a request may have.
    """

    name: str
    version: str
    digest: str
    threshold: float
    scorer: Scorer
    max_rows: int = DEFAULT_MAX_REQUEST_ROWS

    @property
    def spec(self) -> ModelSpec:
        """What the model takes and promises."""
        return self.scorer.spec

    @cached_property
    def reader(self) -> RowReader:
        """Reads the rows of requests."""
        return RowReader(self.spec.features)

    @property
    def platform(self) -> str:
        """The format of the model, as V2 metadata names it."""
        return _PLATFORMS[Path(self.spec.model_file).suffix]

    def decide(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float64) and decisions (int32) of a matrix (float32, shape (rows, features)), both of shape (rows,).

        Raises:
            InvalidInput: the model has no score for a row, because its numbers are too large to compute with.
        """
        scores = self.scorer.score_matrix(matrix)
        finite = np.isfinite(scores)
        if not finite.all():
            row = int(np.argmin(finite))
            raise InvalidInput(f"row {row}", matrix[row].tolist(), "the model has no score for such values; check their scale")
        return scores, (scores >= self.threshold).astype(np.int32)


class ServedModel(Model):
    """One model of a predictor.

    Attributes:
        name: the registered model.
        ready: whether it can answer.
        loaded: the verified model; only there once ``load`` has succeeded.
    """

    loaded: LoadedModel
    ready: bool

    def __init__(self, name: str, directory: str | os.PathLike[str], configuration: Configuration) -> None:
        super().__init__(check_model_name(name))
        self._directory = Path(directory)
        self._configuration = configuration

    def load(self) -> bool:
        """Verifies the directory (signature, provenance, digest), loads a private copy and replays the golden rows.

        May be called again while requests are answered: they get the model loaded before until this one has passed. Where a
        version was named, it must be the same model again: another one under that name would be taken for it.

        Raises:
            VerificationFailed: the directory is not the model it is said to be, or does not score as it must.
            InvalidInput: it holds no usable model.
            NotAvailable: it is not configured whose signatures count.
        """
        expected = self._configuration.digest
        if not expected and self.ready and self._configuration.version != UNVERSIONED:
            expected = self.loaded.digest
        # Where no digest is expected, the one that was verified first binds the load.
        digest = expected or verify_model(self._directory, model_name=self.name).model_digest
        scorer = load_verified_model(self._directory, model_name=self.name, digest=digest)
        threshold = self._configuration.threshold
        self.loaded = LoadedModel(
            name=self.name,
            version=self._configuration.version,
            digest=digest,
            threshold=scorer.spec.threshold if threshold is None else threshold,
            scorer=scorer,
            max_rows=self._configuration.max_request_rows,
        )
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        """The inputs, as V2 metadata gives them; KServe's own server asks for them."""
        return protocol_v2.metadata(self.loaded)["inputs"]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The outputs, as V2 metadata gives them; KServe's own server asks for them."""
        return protocol_v2.metadata(self.loaded)["outputs"]

    async def predict(
        self,
        payload: dict[str, Any] | InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answers a request that KServe's own server has read: a V1 body, or a V2 ``InferRequest``.

        Raises:
            kserve.errors.InvalidInput: the request is not what the model takes; KServe answers 400.
        """
        try:
            if not isinstance(payload, InferRequest):
                answer = protocol_v1.predict(self.loaded, orjson.dumps(payload))
                return orjson.loads(answer.body)
            content, json_length = payload.to_rest()
            body = content if isinstance(content, bytes) else orjson.dumps(content)
            answer = protocol_v2.infer(self.loaded, body, json_length)
        except (InvalidInput, orjson.JSONEncodeError) as error:
            # What is nested deeper than JSON is written, no model takes.
            raise KServeInvalidInput(str(error)) from error
        if answer.json_length is None:
            return InferResponse.from_rest(orjson.loads(answer.body))
        return InferResponse.from_bytes(answer.body, answer.json_length)
