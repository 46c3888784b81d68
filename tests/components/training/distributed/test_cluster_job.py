import pytest

from modelyard.components import images, interface
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.training.distributed import cluster_job
from modelyard.components.training.distributed.cluster_job import ClusterJob
from modelyard.components.training.distributed.placement import parse_node_placement
from tests.support.fake_trainer import SILENCE, FakeTrainer


class Clock:
    """Stands for the module ``time``: who sleeps finds the time gone by.

    Attributes:
        now: seconds.
        slept: how long in all.
        on_sleep: what happens meanwhile.
    """

    def __init__(self) -> None:
        self.now = self.slept = 0.0
        self.on_sleep = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    stands = Clock()
    monkeypatch.setattr(cluster_job, "time", stands)
    return stands


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "MODELYARD_REGISTRY", "MODELYARD_TAG"):
        monkeypatch.delenv(name, raising=False)
    with FakeTrainer(tmp_path) as running:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig))
        yield running


def _job(trainer="xgboost", device="cpu", nodes=2, stop_if_asked=lambda: None, **placement) -> ClusterJob:
    placed = parse_node_placement(placement)
    return ClusterJob("modelyard-abc", trainer, nodes, device, "s3://bucket/abc.job", "fraud", placed, 3600, stop_if_asked)


class AskedToStop(Exception):
    """What a step that was asked to stop raises."""


def _stop():
    raise AskedToStop


def test_the_nodes_run_this_package_on_its_own_image_and_are_told_no_secret(cluster, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    _job(
        device="cuda",
        nodes=3,
        cpu=8,
        memory="32Gi",
        service_account="trainer",
        node_selector={"pool": "gpu"},
        tolerations=[{"key": "spot", "operator": "Exists"}],
    ).start()
    (written,) = cluster.jobs.values()
    spec = written["spec"]
    assert spec["runtimeRef"]["name"] == "xgboost-distributed"
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["trainer"]["numNodes"] == 3
    assert spec["trainer"]["image"].startswith("ghcr.io/modelyard/train:")
    assert spec["trainer"]["command"][:3] == ["python", "-m", "modelyard.components.training.distributed.node"]
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 1}
    assert {entry["name"]: entry["value"] for entry in spec["trainer"]["env"]}["AWS_ENDPOINT_URL"] == "http://store:9000"
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    # Without a mode of its own: an image's user other than root could not read a file of root's that only its group may.
    assert pod["volumes"] == [{"name": "modelyard-storage", "secret": {"secretName": "modelyard-storage", "optional": True}}]
    assert "s3cr3t" not in str(written)
    assert "pip" not in str(written)


@pytest.mark.parametrize(("trainer", "extra"), [("xgboost", "train"), ("torch", "torch")])
def test_the_nodes_image_is_the_one_that_components_of_this_release_run_on(cluster, monkeypatch, trainer, extra):
    monkeypatch.setenv("MODELYARD_REGISTRY", "registry.example/team/")
    monkeypatch.setenv("MODELYARD_TAG", "7")
    _job(trainer=trainer).start()
    assert cluster.jobs["modelyard-abc"]["spec"]["trainer"]["image"] == images.image(extra) == interface.image(extra)
    assert images.image(extra) == f"registry.example/team/{extra}:7"


def test_a_file_of_the_steps_own_pod_is_not_named_to_the_nodes(cluster, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ssl/of-the-step.pem")
    _job().start()
    assert "of-the-step" not in str(cluster.jobs)


def test_a_job_runs_and_is_completed(cluster):
    job = _job()
    job.start()
    assert job.state().status == "running"
    cluster.run(job.name, ["Running", "Running"])
    assert job.state().status == "running"
    cluster.complete(job.name)
    assert job.state().status == "completed"
    job.stop()
    assert cluster.jobs == {}
    job.stop()


def test_a_failed_node_is_named_with_its_log(cluster):
    job = _job()
    job.start()
    cluster.fail(job.name, 1, "reading rows\nXGBoostError: bad luck")
    state = job.state()
    assert state.status == "failed"
    assert "[node-1] XGBoostError: bad luck" in state.reason
    assert "[node-0]" not in state.reason
    assert job.name in cluster.jobs


def test_a_job_that_runs_is_found_again(cluster):
    _job().start()
    _job().start()
    assert [method for method, path in cluster.requests if method == "POST"] == ["POST"]


def _fail(cluster):
    cluster.fail("modelyard-abc", 0, "lost")


def _complete(cluster):
    cluster.complete("modelyard-abc")


@pytest.mark.parametrize("end", [_fail, _complete])
def test_a_job_that_ended_without_a_result_is_started_anew(cluster, end):
    """Nobody starts a job whose result is there: it was never left, or has expired in the store."""
    _job().start()
    end(cluster)
    _job().start()
    assert cluster.deleted == ["modelyard-abc"]
    assert "status" not in cluster.jobs["modelyard-abc"]


def test_an_answer_to_creating_that_is_lost_makes_no_second_job(cluster):
    job = _job()
    cluster.refuse("POST", 0)
    job.start()
    assert job.state().status == "running"
    assert list(cluster.jobs) == ["modelyard-abc"]
    assert len([1 for method, _ in cluster.requests if method == "POST"]) == 2


def test_a_busy_api_server_is_asked_again_when_it_says_so(cluster, clock):
    job = _job()
    cluster.refuse("POST", 429, **{"Retry-After": "40"})
    job.start()
    assert clock.slept == pytest.approx(40)
    cluster.refuse("GET", 500, 2)
    assert job.state().status == "running"


def test_an_api_server_that_gives_no_useful_answer_for_minutes_is_given_up(cluster, clock):
    cluster.refuse("GET", 503, 100)
    with pytest.raises(NotAvailable, match="does not answer as it should"):
        _job().state()
    assert 300 < clock.slept < 330


def test_an_answer_that_never_comes_is_not_waited_for(cluster, clock, monkeypatch):
    monkeypatch.setattr(cluster_job, "_TIMEOUT_SECONDS", (5.0, 0.3))
    job = _job()
    for method in ("GET", "POST"):
        cluster.refuse(method, SILENCE)
    job.start()
    assert list(cluster.jobs) == [job.name]
    cluster.refuse("DELETE", SILENCE)
    job.stop()
    assert cluster.deleted == [job.name]
    assert [method for method, path in cluster.requests if path.endswith("trainjobs") or method == "DELETE"] == [
        *("POST", "POST"),
        *("DELETE", "DELETE"),
    ]


@pytest.mark.parametrize(("method", "verb"), [("GET", "start"), ("POST", "start"), ("GET", "state")])
def test_a_step_that_is_asked_to_stop_waits_no_longer_for_the_api_server(cluster, clock, method, verb):
    asked = []
    job = _job(stop_if_asked=lambda: asked and _stop())
    # It says to come back in a minute; the signal arrives meanwhile.
    cluster.refuse(method, 503, 100, **{"Retry-After": "60"})
    clock.on_sleep = lambda: asked.append(True) if clock.slept > 10 else None
    with pytest.raises(AskedToStop):
        getattr(job, verb)()
    assert clock.slept < 12


def test_a_step_that_is_asked_to_stop_does_not_wait_until_an_earlier_job_is_gone(cluster, clock):
    asked = []
    _job().start()
    _fail(cluster)
    cluster.on_delete = lambda job: asked.append(True)
    cluster.lingering = True
    with pytest.raises(AskedToStop):
        _job(stop_if_asked=lambda: asked and _stop()).start()
    assert clock.slept < 2


def test_a_step_that_was_asked_to_stop_deletes_its_job_even_if_the_api_server_is_busy(cluster, clock):
    job = _job()
    job.start()
    cluster.refuse("DELETE", 503, 3)
    _job(stop_if_asked=_stop).stop()
    assert cluster.deleted == [job.name]


def test_a_job_that_someone_deleted_has_failed(cluster):
    job = _job()
    job.start()
    cluster.jobs.clear()
    state = job.state()
    assert state.status == "failed"
    assert "deleted by someone else" in state.reason


def test_nodes_that_get_no_machine_in_time_end_the_job_and_say_why(cluster, clock):
    job = _job(ready_seconds=60)
    job.start()
    cluster.run(job.name, ["Running", "Pending"])
    cluster.events = [
        {
            "metadata": {"name": "event", "namespace": "training"},
            "involvedObject": {"kind": "Pod", "name": f"{job.name}-node-0-1-x"},
            "firstTimestamp": "2026-01-01T00:00:00Z",
            "reason": "FailedScheduling",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ]
    assert job.state().status == "running"
    clock.now += 61
    state = job.state()
    assert state.status == "failed"
    assert "1 of 2 nodes (node-1) did not start in 60 s" in state.reason
    assert "Insufficient nvidia.com/gpu" in state.reason
    assert cluster.jobs == {}


def test_a_node_that_is_lost_after_hours_has_as_long_to_start_again_as_at_first(cluster, clock):
    job = _job(ready_seconds=60)
    job.start()
    for phases, seconds, status in [
        (["Pending"], 59, "running"),
        (["Running", "Pending"], 1, "running"),
        (["Running", "Running"], 7200, "running"),
        # A spot machine is taken away; its pod is gone, and another one waits.
        (["Running"], 30, "running"),
        (["Running", "Pending"], 30, "running"),
        (["Running", "Running"], 7200, "running"),
        (["Running", "Pending"], 61, "running"),
        (["Running", "Pending"], 0, "failed"),
    ]:
        cluster.run(job.name, phases)
        assert job.state().status == status
        clock.now += seconds
    assert cluster.deleted == [job.name]


def test_a_runtime_with_a_trainer_of_its_own_is_refused_by_name(cluster):
    with pytest.raises(InvalidInput, match=r"cluster\.runtime = 'torchtune-llama'.*such as xgboost-distributed"):
        _job(runtime="torchtune-llama").start()
    assert cluster.jobs == {}


def test_a_runtime_that_is_none_is_refused_at_once(cluster, clock):
    with pytest.raises(InvalidInput, match=r"cluster\.runtime = 'unlabelled'.*framework label"):
        _job(runtime="unlabelled").start()
    assert clock.slept == 0


def test_an_answer_that_the_sdk_cannot_read_is_not_asked_for_again(cluster, clock):
    job = _job()
    job.start()
    cluster.run(job.name, ["Running", "Running"])
    del cluster.pods[job.name][0]["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
    with pytest.raises(NotAvailable, match="does not answer as it should"):
        job.state()
    assert clock.slept == 0


def test_a_cluster_without_the_runtime_is_named(cluster):
    with pytest.raises(NotAvailable, match=r"no runtime mine.*cluster\.runtime"):
        _job(runtime="mine").start()
    assert cluster.jobs == {}


@pytest.mark.parametrize(("status", "error"), [(403, NotAvailable), (422, InvalidInput)])
def test_a_refusal_is_not_repeated(cluster, status, error):
    cluster.refuse("POST", status)
    with pytest.raises(error, match="told to refuse"):
        _job().start()
    assert len([1 for method, _ in cluster.requests if method == "POST"]) == 1


def test_without_a_cluster_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(NotAvailable, match="KUBECONFIG"):
        _job().start()


@pytest.mark.parametrize(
    ("cluster_parameter", "message"),
    [
        ({"name_space": "x"}, r"cluster\.name_space.*no such key"),
        ({"node_selector": "gpu"}, r"cluster\.node_selector.*dict"),
        ({"ready_seconds": 0}, r"cluster\.ready_seconds"),
        ({"tolerations": ["spot"]}, r"cluster\.tolerations"),
        ({"image": 3.0}, r"cluster\.image"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_by_key(cluster_parameter, message):
    with pytest.raises(InvalidInput, match=message):
        parse_node_placement(cluster_parameter)


def test_numbers_of_a_form_become_quantities():
    assert parse_node_placement({"cpu": 4.0, "ready_seconds": 90.0}) == parse_node_placement({"cpu": "4", "ready_seconds": 90})
