"""Against a server that speaks Kubeflow Pipelines' REST API over HTTP, through the real client."""

import argparse
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.scripts import cli, cluster
from tests.services.kfp_api import KfpApi
from tests.services.servers import free_port

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")]


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch):
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api():
    with KfpApi() as server:
        yield server


def call(*words):
    return cli.main([str(word) for word in words])


def only(shelf):
    (value,) = shelf.values()
    return value


def client_of(api):
    return cluster._client(api.url, "")


def test_a_run_is_started_from_the_uploaded_file_with_typed_parameters(packages, api, capfd):
    words = ("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=hi", "-p", "count=3", "-p", 'words=["x"]')
    assert call(*words, "--experiment", "nightly", "--run-name", "by hand") == cli.OK
    run = only(api.runs)
    assert run["display_name"] == "by hand"
    assert run["runtime_config"]["parameters"] == {"text": "hi", "count": 3, "words": ["x"]}
    assert only(api.experiments)["display_name"] == "nightly"
    assert run["experiment_id"] == only(api.experiments)["experiment_id"]
    version = only(api.versions)
    assert version["package"] == (packages / "speech.yaml").read_text()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert only(api.pipelines)["display_name"] == "speech"
    shown = capfd.readouterr().out
    assert run["run_id"] in shown
    assert f"{api.url}/#/runs/details/{run['run_id']}" in shown


def test_the_same_file_is_uploaded_once_and_a_changed_one_as_a_new_version(packages, api, tmp_path):
    for _ in range(2):
        assert call("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=hi") == cli.OK
    assert len(api.versions) == 1
    changed = tmp_path / "speech.yaml"
    changed.write_text((packages / "speech.yaml").read_text().replace("Nothing more", "Nothing less"))
    assert call("submit", changed, "--host", api.url, "-p", "text=hi") == cli.OK
    assert (len(api.pipelines), len(api.versions), len(api.runs)) == (1, 2, 3)


def test_without_a_cache_every_task_in_every_branch_runs_anew(packages, api):
    assert call("submit", packages / "branches.yaml", "--host", api.url, "-p", "kind=x", "--no-cache") == cli.OK
    before = yaml.safe_load((packages / "branches.yaml").read_text())
    after = yaml.safe_load(only(api.versions)["package"])
    tasks = [task for component in after["components"].values() for task in component.get("dag", {}).get("tasks", {}).values()]
    assert len(tasks) >= 4
    assert all(task["cachingOptions"] == {} for task in tasks)
    assert after["deploymentSpec"] == before["deploymentSpec"]


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["PENDING", "RUNNING", "SUCCEEDED"], cli.OK),
        (["RUNNING", "FAILED"], cli.FAILED),
        (["RUNNING", "CANCELING", "CANCELED"], cli.CANCELLED),
        (["SKIPPED"], cli.FAILED),
    ],
)
def test_the_end_of_a_run_is_the_exit_code(api, states, status, capfd):
    api.states = states
    api.runs["r"] = {"run_id": "r", "asked": 0}
    assert cluster.wait_for_end(client_of(api), "r", timeout=20, interval=0.01) == status
    output, errors = capfd.readouterr()
    assert re.findall(r"   (\w+)\n", output) == [state.lower() for state in states]
    if states[-1] == "FAILED":
        assert "steps: train-xgboost; the pod is gone" in errors
    assert ("ended" in errors) == (status != cli.OK)


def test_a_wait_that_runs_out_of_time_says_that_the_run_goes_on(api, capfd):
    api.states = ["RUNNING"]
    api.runs["r"] = {"run_id": "r", "asked": 0}
    assert cluster.wait_for_end(client_of(api), "r", timeout=0.05, interval=0.01) == cli.TIMED_OUT
    assert "still running" in capfd.readouterr().err


def test_a_server_in_trouble_for_a_moment_does_not_end_the_wait(api):
    api.states = ["RUNNING", "SUCCEEDED"]
    api.runs["r"] = {"run_id": "r", "asked": 0}
    client = client_of(api)
    api.failures = [503, 500, 429]
    assert cluster.wait_for_end(client, "r", timeout=20, interval=0.01) == cli.OK


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_crashes_and_starts_again_does_not_end_the_wait(api, capfd):
    api.states = ["RUNNING"]
    api.runs["r"] = {"run_id": "r", "asked": 0}
    client = client_of(api)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(cluster.wait_for_end, client, "r", timeout=120, interval=0.01)
        until(lambda: api.runs["r"]["asked"] > 2)
        api.stop()
        # In its place first what takes connections and breaks them, then nobody.
        with socket.create_server(api.address) as broken:
            for _ in range(6):
                broken.accept()[0].close()
        asked = api.runs["r"]["asked"]
        api.states = ["SUCCEEDED"]
        api.start_again()
        assert waiting.result(120) == cli.OK
    assert api.runs["r"]["asked"] == asked + 1
    assert re.findall(r"   (\w+)\n", capfd.readouterr().out) == ["running", "succeeded"]


def test_a_server_that_never_answers_does_not_outlast_the_wait(api, capfd):
    client = client_of(api)
    api.stop()
    with socket.create_server(api.address):
        assert cluster.wait_for_end(client, "r", timeout=1, interval=0.01) == cli.TIMED_OUT
    assert "still pending after 1 s; it goes on" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("state", "status", "told"),
    [("SUCCEEDED", cli.OK, ""), ("FAILED", cli.FAILED, "ended failed"), ("CANCELED", cli.CANCELLED, "ended canceled")],
)
def test_submit_waits_for_the_end_of_its_run(packages, api, capfd, state, status, told):
    api.states = [state]
    assert call("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=hi", "--wait") == status
    output, errors = capfd.readouterr()
    assert f"   {state.lower()}\n" in output
    assert told in errors


def test_a_schedule_is_created_without_backfill_and_one_run_at_a_time(packages, api):
    words = ("schedule", packages / "speech.yaml", "--host", api.url, "--cron", "0 0 2 * * *")
    assert call(*words, "-p", "text=until [[ScheduledTime.2006-01-02]]") == cli.OK
    schedule = only(api.recurring_runs)
    assert schedule["display_name"] == "speech"
    assert schedule["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert schedule["no_catchup"] is True
    assert int(schedule["max_concurrency"]) == 1
    assert schedule["mode"] == "ENABLE"
    assert schedule["runtime_config"]["parameters"] == {"text": "until [[ScheduledTime.2006-01-02]]"}


def test_scheduling_again_updates_by_name_and_leaves_other_schedules_alone(packages, api, capfd):
    words = ("schedule", packages / "speech.yaml", "--host", api.url, "-p", "text=hi", "--cron")
    assert call(*words, "0 0 1 * * *", "--name", "another") == cli.OK
    # More of the name than one page holds, as interrupted updates could leave them.
    for number in range(3):
        api.recurring_runs[str(number)] = {"recurring_run_id": str(number), "display_name": "nightly"}
    assert call(*words, "0 0 2 * * *", "--name", "nightly") == cli.OK
    assert call(*words, "0 0 3 * * *", "--name", "nightly", "--paused") == cli.OK
    found = {schedule["display_name"]: schedule for schedule in api.recurring_runs.values()}
    assert len(api.recurring_runs) == 2
    assert found["nightly"]["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert found["nightly"]["mode"] == "DISABLE"
    assert found["another"]["trigger"] == {"cron_schedule": {"cron": "0 0 1 * * *"}}
    assert "nightly updated, paused" in capfd.readouterr().out


def test_the_new_schedule_is_there_before_the_old_one_goes(packages, api):
    words = ("schedule", packages / "speech.yaml", "--host", api.url, "-p", "text=hi", "--cron", "0 0 2 * * *")
    assert call(*words) == call(*words) == cli.OK
    changes = [request for request in api.requests if request[0] != "GET" and request[1].startswith("/recurringruns")]
    assert [verb for verb, _ in changes] == ["POST", "POST", "DELETE"]


def test_an_update_that_fails_leaves_the_schedule_as_it_was(packages, api, capfd):
    words = ("schedule", packages / "speech.yaml", "--host", api.url, "-p", "text=hi", "--cron")
    assert call(*words, "0 0 1 * * *") == cli.OK
    before = dict(api.recurring_runs)
    api.broken.add(("POST", "/recurringruns"))
    assert call(*words, "0 0 2 * * *") == cli.FAILED
    assert "500" in capfd.readouterr().err
    assert api.recurring_runs == before
    api.broken.clear()
    # And one that cannot take the old schedule away leaves that to the next.
    (old,) = before
    api.broken.add(("DELETE", f"/recurringruns/{old}"))
    assert call(*words, "0 0 3 * * *") == cli.FAILED
    assert len(api.recurring_runs) == 2
    api.broken.clear()
    assert call(*words, "0 0 4 * * *") == cli.OK
    assert only(api.recurring_runs)["trigger"] == {"cron_schedule": {"cron": "0 0 4 * * *"}}


def test_a_schedule_runs_the_version_that_was_uploaded_with_it(packages, api, tmp_path):
    words = ("--host", api.url, "-p", "text=hi", "--cron", "0 0 2 * * *")
    assert call("schedule", packages / "speech.yaml", *words) == cli.OK
    first = only(api.recurring_runs)["pipeline_version_reference"]
    assert first["pipeline_version_id"] == only(api.versions)["pipeline_version_id"]
    changed = tmp_path / "speech.yaml"
    changed.write_text((packages / "speech.yaml").read_text().replace("Nothing more", "Nothing less"))
    assert call("schedule", changed, *words) == cli.OK
    second = only(api.recurring_runs)["pipeline_version_reference"]
    assert api.versions[second["pipeline_version_id"]]["package"] == changed.read_text()
    assert second["pipeline_id"] == first["pipeline_id"] == only(api.pipelines)["pipeline_id"]


@pytest.mark.parametrize("wrong", ["", "another"])
def test_a_missing_or_wrong_token_changes_nothing_on_the_server(packages, monkeypatch, capfd, wrong):
    with KfpApi(token="right") as api:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
        monkeypatch.setenv("KF_PIPELINES_TOKEN", wrong)
        for words in (("schedule", "--cron", "0 0 2 * * *"), ("submit", "--wait")):
            assert call(words[0], packages / "speech.yaml", *words[1:], "-p", "text=hi") == cli.NOT_AVAILABLE
            errors = capfd.readouterr().err
            assert "refuses access (401" in errors
            assert "another" not in errors
        assert not any((api.pipelines, api.versions, api.experiments, api.runs, api.recurring_runs))


@pytest.mark.parametrize("cron", ["0 2 * * *", "@daily", "0 0 2 * *  * *", "0 0 2 * * ;", ""])
def test_a_cron_line_of_another_form_is_refused(packages, cron, capfd):
    assert call("schedule", packages / "speech.yaml", "--cron", cron, "-p", "text=hi") == cli.BAD_INPUT
    errors = capfd.readouterr().err
    assert "six fields" in errors
    if cron == "0 2 * * *":
        assert '"0 0 2 * * *"' in errors


def test_dates_of_a_schedule_are_refused_in_a_single_run(packages, api, capfd):
    words = ("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=[[ScheduledTime]]")
    assert call(*words) == cli.BAD_INPUT
    assert "only a recurring run" in capfd.readouterr().err
    assert not api.requests


def test_a_wrong_parameter_never_reaches_the_server(packages, api, capfd):
    assert call("submit", packages / "speech.yaml", "--host", api.url, "-p", "count=many") == cli.BAD_INPUT
    assert not api.requests


def test_a_token_is_taken_from_the_environment_or_a_file_that_may_change(packages, monkeypatch, tmp_path, capfd):
    submit = ("submit", packages / "speech.yaml", "-p", "text=hi")
    with KfpApi(token="first") as api:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
        began = time.monotonic()
        assert call(*submit) == cli.NOT_AVAILABLE
        errors = capfd.readouterr().err
        assert "401" in errors
        assert "KF_PIPELINES_TOKEN" in errors
        assert "Traceback" not in errors
        # kfp's own client asks five times, five seconds apart.
        assert len(api.requests) == 1, time.monotonic() - began
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "first")
        assert call(*submit) == cli.OK
        monkeypatch.delenv("KF_PIPELINES_TOKEN")
        file = tmp_path / "token"
        file.write_text("first")
        monkeypatch.setenv("KF_PIPELINES_TOKEN_FILE", str(file))
        client = cluster._client(api.url, "")
        api.token = "second"
        file.write_text("second")
        assert client.list_pipelines().total_size == 1
    file.unlink()
    with pytest.raises(InvalidInput, match="no such file"):
        cluster._client("http://127.0.0.1:1", "")


def test_a_server_that_cannot_be_reached_is_named(packages, capfd):
    url = f"http://127.0.0.1:{free_port()}"
    assert call("submit", packages / "speech.yaml", "--host", url, "-p", "text=hi") == cli.NOT_AVAILABLE
    errors = capfd.readouterr().err
    assert url in errors
    assert "refused" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("words", [("submit",), ("schedule", "--cron", "0 0 2 * * *")])
def test_a_server_that_takes_connections_and_stays_silent_is_given_up_and_named(packages, capfd, monkeypatch, words):
    monkeypatch.setattr(cluster, "_SILENCE_SECONDS", 0.2)
    command, *options = words
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert call(command, packages / "speech.yaml", "--host", url, "-p", "text=hi", *options) == cli.NOT_AVAILABLE
    (told,) = capfd.readouterr().err.splitlines()
    assert url in told
    assert "timed out" in told


def test_a_change_that_is_not_answered_is_asked_for_once_and_may_have_been_made(packages, api, capfd, monkeypatch):
    monkeypatch.setattr(cluster, "_CREATE_SECONDS", 1.0)
    handle, asked, ending = api.handle, [], threading.Event()

    def handle_all_but_runs(method, path, headers, body):
        if method == "POST" and path.endswith("/runs"):
            asked.append(path)
            ending.wait(60)
        return handle(method, path, headers, body)

    api.handle = handle_all_but_runs
    try:
        assert call("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=hi") == cli.NOT_AVAILABLE
    finally:
        ending.set()
    assert len(asked) == 1
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "in time" in line]
    assert f"{api.url} did not answer in time" in told


def test_what_the_server_refuses_is_passed_on(packages, api, capfd):
    api.failures = [500]
    assert call("submit", packages / "speech.yaml", "--host", api.url, "-p", "text=hi") == cli.FAILED
    assert "500" in capfd.readouterr().err


def test_an_expired_token_ends_the_wait(api):
    api.runs["r"] = {"run_id": "r", "asked": 0}

    def wait():
        with cluster._connect(argparse.Namespace(host=api.url, namespace="")) as client:
            api.token = "changed"
            cluster.wait_for_end(client, "r", timeout=20, interval=0.01)

    with pytest.raises(NotAvailable, match="refuses access"):
        wait()
