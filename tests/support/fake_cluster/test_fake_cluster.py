"""The fake cluster shows what a real one would: the traps that a target must avoid are there to be fallen into."""

import json
from typing import Any

import pytest
import urllib3

from tests.support.fake_cluster import FakeCluster
from tests.support.fake_cluster.schemas import require_definitions

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices"


class Client:
    """Asks as a client does; answers are status and content."""

    def __init__(self, cluster: FakeCluster) -> None:
        config = json.loads(cluster.kubeconfig.read_text())
        self._url = config["clusters"][0]["cluster"]["server"]
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._pool = urllib3.PoolManager(retries=False)

    def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
        headers = {**self._headers, "Content-Type": content_type}
        answer = self._pool.request(method, self._url + path, headers=headers, body=json.dumps(body) if body else None)
        return answer.status, answer.json()

    def apply(self, service: dict[str, Any], manager: str = "modelyard", *, force: bool = False) -> tuple[int, Any]:
        path = f"{SERVICES}/{service['metadata']['name']}?fieldManager={manager}&force={str(force).lower()}"
        return self.ask("PATCH", path, service, "application/apply-patch+yaml")


@pytest.fixture
def cluster(tmp_path):
    with FakeCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    return Client(cluster)


def predictor(version: str, **more: Any) -> dict[str, Any]:
    return {
        "name": f"v{version}",
        "minReplicas": 1,
        "annotations": {"modelyard.dev/model-version": version},
        # Required by the definition of a canary's model, and refused by the webhook unless it is empty.
        "model": {
            "name": "",
            "modelFormat": {"name": "modelyard"},
            "runtime": "modelyard-predictor",
            "storageUri": f"s3://models/{version}",
        },
        **more,
    }


def standard(stable: str, *canaries: tuple[str, int]) -> dict[str, Any]:
    spec: dict[str, Any] = {"predictor": predictor(stable)}
    spec["canary"] = [{"trafficPercent": percent, "predictor": predictor(version)} for version, percent in canaries]
    return _service("Standard", spec)


def knative(version: str, percent: int | None = None) -> dict[str, Any]:
    served = predictor(version)
    del served["name"]
    if percent is not None:
        served["canaryTrafficPercent"] = percent
    return _service("Knative", {"predictor": served})


def _service(mode: str, spec: dict[str, Any]) -> dict[str, Any]:
    annotations = {"serving.kserve.io/deploymentMode": mode, "serving.kserve.io/autoscalerClass": "none"}
    metadata = {"name": "fraud", "annotations": annotations}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def routed(cluster: FakeCluster) -> list[dict[str, float]]:
    return [each.shares for each in cluster.history]


def bring(cluster: FakeCluster, client: Client, *services: dict[str, Any]) -> None:
    for service in services:
        status, content = client.apply(service)
        assert status in (200, 201), content
        cluster.settle()


# The API server


def test_what_somebody_else_set_stays_and_a_field_of_theirs_is_a_conflict_that_names_both(cluster, client):
    bring(cluster, client, standard("1"))
    cluster.edit("inferenceservices", "fraud", lambda found: found["spec"]["predictor"].update(minReplicas=3, timeout=30))
    status, content = client.apply(standard("1"))
    assert status == 409
    assert [(cause["field"], "kubectl-edit" in cause["message"]) for cause in content["details"]["causes"]] == [
        (".spec.predictor.minReplicas", True)
    ]
    assert client.apply(standard("1"), force=True)[0] == 200
    kept = cluster.get("inferenceservices", "fraud")["spec"]["predictor"]
    assert (kept["minReplicas"], kept["timeout"]) == (1, 30)


def test_a_field_that_is_applied_no_more_goes_and_the_same_again_changes_nothing(cluster, client):
    bring(cluster, client, knative("1", 10), knative("1"))
    found = cluster.get("inferenceservices", "fraud")
    assert "canaryTrafficPercent" not in found["spec"]["predictor"]
    assert client.apply(knative("1"))[1]["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]


def test_a_version_that_is_read_no_more_is_a_conflict(cluster, client):
    notes = {"metadata": {"name": "notes", "namespace": "models"}, "data": {"a": "1"}}
    path = "/api/v1/namespaces/models/configmaps"
    _, first = client.ask("POST", path, notes)
    assert client.ask("POST", path, notes)[1]["reason"] == "AlreadyExists"
    assert client.ask("PUT", f"{path}/notes", {**first, "data": {"a": "2"}})[0] == 200
    status, content = client.ask("PUT", f"{path}/notes", {**first, "data": {"a": "3"}})
    assert (status, content["reason"]) == (409, "Conflict")
    assert cluster.get("configmaps", "notes")["data"] == {"a": "2"}


def test_an_unknown_field_is_refused(client):
    require_definitions()
    service = standard("1")
    service["spec"]["predictor"]["model"]["storageUrl"] = "s3://models/1"
    status, content = client.apply(service)
    assert (status, content["reason"]) == (400, "BadRequest")
    assert 'unknown field "spec.predictor.model.storageUrl"' in content["message"]


def test_a_canary_that_kserve_refuses_is_refused(cluster, client):
    bring(cluster, client, standard("1"))
    for change, told in (
        ({"name": "v1"}, "conflicts with stable predictor name"),
        ({"minReplicas": 2}, "must not exceed stable predictor minReplicas"),
        ({"maxReplicas": 4}, "must not set maxReplicas"),
    ):
        service = standard("1", ("2", 10))
        service["spec"]["canary"][0]["predictor"].update(change)
        assert told in client.apply(service)[1]["message"]
    assert "deploymentMode cannot be changed" in client.apply(knative("2"))[1]["message"]
    renamed = standard("1")
    renamed["spec"]["predictor"]["name"] = "other"
    assert "requires a model change" in client.apply(renamed)[1]["message"]


def test_what_goes_wrong_with_a_request_goes_wrong_as_planned(cluster, client):
    cluster.fail(429, retry_after=3, method="GET", path="inferenceservices")
    assert client.ask("GET", SERVICES)[0] == 429
    assert client.ask("GET", SERVICES)[0] == 200
    cluster.drop(method="PATCH", after_work=True)
    with pytest.raises(urllib3.exceptions.HTTPError):
        client.apply(standard("1"))
    assert cluster.get("inferenceservices", "fraud")
    assert [status for _, _, status in cluster.requests] == [429, 200, 0]


def test_a_container_has_its_environment_in_the_order_that_was_applied(client):
    env = [{"name": name, "value": "1"} for name in ("HOST", "URL", "A")]
    applied = knative("1")
    applied["spec"]["predictor"]["model"]["env"] = env
    _, found = client.apply(applied)
    assert found["spec"]["predictor"]["model"]["env"] == env


def test_a_list_that_is_not_applied_any_more_goes(client):
    applied = knative("1")
    applied["spec"]["predictor"]["model"]["env"] = [{"name": name, "value": "1"} for name in ("A", "B", "C")]
    client.apply(applied)
    _, found = client.apply(knative("1"))
    assert "env" not in found["spec"]["predictor"]["model"]


def test_who_has_no_token_is_not_let_in(cluster):
    stranger = Client(cluster)
    stranger._headers = {}
    assert stranger.ask("GET", SERVICES)[0] == 401


# Standard mode


def test_weight_before_names_loses_nothing_and_the_pods_of_the_canary_go_on(cluster, client):
    bring(cluster, client, standard("1"), standard("1", ("2", 10)))
    pods = {pod["metadata"]["uid"] for pod in cluster.all("pods", {"app": "isvc.fraud-v2-predictor"})}
    bring(cluster, client, standard("1", ("2", 100)), standard("2"))
    assert routed(cluster) == [{"1": 100}, {"1": 90, "2": 10}, {"2": 100}]
    assert {pod["metadata"]["uid"] for pod in cluster.all("pods")} == pods


def test_names_before_weight_lose_traffic_for_a_moment(cluster, client):
    bring(cluster, client, standard("1"), standard("1", ("2", 10)), standard("2"))
    assert {"": 90, "2": 10} in routed(cluster)
    assert routed(cluster)[-1] == {"2": 100}


def test_a_canary_that_is_not_ready_gets_no_traffic_and_its_pods_say_why(cluster, client):
    cluster.trouble("2", "load", "the model is not signed")
    bring(cluster, client, standard("1"), standard("1", ("2", 50)))
    assert routed(cluster) == [{"1": 100}]
    status = cluster.get("inferenceservices", "fraud")["status"]
    assert [(each["name"], each["ready"]) for each in status["canaryStatuses"]] == [("v2", False)]
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    (pod,) = cluster.all("pods", {"app": "isvc.fraud-v2-predictor"})
    (init,) = pod["status"]["initContainerStatuses"]
    assert init["lastState"]["terminated"]["message"] == "the model is not signed"
    assert init["state"]["waiting"]["reason"] == "CrashLoopBackOff"


def test_a_canary_whose_host_has_too_long_a_part_stops_all_that_the_service_needs(cluster, client):
    # fraud-vN-predictor-models has 63 characters with a version of 39, and one more with one of 40.
    fits, refused = "9" * 39, "9" * 40
    bring(cluster, client, standard("1"), standard("1", (fits, 0)))
    assert [each["name"] for each in cluster.get("inferenceservices", "fraud")["status"]["canaryStatuses"]] == [f"v{fits}"]
    before = [deployment["metadata"]["name"] for deployment in cluster.all("deployments")]
    service = standard("1", (refused, 0))
    service["spec"]["predictor"]["minReplicas"] = 2
    bring(cluster, client, service)
    # Neither is it made, nor what it replaces taken away, nor is the one in charge scaled.
    assert [deployment["metadata"]["name"] for deployment in cluster.all("deployments")] == before
    assert cluster.get("deployments", "fraud-v1-predictor")["spec"]["replicas"] == 1


def test_a_service_whose_host_has_too_long_a_part_is_not_made(cluster, client):
    bring(cluster, client, standard("9" * 40))
    assert cluster.all("deployments") == cluster.all("httproutes") == []
    conditions = cluster.get("inferenceservices", "fraud")["status"]["conditions"]
    reasons = {condition["type"]: condition.get("reason") for condition in conditions}
    assert reasons["PredictorReady"] == "ReconcileFailed"


def test_a_pod_that_asks_for_a_gpu_waits_where_there_is_none(tmp_path):
    with FakeCluster(tmp_path, gpus=1) as cluster:
        client = Client(cluster)
        service = standard("1")
        service["spec"]["predictor"]["model"]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        bring(cluster, client, service)
        assert cluster.traffic("fraud") == {"1": 100}
        service["spec"]["predictor"]["minReplicas"] = 2
        bring(cluster, client, service)
        waits = [pod["status"]["conditions"][0] for pod in cluster.all("pods") if pod["status"]["phase"] == "Pending"]
        assert [each["reason"] for each in waits] == ["Unschedulable"]


# Knative mode


def test_a_share_is_that_of_the_latest_ready_revision(cluster, client):
    bring(cluster, client, knative("1"), knative("2", 10), knative("2", 60), knative("2"))
    assert routed(cluster) == [{"1": 100}, {"2": 10, "1": 90}, {"2": 60, "1": 40}, {"2": 100}]


def test_the_good_model_with_no_percent_puts_the_bad_one_in_charge_until_it_is_ready(cluster, client):
    bring(cluster, client, knative("1"), knative("2", 10), knative("2", 0), knative("1"))
    assert {"2": 100} in routed(cluster)[routed(cluster).index({"2": 10, "1": 90}) :]


def test_the_good_model_at_no_percent_until_it_is_ready_does_not(cluster, client):
    bring(cluster, client, knative("1"), knative("2", 10), knative("2", 0), knative("1", 0), knative("1"))
    assert routed(cluster) == [{"1": 100}, {"2": 10, "1": 90}, {"1": 100}]


def test_no_percent_for_what_is_rolled_out_brings_back_what_was_before_it(cluster, client):
    bring(cluster, client, knative("1"), knative("2"), knative("2", 0))
    assert routed(cluster)[-1] == {"1": 100}


def test_a_revision_that_does_not_start_is_given_up_and_the_one_before_it_serves(cluster, client):
    cluster.trouble("2", "load", "the model is not signed")
    bring(cluster, client, knative("1"), knative("2", 50))
    assert routed(cluster) == [{"1": 100}]
    status = cluster.get("inferenceservices", "fraud")["status"]
    assert status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert status["modelStatus"]["lastFailureInfo"]["message"] == "the model is not signed"
    revisions = status["components"]["predictor"]
    assert revisions["latestCreatedRevision"] == "fraud-predictor-00002"
    assert revisions["latestReadyRevision"] == "fraud-predictor-00001"
    assert not cluster.all("pods", {"serving.knative.dev/revision": "fraud-predictor-00002"})
