"""How Triton serves each of the model formats: by which of its backends, from which file, under which names of tensors.

Both take one tensor of all features in the model's order, float32 of shape (rows, features): categories as their codes, NaN for
what is missing or was not seen in training. Both give the score, the probability that the label is 1.

FIL reads UBJSON as XGBoost 3 writes it from Triton 26.01 on; releases before that refuse to load it.
"""

from dataclasses import dataclass
from pathlib import Path

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.errors import InvalidInput


@dataclass(frozen=True)
class Backend:
    """One of Triton's backends.

    Attributes:
        name: what Triton calls it.
        file: name of the model's file in a version's folder.
        input: name of the tensor it takes; FIL knows this one only, a network names its own.
        output: name of the tensor it gives.
    """

    name: str
    file: str
    input: str
    output: str


ONNX = Backend("onnxruntime", "model.onnx", "features", "score")
FIL = Backend("fil", "xgboost.ubj", "input__0", "output__0")
_BACKENDS = {".onnx": ONNX, ".ubj": FIL}


def backend_of(spec: ModelSpec) -> Backend:
    """The backend that serves a model.

    Raises:
        InvalidInput: none does.
    """
    backend = _BACKENDS.get(Path(spec.model_file).suffix)
    if backend is None:
        raise InvalidInput("model_file", spec.model_file, f"Triton is given only {', '.join(_BACKENDS)} here")
    return backend
