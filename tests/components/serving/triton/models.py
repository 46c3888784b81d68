"""Small models of both formats whose features are of every kind: two numbers that may be missing, and a category."""

from pathlib import Path

import numpy as np

from modelyard.components.artifacts.model import Feature, ModelSpec, write_spec
from modelyard.components.artifacts.scoring import open_scorer, write_golden_rows

# What text formats escape, and what is not ASCII.
COUNTRIES = ('F"R', "Österreich", "I\\T", "DE\n")
FEATURES = (Feature("amount"), Feature("country", COUNTRIES), Feature("night"))


def encoded_rows(count: int, seed: int) -> np.ndarray:
    """Rows as a model takes them, a tenth of each column missing; the last row has nothing but missing values."""
    random = np.random.default_rng(seed)
    matrix = np.column_stack([random.lognormal(3, 1, count), random.integers(0, len(COUNTRIES), count), random.random(count)])
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    matrix[-1] = np.nan
    return matrix.astype(np.float32)


def trees(folder: Path, seed: int = 0, **parameters) -> Path:
    """A directory of an XGBoost model, with categories as codes, as training writes it."""
    import xgboost

    matrix = encoded_rows(400, seed)
    label = (np.nan_to_num(matrix[:, 0]) + 30 * (matrix[:, 1] == 2) + 15 * (matrix[:, 1] == 0) > 30).astype(np.float32)
    kinds = ["q" if feature.categories is None else "c" for feature in FEATURES]
    rows = xgboost.DMatrix(matrix, label, feature_types=kinds, feature_names=[feature.name for feature in FEATURES])
    given = {"objective": "binary:logistic", "base_score": 0.5, "max_depth": 4, "nthread": 1, "max_cat_to_onehot": 1}
    folder.mkdir(parents=True)
    xgboost.train({**given, **parameters}, rows, 8).save_model(folder / "model.ubj")
    return _complete(folder, "model.ubj")


def network(folder: Path, seed: int = 0) -> Path:
    """A directory of a network as training writes it, with weights that nobody trained."""
    from modelyard.components.training.onnx_graph import write_network
    from modelyard.components.training.tabular_network import Preparation

    preparation = Preparation(
        (0, 2), np.array([30, 0.5], np.float32), np.array([20, 0.3], np.float32), (0,), ((1, len(COUNTRIES)),)
    )
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    folder.mkdir(parents=True)
    state = {
        "tables.0.weight": weights(len(COUNTRIES) + 1, *preparation.widths),
        "layers.0.weight": weights(8, preparation.width),
        "layers.0.bias": weights(8),
        "out.weight": weights(1, 8),
        "out.bias": weights(1),
    }
    write_network(folder / "model.onnx", preparation, state, hidden_layers=1, clip=8.0)
    return _complete(folder, "model.onnx")


def _complete(folder: Path, model_file: str) -> Path:
    spec = ModelSpec(FEATURES, label="fraud", model_file=model_file, threshold=0.137)
    write_spec(folder, spec)
    golden = encoded_rows(16, seed=99)
    write_golden_rows(folder, spec, golden, open_scorer(folder, spec).score_matrix(golden))
    return folder
