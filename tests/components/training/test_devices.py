import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training import boosted_trees, tabular_network
from modelyard.components.training.devices import cuda_devices


def test_a_machine_without_a_driver_has_no_cuda_device(monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    cuda_devices.cache_clear()
    assert cuda_devices() == 0
    cuda_devices.cache_clear()


def test_xgboost_built_without_cuda_is_refused_on_cuda(monkeypatch):
    monkeypatch.setattr("xgboost.build_info", lambda: {"USE_CUDA": False})
    monkeypatch.setattr(boosted_trees, "cuda_devices", lambda: 1)
    with pytest.raises(NotAvailable, match="built without CUDA"):
        boosted_trees.choose_device("cuda")
    assert boosted_trees.choose_device("auto") == "cpu"


def test_a_machine_without_a_gpu_is_refused_on_cuda(monkeypatch):
    monkeypatch.setattr("xgboost.build_info", lambda: {"USE_CUDA": True})
    monkeypatch.setattr(boosted_trees, "cuda_devices", lambda: 0)
    with pytest.raises(NotAvailable, match="no GPU"):
        boosted_trees.choose_device("cuda")
    assert boosted_trees.choose_device("auto") == "cpu"


def test_auto_takes_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr("xgboost.build_info", lambda: {"USE_CUDA": True})
    monkeypatch.setattr(boosted_trees, "cuda_devices", lambda: 1)
    assert boosted_trees.choose_device("auto") == boosted_trees.choose_device("cuda") == "cuda"
    assert boosted_trees.choose_device("cpu") == "cpu"


def test_another_device_is_refused():
    with pytest.raises(InvalidInput, match="auto, cpu or cuda"):
        boosted_trees.choose_device("cuda:1")


@pytest.mark.torch
def test_torch_without_a_gpu_is_refused_on_cuda():
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NotAvailable, match="cuda"):
        tabular_network.choose_device("cuda")
    assert tabular_network.choose_device("auto") == "cpu"
