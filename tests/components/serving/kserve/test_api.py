import pytest

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.kserve.api import CONFIG_MAP, INFERENCE_SERVICE, FieldsTaken, Stale, open_cluster
from modelyard.components.serving.kserve.placement import Placement
from modelyard.components.serving.kserve.predictors import inference_service
from modelyard.components.serving.kserve.target import open_kserve_target
from tests.support.fake_cluster import schemas

pytestmark = pytest.mark.server


@pytest.fixture
def served(serve):
    return serve("standard")


def _config_map(**data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes", "namespace": "models"}, "data": data}


def _service(uri="s3://b/1"):
    model = {"modelFormat": {"name": "modelyard"}, "runtime": "modelyard-predictor", "storageUri": uri}
    return inference_service("fraud", "models", "standard", "fraud", {"name": "v1", "model": model})


def _asked(served, method):
    return [status for asked, _, status in served.cluster.requests if asked == method]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(served, status):
    served.cluster.fail(status, times=2, method="GET")
    assert served.api().get(CONFIG_MAP, "notes") is None
    assert _asked(served, "GET") == [status, status, 404]


def test_a_server_that_says_when_to_come_again_is_not_asked_before(served):
    served.cluster.fail(429, method="GET", retry_after=30)
    with pytest.raises(NotAvailable, match="GET configmaps notes"):
        served.api(patience=5).get(CONFIG_MAP, "notes")
    assert _asked(served, "GET") == [429]


def test_a_connection_that_is_cut_is_opened_again_whether_the_work_was_done_or_not(served):
    api = served.api()
    served.cluster.drop(times=2, method="GET")
    assert api.get(CONFIG_MAP, "notes") is None
    served.cluster.drop(method="PATCH", after_work=True)
    assert api.apply(INFERENCE_SERVICE, _service())["metadata"]["name"] == "fraud"
    served.cluster.drop(method="POST", after_work=True)
    with pytest.raises(Stale):
        api.create(CONFIG_MAP, _config_map())


def test_a_server_that_is_gone_is_given_up_in_time(served):
    served.cluster.drop(times=1000)
    with pytest.raises(NotAvailable, match="the cluster's API does not do it"):
        served.api(patience=0.5).get(CONFIG_MAP, "notes")


def test_what_was_changed_since_it_was_read_is_not_written_over(served):
    api = served.api()
    read = api.create(CONFIG_MAP, _config_map(a="1"))
    api.replace(CONFIG_MAP, {**read, "data": {"a": "2"}})
    with pytest.raises(Stale):
        api.replace(CONFIG_MAP, {**read, "data": {"a": "3"}})
    with pytest.raises(Stale):
        api.delete(CONFIG_MAP, read)
    served.cluster.delete("configmaps", "notes")
    with pytest.raises(Stale, match="gone"):
        api.replace(CONFIG_MAP, read)


def test_fields_that_somebody_else_has_set_are_named_with_who_did(served):
    api = served.api()
    api.apply(INFERENCE_SERVICE, _service())

    def change(found):
        found["spec"]["predictor"]["model"]["storageUri"] = "s3://theirs/1"

    served.cluster.edit("inferenceservices", "fraud", change, manager="kubectl-edit")
    with pytest.raises(FieldsTaken) as taken:
        api.apply(INFERENCE_SERVICE, _service("s3://b/2"))
    assert taken.value.fields == {"spec.predictor.model.storageUri": "kubectl-edit"}
    forced = api.apply(INFERENCE_SERVICE, _service("s3://b/2"), force=True)
    assert forced["spec"]["predictor"]["model"]["storageUri"] == "s3://b/2"


def test_a_field_that_kserve_does_not_know_is_refused_in_its_words(served):
    schemas.require_definitions()
    service = _service()
    service["spec"]["predictor"]["replica"] = 1
    with pytest.raises(NotAvailable, match="replica"):
        served.api().apply(INFERENCE_SERVICE, service)


def test_what_is_not_allowed_says_what_to_bind(served):
    served.cluster.fail(403, method="GET", message='configmaps "notes" is forbidden: User "runner" cannot get it')
    with pytest.raises(NotAvailable, match=r'User "runner" cannot get it.*Bind the Role'):
        served.api().get(CONFIG_MAP, "notes")
    served.cluster.fail(401, method="GET")
    with pytest.raises(NotAvailable, match="renew the credentials"):
        served.api().get(CONFIG_MAP, "notes")


def test_a_kind_that_was_just_installed_is_asked_for_again(served):
    served.cluster.fail(404, method="PATCH")
    assert served.api().apply(INFERENCE_SERVICE, _service())["metadata"]["name"] == "fraud"
    served.cluster.fail(404, method="PATCH", times=100)
    with pytest.raises(NotAvailable, match="install KServe"):
        served.api(patience=0.2).apply(INFERENCE_SERVICE, _service())


def test_a_kubeconfig_names_the_cluster_and_the_namespace_unless_one_is_given(served, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(served.cluster.kubeconfig))
    assert open_cluster().namespace == "models"
    assert open_cluster("other").namespace == "other"
    assert open_kserve_target(Placement()).state("fraud").stable is None
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(NotAvailable, match="no cluster is configured"):
        open_cluster()
