"""What a predictor is told by its environment.

| variable | means | default |
|---|---|---|
| ``MODEL_VERSION`` | version in the registry, which metrics and answers name | ``unversioned`` |
| ``MODEL_DIGEST`` | digest that the model must have | any digest, if it is signed |
| ``MODEL_THRESHOLD`` | score at or above which the decision is 1, from 0 to 1 | the model's own |
| ``MODELYARD_PREDICTION_LOG`` | folder, ``s3://`` or ``gs://`` prefix of the prediction log | no log |
| ``MODELYARD_MAX_REQUEST_BYTES`` | largest body of a request | 10 MiB |
| ``MODELYARD_MAX_REQUEST_ROWS`` | most rows of a request | 50,000 |

Whose signature counts is configured as everywhere, see ``modelyard.components.settings`` and ``modelyard.components.signing``.
"""

import os
from dataclasses import dataclass

from modelyard.components.errors import InvalidInput
from modelyard.components.predictions.layout import check_version

UNVERSIONED = "unversioned"
DEFAULT_MAX_REQUEST_BYTES = 10 * 2**20
DEFAULT_MAX_REQUEST_ROWS = 50_000


@dataclass(frozen=True)
class Configuration:
    """Settings of one predictor, checked.

    Attributes:
        version: version in the registry, or what stands for none.
        digest: digest that the model must have (``blake3:…``); empty to accept any.
        threshold: overrides the model's own; None if not given.
        prediction_log: where predictions are logged; empty for no log.
        max_request_bytes: largest body that is read.
        max_request_rows: most rows that are answered at once.
    """

    version: str = UNVERSIONED
    digest: str = ""
    threshold: float | None = None
    prediction_log: str = ""
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_request_rows: int = DEFAULT_MAX_REQUEST_ROWS

    @classmethod
    def from_environment(cls) -> "Configuration":
        """Reads the variables above.

        Raises:
            InvalidInput: one of them cannot be used.
        """
        return cls(
            version=_version(os.environ.get("MODEL_VERSION", "")),
            digest=os.environ.get("MODEL_DIGEST", ""),
            threshold=_threshold(os.environ.get("MODEL_THRESHOLD", "")),
            prediction_log=os.environ.get("MODELYARD_PREDICTION_LOG", ""),
            max_request_bytes=_count("MODELYARD_MAX_REQUEST_BYTES", "bytes", DEFAULT_MAX_REQUEST_BYTES),
            max_request_rows=_count("MODELYARD_MAX_REQUEST_ROWS", "rows", DEFAULT_MAX_REQUEST_ROWS),
        )


def _version(text: str) -> str:
    try:
        return check_version(text) if text else UNVERSIONED
    except InvalidInput as error:
        raise InvalidInput("MODEL_VERSION", text, error.remedy) from error


def _threshold(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InvalidInput("MODEL_THRESHOLD", text, "give a number from 0 to 1, or leave it out for the model's own threshold")
    return value


def _count(variable: str, what: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not 0 < int(text) < 2**40:
        raise InvalidInput(variable, text, f"give a number of {what}, such as {default}")
    return int(text)
