import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.targets import open_target


def test_a_target_is_opened_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    assert isinstance(open_target("local"), LocalTarget)
    assert not (tmp_path / "home").exists()


def test_another_name_is_refused():
    with pytest.raises(InvalidInput, match="target = 'here': use local"):
        open_target("here")


def test_a_pod_has_no_local_target_unless_it_has_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    with pytest.raises(NotAvailable, match="MODELYARD_HOME"):
        open_target("local")
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    assert isinstance(open_target("local"), LocalTarget)
