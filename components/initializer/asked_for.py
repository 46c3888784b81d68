"""What a serving pod asks its initializer for.

The variables come from the annotations of the InferenceService's predictor, by way of the pod's own (see
``manifests/components/serving/storage-container.yaml``).

| variable | annotation | means |
|---|---|---|
| ``MODEL_NAME`` | ``modelyard.dev/model-name`` | the model it must be |
| ``MODEL_DIGEST`` | ``modelyard.dev/model-digest`` | the digest it must have |
| ``MODEL_VERSION`` | ``modelyard.dev/model-version`` | the version that a registry must know it as, if it comes by way of one |
| ``MODEL_LAYOUT`` | ``modelyard.dev/layout`` | ``modelyard`` (default) for the predictor, ``triton`` for Triton |
"""

import os
import re
from dataclasses import dataclass

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput

MODELYARD, TRITON = "modelyard", "triton"
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")


@dataclass(frozen=True)
class AskedFor:
    """The one model that may pass.

    Attributes:
        model_name: the registered model.
        digest: its model digest (``blake3:…``).
        version: its version in the registry; empty if that does not matter.
        layout: how it is laid out for its server: ``modelyard`` or ``triton``.
    """

    model_name: str
    digest: str
    version: str = ""
    layout: str = MODELYARD

    @classmethod
    def from_environment(cls) -> "AskedFor":
        """Reads the variables above.

        Raises:
            InvalidInput: one of them is missing or cannot be used. A signed model that nobody named would be any version.
        """
        name, digest = os.environ.get("MODEL_NAME", ""), os.environ.get("MODEL_DIGEST", "")
        layout = os.environ.get("MODEL_LAYOUT") or MODELYARD
        if not name:
            raise InvalidInput("MODEL_NAME", name, "annotate the predictor with modelyard.dev/model-name")
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(
                "MODEL_DIGEST", digest, "annotate the predictor with modelyard.dev/model-digest, blake3: and 64 digits"
            )
        if layout not in (MODELYARD, TRITON):
            raise InvalidInput(
                "MODEL_LAYOUT", layout, f"annotate the predictor with modelyard.dev/layout {MODELYARD} or {TRITON}"
            )
        return cls(check_model_name(name), digest, os.environ.get("MODEL_VERSION", ""), layout)
