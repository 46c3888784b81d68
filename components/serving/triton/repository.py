"""Writes a verified model as the repository that a Triton server reads.

::

    <destination>/<model name>/config.pbtxt     backend, tensors, batching; what a client must know as parameter ``modelyard``
    <destination>/<model name>/features.json    the same to read: features in order, categories in the order of their codes, …
    <destination>/<model name>/1/…              the model's file, byte for byte as it was signed

Triton takes numbers and answers with the score alone. Whoever asks it sends a category as its code, which is its place in the
list (NaN where a value is missing or not in the list), and decides by the threshold: 1 at or above it. The parameter is a part
of what ``GET /v2/models/<model name>/config`` answers, so that a client needs no access to the files.

Triton keeps no prediction log, so what it serves can be neither watched for drift nor compared with late labels.
"""

import json
import shutil
from pathlib import Path

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import ModelSpec, read_spec
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.serving.triton.backends import FIL, ONNX, Backend, backend_of
from modelyard.components.serving.triton.parity import check_parity
from modelyard.components.storage.files import atomic_directory

CONFIG_FILE = "config.pbtxt"
FEATURES_FILE = "features.json"
PARAMETER = "modelyard"
VERSION_FOLDER = "1"
# As many rows as the predictor takes by default, in one request or in several that Triton puts together.
MAX_BATCH_ROWS = 50_000


def write_repository(model_directory: Path, destination: Path, *, model_name: str) -> Path:
    """Writes the repository of one model, whole or not at all, and checks that Triton will score as the model must.

    Args:
        model_directory: the model's directory, verified already.
        destination: folder of the repository; it may exist, and hold other models.
        model_name: the served model. What an earlier attempt left under this name is replaced.

    Returns:
        The model's folder in the repository.

    Raises:
        InvalidInput: Triton cannot serve such a model, or something else is in its place.
        VerificationFailed: it would score a golden row otherwise.
        NotAvailable: a library that the check needs is not installed.
    """
    spec = read_spec(model_directory)
    backend = backend_of(spec)
    features = _features(spec, model_digest(model_directory))
    folder = destination / check_model_name(model_name)
    _make_room(folder)
    with atomic_directory(folder) as partial:
        version = partial / VERSION_FOLDER
        version.mkdir()
        shutil.copyfile(model_directory / spec.model_file, version / backend.file)
        check_parity(version / backend.file, backend, model_directory, spec)
        (partial / FEATURES_FILE).write_text(json.dumps(features, indent=1) + "\n", encoding="utf-8")
        (partial / CONFIG_FILE).write_text(_config(model_name, spec, backend, features), encoding="utf-8")
    return folder


def _make_room(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {CONFIG_FILE, FEATURES_FILE, VERSION_FOLDER}:
        raise InvalidInput(
            "destination", str(folder), "something that is no model of Triton is there; give a folder of its own"
        )
    shutil.rmtree(folder)


def _features(spec: ModelSpec, digest: str) -> dict[str, object]:
    return {
        "digest": digest,
        "label": spec.label,
        "threshold": spec.threshold,
        "features": [
            {"name": feature.name, "categories": None if feature.categories is None else list(feature.categories)}
            for feature in spec.features
        ],
    }


def _config(model_name: str, spec: ModelSpec, backend: Backend, features: dict[str, object]) -> str:
    """The model's configuration, in protobuf's text format."""
    parameters = {PARAMETER: json.dumps(features, separators=(",", ":"))}
    shape, acceleration = "dims: [ 1 ]", ""
    if backend is FIL:
        # The score itself, not the decision, which FIL takes only above the threshold; it wants a threshold all the same.
        parameters |= {
            "model_type": "xgboost_ubj",
            "is_classifier": "true",
            "predict_proba": "true",
            "threshold": repr(float(spec.threshold)),
        }
    if backend is ONNX:
        # A row's score has no dimension in the network, and must have one in Triton.
        shape += " reshape { shape: [ ] }"
        # On a GPU products would be rounded to 10 bits otherwise, and the golden rows score differently.
        acceleration = (
            "optimization { execution_accelerators { gpu_execution_accelerator "
            '[ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ] } }\n'
        )
    return (
        f"name: {_quoted(model_name)}\n"
        f"backend: {_quoted(backend.name)}\n"
        f"max_batch_size: {MAX_BATCH_ROWS}\n"
        f"input [ {{ name: {_quoted(backend.input)} data_type: TYPE_FP32 dims: [ {len(spec.features)} ] }} ]\n"
        f"output [ {{ name: {_quoted(backend.output)} data_type: TYPE_FP32 {shape} }} ]\n"
        "dynamic_batching { }\n"
        + acceleration
        + "".join(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}\n"
            for key, value in parameters.items()
        )
    )


def _quoted(text: str) -> str:
    r"""As protobuf's text format has it: of ASCII text, JSON escapes the quotes and backslashes alone, which is the same."""
    return json.dumps(text)
