"""Loads a model directory and scores rows: the one loader of training, evaluation and serving.

``load_scorer`` replays the golden rows, so a model that loads but answers differently (another library version, another
processor) is refused before its first real answer. It does not check signatures: outside training, load through
``modelyard.components.signing``.
"""

import ctypes
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from modelyard.components.artifacts.model import GOLDEN_ROWS_FILE, ModelSpec, read_spec
from modelyard.components.artifacts.xgboost_library import load_xgboost
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.storage.files import write_text

if TYPE_CHECKING:
    import onnxruntime

GOLDEN_TOLERANCE = 1e-5
_FEW_ROWS = 512


class Engine(Protocol):
    """A loaded model of one format."""

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """Probabilities of the positive class, shape (rows,), for a float32 matrix of shape (rows, features), C-ordered."""


class _XGBoostEngine:
    """Few rows on one thread, where starting threads costs more than they save; many rows on all cores.

    Few rows also go to XGBoost's C interface directly: its Python looks for every kind of data frame first, which takes
    nearly as long as scoring a row.
    """

    # Inputs, missing value and output as the C interface's documentation describes them.
    _ARRAY = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}'
    _SETTINGS = (
        b'{"type":0,"training":false,"iteration_begin":0,"iteration_end":0,"missing":NaN,"strict_shape":false,"cache_id":0}'
    )

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        xgboost = load_xgboost()
        self._error = xgboost.core.XGBoostError
        # The library that is loaded already, by a handle of our own.
        self._library = ctypes.CDLL(xgboost.libpath.find_lib_path()[0])
        self._library.XGBGetLastError.restype = ctypes.c_char_p
        try:
            self._one = xgboost.Booster({"nthread": 1}, model_file=path)
            self._all = xgboost.Booster({"nthread": 0}, model_file=path)
        except xgboost.core.XGBoostError as error:
            raise _unreadable(path, error) from error
        found = self._one.num_features()
        if found != len(spec.features):
            remedy = f"{len(spec.features)} are specified beside it; train it again"
            raise InvalidInput(str(path), f"{found} features", remedy)

    def score(self, matrix: np.ndarray) -> np.ndarray:
        if len(matrix) <= _FEW_ROWS:
            return self._score_few(matrix)
        # Reads the matrix where it lies; a DMatrix would copy it.
        return self._all.inplace_predict(matrix, validate_features=False)

    def _score_few(self, matrix: np.ndarray) -> np.ndarray:
        array = self._ARRAY % (matrix.__array_interface__["data"][0], *matrix.shape)
        shape, sides = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        scores = ctypes.POINTER(ctypes.c_float)()
        failed = self._library.XGBoosterPredictFromDense(
            self._one.handle, array, self._SETTINGS, None, ctypes.byref(shape), ctypes.byref(sides), ctypes.byref(scores)
        )
        if failed:
            raise self._error(self._library.XGBGetLastError().decode("utf-8", "replace"))
        # XGBoost's own memory, which this thread's next scores overwrite.
        return np.ctypeslib.as_array(scores, (len(matrix),)).copy()


def open_onnx_session(path: Path) -> "onnxruntime.InferenceSession":
    """ONNX Runtime's session of a network, on the CPU.

    Raises:
        InvalidInput: the file cannot be read.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.NotImplemented) as error:
        raise _unreadable(path, error) from error


class _OnnxEngine:
    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._session = open_onnx_session(path)
        self._input = self._session.get_inputs()[0].name

    def score(self, matrix: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: matrix})[0].reshape(-1)


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    return InvalidInput("model file", str(path), f"its library cannot read it ({reason}); train it again")


_ENGINES: dict[str, Callable[[Path, ModelSpec], Engine]] = {".ubj": _XGBoostEngine, ".onnx": _OnnxEngine}


class Scorer:
    """A model ready to answer.

    Attributes:
        spec: what the model needs and promises.
    """

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self.spec = spec
        self._engine = engine

    def score_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """Scores of an encoded matrix (see ``ModelSpec.encode``): float64, shape (rows,), finite, in [0, 1]."""
        if matrix.ndim != 2 or matrix.shape[1] != len(self.spec.features):
            raise InvalidInput("matrix shape", matrix.shape, f"the model takes (rows, {len(self.spec.features)})")
        if not len(matrix):
            return np.empty(0)
        return self._engine.score(np.ascontiguousarray(matrix, np.float32)).astype(np.float64)

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        """Scores of rows given by column names: float64, shape (rows,)."""
        return self.score_matrix(self.spec.encode(frame))


def write_golden_rows(directory: str | os.PathLike[str], spec: ModelSpec, matrix: np.ndarray, scores: np.ndarray) -> None:
    """Writes encoded rows (float32, shape (rows, features)) and the scores they must get."""
    rows = [[None if math.isnan(value) else float(value) for value in row] for row in matrix]
    content = {"features": list(spec.feature_names), "rows": rows, "scores": [float(score) for score in scores]}
    write_text(Path(directory, GOLDEN_ROWS_FILE), json.dumps(content, allow_nan=False) + "\n")


def open_scorer(directory: str | os.PathLike[str], spec: ModelSpec) -> Scorer:
    """Loads a model without replaying golden rows: for the trainer, which has yet to write them.

    Raises:
        InvalidInput: the directory holds no usable model.
    """
    path = Path(directory, spec.model_file)
    engine = _ENGINES.get(path.suffix)
    if engine is None or path.name != spec.model_file:
        raise InvalidInput("model_file", spec.model_file, f"only {', '.join(_ENGINES)} beside the specification can be loaded")
    if not path.is_file():
        raise InvalidInput("model directory", str(directory), f"it lacks {spec.model_file}; train it again")
    return Scorer(spec, engine(path, spec))


def load_scorer(directory: str | os.PathLike[str]) -> Scorer:
    """Loads a model and replays its golden rows.

    Raises:
        InvalidInput: the directory holds no usable model.
        VerificationFailed: a golden row gets another score than it must.
    """
    scorer = open_scorer(directory, read_spec(directory))
    _replay_golden_rows(scorer, Path(directory))
    return scorer


def read_golden_rows(directory: str | os.PathLike[str], spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """The golden rows, encoded (float32, shape (rows, features)), and the scores they must get (float64, shape (rows,)).

    Raises:
        VerificationFailed: they are missing, damaged, or for another model.
    """
    path = Path(directory, GOLDEN_ROWS_FILE)
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        features = golden["features"]
        matrix = np.array(golden["rows"], dtype=np.float32)
        expected = np.array(golden["scores"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(f"{path} cannot be read ({error}): the model's answers cannot be checked") from error
    if not len(expected):
        raise VerificationFailed(f"{path} holds no rows: the model's answers cannot be checked")
    if matrix.shape != (len(expected), len(spec.features)):
        raise VerificationFailed(f"{path} is damaged: rows of shape {matrix.shape} and {len(expected)} scores")
    if features != list(spec.feature_names):
        raise VerificationFailed(f"{path} is for other features than the model's")
    return matrix, expected


def _replay_golden_rows(scorer: Scorer, directory: Path) -> None:
    matrix, expected = read_golden_rows(directory, scorer.spec)
    found = scorer.score_matrix(matrix)
    worst = int(np.argmax(np.abs(found - expected)))
    if not np.allclose(found, expected, rtol=0, atol=GOLDEN_TOLERANCE):
        raise VerificationFailed(
            f"golden row {worst} of {directory} scores {found[worst]:.6g} instead of {expected[worst]:.6g}: "
            f"this is another model, or its library ({scorer.spec.training.get('versions', {})}) reads it differently here"
        )
