import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.components import tracking
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.tracking import connection
from modelyard.components.tracking.connection import experiment_id, reachable


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for name in ("TRACKING_URI", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    return tmp_path / "home"


_WRITE = """
from modelyard.components import tracking
from modelyard.components.tracking.connection import experiment_id
client = tracking.client()
client.create_run(experiment_id(client, "fraud"))
"""


def test_processes_that_start_together_share_one_database_and_one_experiment(home):
    processes = [subprocess.Popen([sys.executable, "-c", _WRITE], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], messages
    client = tracking.client()
    found = client.get_experiment_by_name("fraud")
    assert len(client.search_runs([found.experiment_id])) == 3
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]


def test_artifacts_go_to_the_home_wherever_the_step_runs(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = tracking.client()
    run = client.create_run(experiment_id(client, "card fraud/eu"))
    client.log_text(run.info.run_id, "x", "note.txt")
    assert [path.read_text() for path in (home / "mlruns").rglob("note.txt")] == ["x"]
    assert not (tmp_path / "mlruns").exists()


def test_an_experiment_named_by_the_environment_wins(home, monkeypatch):
    client = tracking.client()
    mine = experiment_id(client, "fraud")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nightly")
    nightly = experiment_id(client, "fraud")
    assert client.get_experiment(nightly).name == "nightly"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mine)
    assert experiment_id(client, "fraud") == mine


def test_a_deleted_experiment_is_not_used(home):
    client = tracking.client()
    client.delete_experiment(experiment_id(client, "fraud"))
    with pytest.raises(InvalidInput, match="deleted in MLflow"):
        experiment_id(client, "fraud")


def test_a_server_that_is_down_is_named_without_its_password(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = tracking.client()
    with pytest.raises(
        NotAvailable, match=r"127\.0\.0\.1:9 cannot be reached \(.* refused\): check MLFLOW_TRACKING_URI"
    ) as raised:
        experiment_id(client, "fraud")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_server_that_takes_connections_and_stays_silent_is_given_up(home, monkeypatch):
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    monkeypatch.setattr(connection, "_RETRIES", {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    monkeypatch.setattr(connection, "_PATIENCE", {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        client = tracking.client()
        with pytest.raises(NotAvailable, match=f"{address} did not answer in time: check MLFLOW_TRACKING_URI"):
            experiment_id(client, "fraud")


@pytest.mark.parametrize("own", [{}, {"TIMEOUT": "7"}, {"TIMEOUT": "7", "MAX_RETRIES": "5"}])
def test_mlflows_limits_are_set_for_the_block_alone_and_the_users_own_stand(home, monkeypatch, own):
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)

    def limits():
        found = {name: os.environ.get(f"MLFLOW_HTTP_REQUEST_{name}") for name in ("MAX_RETRIES", "TIMEOUT")}
        return {name: value for name, value in found.items() if value is not None}

    with reachable():
        assert limits() == {"MAX_RETRIES": "2", "TIMEOUT": "20", **own}
        with reachable():
            pass
        assert limits() == {"MAX_RETRIES": "2", "TIMEOUT": "20", **own}
    assert limits() == own
    # A server that has to fetch a model itself says nothing meanwhile.
    with reachable(files=True):
        assert limits() == {"MAX_RETRIES": "2", **own}
    assert limits() == own


def test_an_address_that_mlflow_does_not_know_is_named_without_its_password(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://someone:s3cret@bar")
    with pytest.raises(InvalidInput, match=r"MLFLOW_TRACKING_URI = 'foo://someone:\*\*\*@bar': .* give http://") as raised:
        tracking.client()
    assert raised.value.__suppress_context__


def test_an_answer_that_makes_no_sense_is_told_in_whole_words(home):
    from mlflow.exceptions import MlflowException

    with pytest.raises(NotAvailable, match=r"does not answer as it should \((word )+…\): check"), reachable():
        raise MlflowException("word " * 100)


def test_what_the_server_says_of_a_request_is_not_taken_for_its_absence(home):
    from mlflow.exceptions import MlflowException

    client = tracking.client()
    with pytest.raises(MlflowException, match="not found"), reachable():
        client.get_run("0" * 32)


def test_a_cluster_must_name_its_server(monkeypatch):
    monkeypatch.delenv("MODELYARD_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(NotAvailable, match="MLFLOW_TRACKING_URI"):
        tracking.client()


def test_feast_is_not_imported_for_the_sake_of_a_request_header():
    code = "import sys; from modelyard.components import tracking; tracking.client(); print('feast' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    )
    assert found.stdout.strip() == "False"


_KILLED_HALF_WAY = """
import os, signal
from pathlib import Path
from mlflow.store.tracking import sqlalchemy_store
class Killed:
    def __init__(self, uri, *_):
        database = uri.removeprefix("sqlite:///")
        Path(database).write_bytes(b"half a database")
        Path(database + "-journal").write_bytes(b"its journal")
        os.kill(os.getpid(), signal.SIGKILL)
sqlalchemy_store.SqlAlchemyStore = Killed
from modelyard.components import tracking
tracking.client()
"""


def test_a_database_whose_maker_was_killed_is_made_anew_and_nothing_is_left(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", _KILLED_HALF_WAY], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tracking.client().search_experiments()
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]
