import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.request.component import check_release
from modelyard.components.request.release_request import check_release_request, training_branch
from tests.support.fake_cluster.cluster import FakeCluster
from tests.support.kfp_runner import run_component

GOOD = {
    "model_name": "fraud",
    "feature_repo_uri": "/repo",
    "entity_rows_uri": "/rows.parquet",
    "feature_service": "fraud_detection",
    "label": "is_fraud",
    "timestamp_column": "event_timestamp",
    "data_start": "2018-04-01",
    "data_end": "2018-06-01T12:00:00Z",
    "test_days": 7.0,
    "validation_days": 7.0,
    "gap_days": 7.0,
    "trainer": "xgboost",
    "nodes": 2,
    "node_placement": {},
    "device": "auto",
    "test_fraction": 0.2,
    "validation_fraction": 0.1,
    "false_negative_cost": 10.0,
    "false_positive_cost": 1.0,
    "gates": {},
    "signing_method": "key",
    "target": "local",
    "serving": {},
    "rollout_steps": [5, 25, 50, 100],
    "bake_seconds": 300.0,
    "min_samples": 300,
    "look_seconds": 10.0,
    "deadline_seconds": 3600.0,
    "shadow_seconds": 0.0,
    "rollout_limits": {},
}


@pytest.mark.parametrize(
    ("trainer", "device", "branch"),
    [
        ("xgboost", "auto", "xgboost"),
        ("xgboost", "cpu", "xgboost"),
        ("xgboost", "cuda", "xgboost-gpu"),
        ("torch", "auto", "torch"),
        ("torch", "cuda", "torch-gpu"),
        ("xgboost-distributed", "auto", "xgboost-distributed"),
        ("torch-distributed", "cuda", "torch-distributed"),  # The nodes get the GPUs.
    ],
)
def test_only_cuda_asks_for_a_step_with_a_gpu(trainer, device, branch):
    assert training_branch(trainer, device) == branch
    assert check_release_request({**GOOD, "trainer": trainer, "device": device}) == branch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", ""),
        ("model_name", "a b"),
        ("model_name", "-fraud"),
        ("model_name", "x" * 64),
        ("model_name", "fraud.promotions"),
        ("feature_repo_uri", " "),
        ("entity_rows_uri", ""),
        ("feature_service", ""),
        ("label", ""),
        ("timestamp_column", ""),
        ("data_start", "01.04.2018"),
        ("data_start", "[[ScheduledTime.2006-01-02]]"),
        ("data_end", "{{$.scheduledTime.strftime('%Y-%m-%d')}}"),
        ("data_end", "2018-04-01"),
        ("test_days", -1.0),
        ("validation_days", float("nan")),
        ("gap_days", -0.5),
        ("test_fraction", 1.5),
        ("validation_fraction", 0.0),
        ("false_negative_cost", -1.0),
        ("false_positive_cost", float("inf")),
        ("signing_method", "gpg"),
        ("trainer", "xgboost' || true"),
        ("nodes", 0),
        ("nodes", 1001),
        ("node_placement", {"gpus": 1}),
        ("device", "gpu"),
        ("gates", {"absolute": [{"metric": "accuracy", "min": 0.9}]}),
        ("target", "moon"),
        ("serving", {"mod": "standard"}),
        ("serving", {"mode": "serverless"}),
        ("rollout_steps", [50, 5]),
        ("bake_seconds", -1.0),
        ("min_samples", 0),
        ("look_seconds", 0.0),
        ("deadline_seconds", 10.0),
        ("shadow_seconds", float("nan")),
        ("rollout_limits", {"alfa": 0.1}),
        ("rollout_limits", {"alpha": 2}),
    ],
)
def test_a_parameter_that_cannot_work_is_named(field, value):
    with pytest.raises(InvalidInput) as refused:
        check_release_request({**GOOD, field: value})
    assert refused.value.field.split(".")[0] == field


def test_a_pod_cannot_serve_what_must_outlive_it(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    with pytest.raises(InvalidInput, match="target = 'local'"):
        check_release_request(GOOD)
    assert check_release_request({**GOOD, "target": "registry"}) == "xgboost"


def test_kserve_needs_a_store_that_pods_can_read_a_prometheus_and_a_cluster_and_copies_no_traffic(monkeypatch, tmp_path):
    request = {**GOOD, "target": "kserve", "serving": {"mode": "standard"}}
    monkeypatch.setenv("MODELYARD_MODEL_STORE", str(tmp_path))
    with pytest.raises(InvalidInput, match="MODELYARD_MODEL_STORE"):
        check_release_request(request)
    monkeypatch.setenv("MODELYARD_MODEL_STORE", "s3://models/released")
    monkeypatch.delenv("MODELYARD_PROMETHEUS_URL", raising=False)
    with pytest.raises(InvalidInput, match="MODELYARD_PROMETHEUS_URL"):
        check_release_request(request)
    monkeypatch.setenv("MODELYARD_PROMETHEUS_URL", "http://prometheus.example.com")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(NotAvailable, match="no cluster is configured"):
        check_release_request(request)
    (tmp_path / "kubeconfig").write_text("clusters: [")
    with pytest.raises(NotAvailable, match="no cluster is configured"):
        check_release_request(request)
    with FakeCluster(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        assert check_release_request(request) == "xgboost"
        with pytest.raises(InvalidInput, match="shadow_seconds"):
            check_release_request({**request, "shadow_seconds": 60.0})
        with pytest.raises(InvalidInput, match="max_replicas"):
            check_release_request({**request, "serving": {"max_replicas": 3}})
        cluster.fail(403, times=5)
        with pytest.raises(NotAvailable):
            check_release_request(request)


def test_the_step_returns_the_branch_and_its_log_names_a_bad_parameter(tmp_path, capfd):
    parameters = {name: value for name, value in GOOD.items() if name not in ("trainer", "gates")}
    assert run_component(check_release, tmp_path / "good", **parameters, trainer="torch") == {"branch": "torch"}
    with pytest.raises(RuntimeError):
        run_component(check_release, tmp_path / "bad", **parameters, trainer="forest")
    assert "trainer = 'forest': choose one of xgboost, torch" in capfd.readouterr().out
