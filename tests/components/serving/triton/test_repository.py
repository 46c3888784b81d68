import builtins
import errno
import importlib.metadata
import importlib.util
import json
import shutil

import numpy as np
import polars as pl
import pytest
from google.protobuf import text_format

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.artifacts.model import read_spec, write_spec
from modelyard.components.artifacts.scoring import load_scorer
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.serving.triton import repository
from modelyard.components.serving.triton.repository import write_repository
from tests.components.serving.triton.models import COUNTRIES, network, trees


def _configurations():
    """Triton's own messages of a configuration. Alone: the package's other messages have the names of KServe's."""
    files = importlib.metadata.files("tritonclient") or []
    (path,) = [file.locate() for file in files if file.match("grpc/model_config_pb2.py")]
    specification = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


CONFIGURATIONS = _configurations()


@pytest.fixture(scope="module")
def trees_model(tmp_path_factory):
    return trees(tmp_path_factory.mktemp("trees") / "model")


@pytest.fixture(scope="module")
def network_model(tmp_path_factory):
    pytest.importorskip("onnx", reason="the torch extra is not installed")
    return network(tmp_path_factory.mktemp("network") / "model")


def _config(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), CONFIGURATIONS.ModelConfig())


def _files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_trees_are_configured_for_fil_and_copied_as_they_were_signed(trees_model, tmp_path):
    folder = write_repository(trees_model, tmp_path / "repository", model_name="fraud")
    assert folder == tmp_path / "repository" / "fraud"
    assert _files(folder) == ["1/xgboost.ubj", "config.pbtxt", "features.json"]
    assert (folder / "1/xgboost.ubj").read_bytes() == (trees_model / "model.ubj").read_bytes()
    config = _config(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("fraud", "fil", 50_000)
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [
        ("input__0", CONFIGURATIONS.DataType.TYPE_FP32, [3])
    ]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.output] == [
        ("output__0", CONFIGURATIONS.DataType.TYPE_FP32, [1])
    ]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    parameters.pop("modelyard")
    assert parameters == {
        "model_type": "xgboost_ubj",
        "is_classifier": "true",
        "predict_proba": "true",
        "threshold": "0.137",
    }


def test_a_network_is_configured_for_onnx_runtime_at_full_precision(network_model, tmp_path):
    folder = write_repository(network_model, tmp_path, model_name="fraud")
    assert (folder / "1/model.onnx").read_bytes() == (network_model / "model.onnx").read_bytes()
    config = _config(folder)
    assert config.backend == "onnxruntime"
    assert (config.input[0].name, list(config.input[0].dims)) == ("features", [3])
    # The network's score of a row has no dimension of its own.
    assert (config.output[0].name, list(config.output[0].dims)) == ("score", [1])
    assert config.output[0].HasField("reshape")
    assert not config.output[0].reshape.shape
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_what_a_client_must_know_is_in_a_file_and_in_the_configuration(trees_model, tmp_path):
    folder = write_repository(trees_model, tmp_path, model_name="fraud")
    written = json.loads((folder / "features.json").read_text())
    assert written == {
        "digest": model_digest(trees_model),
        "label": "fraud",
        "threshold": 0.137,
        "features": [
            {"name": "amount", "categories": None},
            {"name": "country", "categories": list(COUNTRIES)},
            {"name": "night", "categories": None},
        ],
    }
    assert json.loads(_config(folder).parameters["modelyard"].string_value) == written


def test_rows_that_a_client_encodes_by_the_mapping_score_as_by_the_predictor(trees_model, tmp_path):
    import treelite

    folder = write_repository(trees_model, tmp_path, model_name="fraud")
    features = json.loads((folder / "features.json").read_text())["features"]
    rows = [
        {"amount": amount, "country": country, "night": night}
        for amount in (3.0, 80.0, None)
        for country in (*COUNTRIES, "never seen", None)
        for night in (0.2, None)
    ]

    def code(feature, value):
        if feature["categories"] is None:
            return np.nan if value is None else value
        return feature["categories"].index(value) if value in feature["categories"] else np.nan

    encoded = np.array([[code(feature, row[feature["name"]]) for feature in features] for row in rows], np.float32)
    model = treelite.frontend.load_xgboost_model(folder / "1/xgboost.ubj", format_choice="ubjson")
    scores = treelite.gtil.predict(model, encoded).reshape(-1)
    by_country = dict(zip((row["country"] for row in rows if row["amount"] == 3.0), scores))
    assert len(set(by_country.values())) > 2
    np.testing.assert_allclose(scores, load_scorer(trees_model).score(pl.DataFrame(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_cat_to_onehot": 64},
        {"booster": "dart", "rate_drop": 0.5, "one_drop": 1},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"base_score": 0.1, "grow_policy": "lossguide", "max_depth": 0, "max_leaves": 40},
        {"monotone_constraints": "(1,0,0)", "scale_pos_weight": 5.0},
    ],
    ids=["one-hot", "dart", "forest", "leaf by leaf", "constrained"],
)
def test_every_kind_of_trees_that_training_makes_is_taken(tmp_path, parameters):
    model = trees(tmp_path / "model", **parameters)
    assert (write_repository(model, tmp_path / "repository", model_name="fraud") / "config.pbtxt").is_file()


@pytest.mark.parametrize("kind", ["trees_model", "network_model"])
def test_another_score_of_a_golden_row_is_refused_and_nothing_is_written(kind, request, tmp_path):
    model = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    golden = json.loads((model / "golden_rows.json").read_text())
    golden["scores"][3] += 0.01
    (model / "golden_rows.json").write_text(json.dumps(golden))
    with pytest.raises(VerificationFailed, match=r"golden row 3 of .* backend runs"):
        write_repository(model, tmp_path / "repository", model_name="fraud")
    assert _files(tmp_path / "repository") == []


def test_a_model_that_the_backend_reads_otherwise_than_xgboost_is_refused(trees_model, tmp_path, monkeypatch):
    import treelite

    read = treelite.frontend.load_xgboost_model
    other = trees(tmp_path / "other", seed=5)
    monkeypatch.setattr(treelite.frontend, "load_xgboost_model", lambda file, **more: read(other / "model.ubj", **more))
    with pytest.raises(VerificationFailed, match="Triton's fil backend"):
        write_repository(trees_model, tmp_path / "repository", model_name="fraud")


def test_without_the_library_that_tells_nothing_is_written(trees_model, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_treelite(name, *rest, **more):
        if name.split(".")[0] == "treelite":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_treelite)
    with pytest.raises(NotAvailable, match="treelite is not installed"):
        write_repository(trees_model, tmp_path / "repository", model_name="fraud")
    assert _files(tmp_path / "repository") == []


def test_a_booster_that_is_no_forest_is_refused(tmp_path):
    import xgboost

    model = trees(tmp_path / "model")
    xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(np.ones((5, 3)), np.ones(5)), 1).save_model(model / "model.ubj")
    with pytest.raises(
        InvalidInput, match="FIL backend reads models, does not know this kind; serve this model by the predictor"
    ):
        write_repository(model, tmp_path / "repository", model_name="fraud")


def test_a_forest_of_several_classes_is_refused(tmp_path):
    import xgboost

    model = trees(tmp_path / "model")
    rows = xgboost.DMatrix(np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 3)
    xgboost.train({"objective": "multi:softprob", "num_class": 3}, rows, 1).save_model(model / "model.ubj")
    with pytest.raises(InvalidInput, match="48 scores for 16 rows"):
        write_repository(model, tmp_path / "repository", model_name="fraud")


def test_a_forest_of_other_features_is_refused(tmp_path):
    import xgboost

    model = trees(tmp_path / "model")
    xgboost.train({}, xgboost.DMatrix(np.ones((5, 2)), np.ones(5)), 1).save_model(model / "model.ubj")
    with pytest.raises(InvalidInput, match="2 features': 3 are specified"):
        write_repository(model, tmp_path / "repository", model_name="fraud")


@pytest.mark.parametrize("model_file", ["model.ubj", "model.onnx"])
def test_a_damaged_model_is_refused(model_file, request, tmp_path):
    fixture = {"model.ubj": "trees_model", "model.onnx": "network_model"}[model_file]
    model = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "model")
    with (model / model_file).open("r+b") as file:
        file.truncate(200)
    with pytest.raises(InvalidInput, match=r"cannot read it|does not know this kind"):
        write_repository(model, tmp_path / "repository", model_name="fraud")
    assert _files(tmp_path / "repository") == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 16), "None"),
        (lambda graph: setattr(graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 16), "None"),
    ],
    ids=["input", "output"],
)
def test_a_network_for_a_fixed_number_of_rows_is_refused(network_model, tmp_path, change, found):
    import onnx

    model = shutil.copytree(network_model, tmp_path / "model")
    loaded = onnx.load(model / "model.onnx")
    change(loaded.graph)
    onnx.save(loaded, model / "model.onnx")
    with pytest.raises(InvalidInput, match=f"model tensors = .*{found}.*any number of rows"):
        write_repository(model, tmp_path / "repository", model_name="fraud")


def test_a_network_that_calls_its_tensors_otherwise_is_refused(network_model, tmp_path):
    import onnx

    model = shutil.copytree(network_model, tmp_path / "model")
    loaded = onnx.load(model / "model.onnx")
    loaded.graph.input[0].name = "x"
    for node in loaded.graph.node:
        node.input[:] = ["x" if name == "features" else name for name in node.input]
    onnx.save(loaded, model / "model.onnx")
    with pytest.raises(InvalidInput, match=r"model tensors = \{'x'"):
        write_repository(model, tmp_path / "repository", model_name="fraud")


def test_another_format_is_refused(tmp_path):
    model = trees(tmp_path / "model")
    spec = read_spec(model)
    write_spec(model, type(spec)(spec.features, spec.label, "model.pkl", spec.threshold))
    with pytest.raises(InvalidInput, match=r"model\.pkl.*only \.onnx, \.ubj"):
        write_repository(model, tmp_path / "repository", model_name="fraud")


@pytest.mark.parametrize("name", ["", "../fraud", "a/b", 'a"b'])
def test_a_name_that_leaves_the_folder_or_the_quotes_is_refused(trees_model, tmp_path, name):
    with pytest.raises(InvalidInput, match="model_name"):
        write_repository(trees_model, tmp_path / "repository", model_name=name)


def test_writing_again_replaces_the_model_and_leaves_others_alone(trees_model, tmp_path):
    write_repository(trees_model, tmp_path, model_name="fraud")
    write_repository(trees_model, tmp_path, model_name="credit")
    other = trees(tmp_path / "elsewhere", seed=3)
    folder = write_repository(other, tmp_path, model_name="fraud")
    assert (folder / "1/xgboost.ubj").read_bytes() == (other / "model.ubj").read_bytes()
    assert (tmp_path / "credit/1/xgboost.ubj").read_bytes() == (trees_model / "model.ubj").read_bytes()


@pytest.mark.parametrize("left", ["1", "config.pbtxt", "features.json"])
def test_what_was_half_removed_when_a_writer_was_killed_is_replaced(trees_model, tmp_path, left):
    folder = write_repository(trees_model, tmp_path, model_name="fraud")
    for path in folder.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert _files(write_repository(trees_model, tmp_path, model_name="fraud")) == [
        "1/xgboost.ubj",
        "config.pbtxt",
        "features.json",
    ]


def test_what_a_killed_writer_left_is_no_model_of_the_server(trees_model, tmp_path):
    (tmp_path / ".partial-fraud-0123456789abcdef" / "1").mkdir(parents=True)
    write_repository(trees_model, tmp_path, model_name="fraud")
    assert [path.name for path in tmp_path.iterdir()] == ["fraud"]


def test_what_is_no_model_of_triton_is_not_replaced(trees_model, tmp_path):
    (tmp_path / "fraud").mkdir()
    (tmp_path / "fraud" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="give a folder of its own"):
        write_repository(trees_model, tmp_path, model_name="fraud")
    assert _files(tmp_path) == ["fraud/notes.txt"]


def test_a_full_disk_leaves_nothing(trees_model, tmp_path, monkeypatch):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repository.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_repository(trees_model, tmp_path / "repository", model_name="fraud")
    assert list((tmp_path / "repository").iterdir()) == []
