import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.local.target import LocalTarget
from modelyard.components.serving.targets import command_options, open_target


def test_a_target_is_opened_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    assert isinstance(open_target("local"), LocalTarget)
    assert not (tmp_path / "home").exists()


def test_a_cluster_is_told_how_to_serve_before_anything_is_opened():
    with pytest.raises(InvalidInput, match=r"serving\.replicas"):
        open_target("kserve", {"replicas": 3})


def test_how_a_cluster_serves_says_nothing_to_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    assert isinstance(open_target("local", {"gpus": 1}), LocalTarget)


def test_a_command_reaches_the_target_again_by_its_options():
    assert command_options("local", {"namespace": "models"}) == ""
    assert command_options("kserve", {"namespace": "models", "gpus": 1}) == " --target kserve --namespace models"
    assert command_options("kserve", {"namespace": ""}) == command_options("kserve") == " --target kserve"


def test_the_commands_to_run_elsewhere_name_the_namespace_of_the_pod_that_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr("modelyard.components.serving.kserve.api._ACCOUNT", tmp_path)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    for name, content in (("token", "secret"), ("namespace", "models\n")):
        (tmp_path / name).write_text(content)
    assert command_options("kserve") == " --target kserve --namespace models"
    assert command_options("kserve", {"namespace": "shop"}) == " --target kserve --namespace shop"
    monkeypatch.setenv("KUBECONFIG", "elsewhere")
    assert command_options("kserve") == " --target kserve"


def test_another_name_is_refused():
    with pytest.raises(InvalidInput, match="target = 'here': use local or kserve"):
        open_target("here")


def test_a_pod_has_no_local_target_unless_it_has_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    with pytest.raises(NotAvailable, match="MODELYARD_HOME"):
        open_target("local")
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    assert isinstance(open_target("local"), LocalTarget)


def test_a_cluster_that_is_to_be_watched_needs_a_prometheus_before_anything_is_started(monkeypatch):
    monkeypatch.delenv("MODELYARD_PROMETHEUS_URL", raising=False)
    with pytest.raises(InvalidInput, match="MODELYARD_PROMETHEUS_URL"):
        open_target("kserve", {"namespace": "models"}, watched=True)
