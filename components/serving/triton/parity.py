"""Whether Triton will give a model's golden rows the scores they must get, by the libraries that its backends run.

Triton's ONNX backend is ONNX Runtime. On a CPU its FIL backend is Treelite's own interpreter (GTIL), which reads XGBoost's file
anew and so may read it differently from XGBoost; on a GPU it is another one that reads it through Treelite as well.
"""

from pathlib import Path

import numpy as np

from modelyard.components.artifacts.model import ModelSpec
from modelyard.components.artifacts.scoring import GOLDEN_TOLERANCE, open_onnx_session, read_golden_rows
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.serving.triton.backends import ONNX, Backend

_REMEDY = "serve this model by the predictor, which has no such limit"


def check_parity(file: Path, backend: Backend, model_directory: Path, spec: ModelSpec) -> None:
    """Scores the golden rows from the file that Triton will read, under the names that it is configured with.

    Args:
        file: the model's file in the repository.
        backend: what will serve it.
        model_directory: the model's directory, for its golden rows.
        spec: what the model needs.

    Raises:
        VerificationFailed: a golden row gets another score than it must.
        InvalidInput: the backend cannot serve such a model.
        NotAvailable: the library that tells is not installed.
    """
    matrix, expected = read_golden_rows(model_directory, spec)
    found = _by_onnxruntime(file, matrix) if backend is ONNX else _by_treelite(file, matrix, spec)
    if found.size != len(expected):
        raise InvalidInput(
            "model", str(model_directory), f"Triton gets {found.size} scores for {len(expected)} rows; {_REMEDY}"
        )
    found = found.reshape(-1).astype(np.float64)
    if not np.allclose(found, expected, rtol=0, atol=GOLDEN_TOLERANCE):
        worst = int(np.argmax(np.abs(found - expected)))
        raise VerificationFailed(
            f"golden row {worst} of {model_directory} scores {found[worst]:.6g} instead of {expected[worst]:.6g} by what "
            f"Triton's {backend.name} backend runs: it must not serve this model"
        )


def _by_onnxruntime(file: Path, matrix: np.ndarray) -> np.ndarray:
    session = open_onnx_session(file)
    given = {tensor.name: (tensor.type, _row_shape(tensor.shape)) for tensor in session.get_inputs()}
    got = {tensor.name: (tensor.type, _row_shape(tensor.shape)) for tensor in session.get_outputs()}
    for found, must in (
        (given, {ONNX.input: ("tensor(float)", (matrix.shape[1],))}),
        (got, {ONNX.output: ("tensor(float)", ())}),
    ):
        if found != must:
            raise InvalidInput(
                "model tensors", found, f"the repository is written for {must} and any number of rows; {_REMEDY}"
            )
    return np.asarray(session.run([ONNX.output], {ONNX.input: matrix})[0])


def _row_shape(shape: list[int | str | None]) -> tuple[int | str | None, ...] | None:
    """The shape of one row; None where the number of rows is fixed."""
    return tuple(shape[1:]) if shape and not isinstance(shape[0], int) else None


def _by_treelite(file: Path, matrix: np.ndarray, spec: ModelSpec) -> np.ndarray:
    try:
        import treelite
        from treelite import gtil
    except ImportError as error:
        raise NotAvailable(
            "treelite is not installed: without it nobody knows how Triton reads an XGBoost model; install modelyard[serve]"
        ) from error
    try:
        model = treelite.frontend.load_xgboost_model(file, format_choice="ubjson")
    except treelite.TreeliteError as error:
        remedy = (
            f"Treelite {treelite.__version__}, by which Triton's FIL backend reads models, does not know this kind; {_REMEDY}"
        )
        raise InvalidInput("model file", spec.model_file, remedy) from error
    if model.num_feature != matrix.shape[1]:
        raise InvalidInput(
            "model", f"{model.num_feature} features", f"{matrix.shape[1]} are specified beside it; train it again"
        )
    return np.asarray(gtil.predict(model, matrix, nthread=1))
