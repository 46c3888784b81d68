import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.target import TargetChanged
from modelyard.scripts import compiled
from modelyard.scripts.local_run import own_error, run_pipeline


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def lives(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def only_record(home):
    (record,) = (home / "runs").glob("*/run.json")
    return record.parent, json.loads(record.read_text())


def test_a_run_gives_outputs_steps_and_a_record(packages, tmp_path):
    seen = []
    result = run_pipeline(packages / "speech.yaml", {"text": "hi", "count": "3"}, tmp_path, on_step=seen.append)
    assert (result.state, result.outputs, result.error) == ("succeeded", {"Output": "hi hi hi"}, "")
    step = result.step("say")
    assert step.outputs == {"said": "hi hi hi", "words": 3}
    assert Path(step.artifacts["note"]).read_text() == "hi hi hi"
    assert [(step.name, step.state) for step in seen] == [("say", "running"), ("say", "succeeded")]
    folder, record = only_record(tmp_path)
    assert folder == result.folder
    assert record["state"] == "succeeded"
    assert record["parameters"] == {"text": "hi", "count": 3}
    assert record["outputs"] == {"Output": "hi hi hi"}
    assert [(step["name"], step["state"]) for step in record["steps"]] == [("say", "succeeded")]
    assert record["steps"][0]["seconds"] > 0
    with pytest.raises(KeyError):
        result.step("sing")


@pytest.mark.parametrize(
    "text", ["python3", "run python3 -m kfp.dsl.executor_main", '"$program_path/ephemeral_component.py" python3']
)
def test_a_value_that_names_the_interpreter_arrives_as_it_is(packages, tmp_path, text):
    assert run_pipeline(packages / "speech.yaml", {"text": text, "count": 1}, tmp_path).outputs == {"Output": text}


@pytest.mark.parametrize("given", [{}, {"sizes": "[128, 0.5, 1e300]", "options": {"depth": 3}}])
def test_whole_numbers_in_lists_and_objects_arrive_as_on_a_cluster(packages, tmp_path, given):
    outputs = run_pipeline(packages / "numbers.yaml", given, tmp_path).step("types").outputs
    assert outputs == {"sizes_types": ["int", "float", "float"], "option_type": "int"}


def test_a_step_runs_in_an_empty_folder_with_the_home_and_without_the_checkout(packages, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    outputs = run_pipeline(packages / "places.yaml", {}, tmp_path / "home").outputs
    assert outputs["entries"] == 0
    assert str(Path.cwd()) not in (outputs["folder"], *outputs["path"])
    assert "" not in outputs["path"]
    assert outputs["environment"]["MODELYARD_HOME"] == str(tmp_path / "home")
    assert not Path(outputs["folder"]).exists()
    assert not Path(outputs["environment"]["TMPDIR"]).exists()


def test_relative_paths_in_uri_parameters_count_from_where_the_user_is(packages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_pipeline(packages / "places.yaml", {"place_uri": "data/rows.csv"}, "home")
    assert result.step("say").outputs["said"] == str(tmp_path / "data" / "rows.csv")
    assert result.folder.is_relative_to(tmp_path / "home")


@pytest.mark.parametrize("uri", ["s3://bucket/rows", "gs://bucket/rows", "file:///rows", "models:/fraud@champion", "/rows", ""])
def test_other_uris_stay_as_they_are(packages, tmp_path, uri):
    package = compiled.read(packages / "places.yaml")
    assert compiled.check_local_values(package, {"place_uri": uri}, tmp_path) == {"place_uri": uri}


def test_a_failing_step_ends_the_run_at_once_and_shows_both_exceptions(packages, tmp_path):
    result = run_pipeline(packages / "failure.yaml", {}, tmp_path)
    assert result.state == "failed"
    assert [(step.name, step.state) for step in result.steps] == [("say", "succeeded"), ("fail", "failed")]
    assert result.tail.startswith("Traceback")
    assert "KeyError: 'first of two'" in result.tail
    assert "some words before" not in result.tail
    assert result.error == "fail failed: ValueError: second of two"
    assert "some words before" in Path(result.step("fail").log).read_text()
    assert only_record(tmp_path)[1]["error"] == result.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidInput("steps", [5], "give more\n  of them\nand rising"), "steps = [5]: give more\n  of them\nand rising"),
        (TargetChanged("another rollout is under way"), "another rollout is under way"),
        (KeyError("steps"), ""),
        (subprocess.TimeoutExpired("sleep", 1), ""),
    ],
)
def test_an_error_of_this_package_is_told_without_the_code_it_comes_from(error, message):
    try:
        try:
            raise OSError("the cause")
        except OSError as cause:
            raise error from cause
    except type(error):
        shown = traceback.format_exc()
    assert own_error(shown.rstrip()) == message
    assert own_error(message) == ""


def test_a_step_that_is_killed_says_so(packages, tmp_path):
    result = run_pipeline(packages / "killed.yaml", {"number": 9}, tmp_path)
    assert result.state == "failed"
    assert "SIGKILL" in result.error
    assert "memory" in result.error


def test_a_child_that_a_step_leaves_behind_neither_blocks_the_run_nor_outlives_it(packages, tmp_path):
    result = run_pipeline(packages / "child.yaml", {"folder_uri": str(tmp_path)}, tmp_path / "home")
    assert result.state == "succeeded"
    wait_until(lambda: not lives(int((tmp_path / "child").read_text())))


def test_branches_that_were_not_taken_are_named(packages, tmp_path):
    result = run_pipeline(packages / "branches.yaml", {"kind": "quiet", "verdict": "fail"}, tmp_path)
    assert [step.name for step in result.steps] == ["judge", "surroundings"]
    assert result.skipped == ("say",)
    assert (result.decision, result.reasons) == ("fail", "because")


@pytest.mark.parametrize("kind", ["it's", "back\\slash", "two\nlines"])
def test_text_that_would_silently_skip_every_branch_is_refused_before_anything_runs(packages, tmp_path, kind):
    with pytest.raises(InvalidInput, match=r"kind = .*branches on it"):
        run_pipeline(packages / "branches.yaml", {"kind": kind}, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_output_that_would_silently_skip_every_branch_fails_the_run(packages, tmp_path):
    result = run_pipeline(packages / "branches.yaml", {"kind": "quiet", "verdict": "it's fine"}, tmp_path)
    # The parameter goes through the step judge, which the pipeline branches on.
    assert result.state == "failed"
    assert "it's fine" in result.error
    assert [step.name for step in result.steps] == ["judge"]


@pytest.mark.parametrize(
    "text", ["[[ScheduledTime]]", "until [[ScheduledTime.2006-01-02]]", "[[CurrentTime]]", "{{$.scheduledTime.strftime('%Y')}}"]
)
def test_dates_that_only_a_recurring_run_fills_in_are_refused(packages, tmp_path, text):
    with pytest.raises(InvalidInput, match="only a recurring run"):
        run_pipeline(packages / "speech.yaml", {"text": text}, tmp_path)


def test_placeholders_inside_values_are_refused_wherever_they_hide(packages, tmp_path):
    with pytest.raises(InvalidInput, match="KFP placeholders"):
        run_pipeline(packages / "speech.yaml", {"text": "", "options": {"deep": [{"er": "{{$}}"}]}}, tmp_path)


def test_a_pipeline_that_asks_for_the_clusters_time_is_refused(packages, tmp_path):
    with pytest.raises(NotAvailable, match="only a cluster"):
        run_pipeline(packages / "dated.yaml", {}, tmp_path)


def test_steps_of_a_loop_are_told_apart(packages, tmp_path):
    result = run_pipeline(packages / "loop.yaml", {}, tmp_path)
    assert sorted(step.name for step in result.steps) == ["say", "say_2", "say_3"]
    assert sorted(step.outputs["said"] for step in result.steps) == ["one", "three", "two"]


def test_a_run_leaves_kfp_the_process_and_the_users_folders_as_they_were(packages, tmp_path, capfd):
    from kfp import local
    from kfp.local import config, subprocess_task_handler
    from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor

    workspace = tmp_path / "precious"
    workspace.mkdir()
    local.init(local.SubprocessRunner(use_venv=False), workspace_root=str(workspace))
    before = (
        config.LocalExecutionConfig.instance,
        subprocess_task_handler.SubprocessTaskHandler,
        task_executor.execute_single_task,
        enhanced_dag_orchestrator.ConditionEvaluator.evaluate_condition,
        signal.getsignal(signal.SIGTERM),
        Path.cwd(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pipeline(packages / "branches.yaml", {"kind": "loud"}, tmp_path / "home")
        run_pipeline(packages / "speech.yaml", {"text": "limits are ignored quietly"}, tmp_path / "home")
    after = (
        config.LocalExecutionConfig.instance,
        subprocess_task_handler.SubprocessTaskHandler,
        task_executor.execute_single_task,
        enhanced_dag_orchestrator.ConditionEvaluator.evaluate_condition,
        signal.getsignal(signal.SIGTERM),
        Path.cwd(),
    )
    assert before == after
    assert workspace.is_dir()
    assert capfd.readouterr() == ("", "")
    run_pipeline(packages / "speech.yaml", {"text": "hi"}, tmp_path / "home", on_step=lambda step: print(step.state))
    assert capfd.readouterr() == ("running\nsucceeded\n", "")


def test_two_runs_at_once_in_one_process_are_refused(packages, tmp_path):
    refusals = []

    def second(_step):
        with pytest.raises(NotAvailable) as refusal:
            run_pipeline(packages / "speech.yaml", {"text": "two"}, tmp_path)
        refusals.append(refusal)

    assert run_pipeline(packages / "speech.yaml", {"text": "one"}, tmp_path, on_step=second).state == "succeeded"
    assert len(refusals) == 2


def test_a_run_works_outside_the_main_thread(packages, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run_pipeline(packages / "speech.yaml", {"text": "aside"}, tmp_path))
    )
    thread.start()
    thread.join()
    assert results[0].state == "succeeded"


def test_sigkill_ends_the_step_and_the_next_run_cleans_up(packages, tmp_path, modelyard):
    home = tmp_path / "home"
    process = modelyard("run", packages / "waiting.yaml", "-p", f"folder_uri={tmp_path}")
    wait_until((tmp_path / "started").exists)
    step = int((tmp_path / "started").read_text())
    folder, record = only_record(home)
    assert record["state"] == "running"
    assert Path(record["scratch"]).is_dir()
    assert list(folder.glob("artifacts/*/wait/partial"))
    assert lives(step)
    process.kill()
    process.wait()
    # At once: what the killed run's step still does must be over before the next run's first step.
    seen = []
    run_pipeline(packages / "speech.yaml", {"text": "again"}, home, on_step=lambda _: seen.append(lives(step)))
    assert seen == [False, False]
    killed = json.loads((folder / "run.json").read_text())
    assert killed["state"] == "killed"
    assert [(step["name"], step["state"]) for step in killed["steps"]] == [("say", "succeeded"), ("wait", "killed")]
    assert not (folder / "artifacts").exists()
    assert not Path(record["scratch"]).exists()


def test_a_run_that_still_goes_on_is_left_alone(packages, tmp_path, modelyard):
    process = modelyard("run", packages / "waiting.yaml", "-p", f"folder_uri={tmp_path}")
    wait_until((tmp_path / "started").exists)
    folder, _ = only_record(tmp_path / "home")
    run_pipeline(packages / "speech.yaml", {"text": "meanwhile"}, tmp_path / "home")
    assert process.poll() is None
    assert json.loads((folder / "run.json").read_text())["state"] == "running"
    assert list(folder.glob("artifacts/*/wait/partial"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_lets_its_step_write_a_checkpoint(packages, tmp_path, modelyard, number, status):
    process = modelyard("run", packages / "waiting.yaml", "-p", f"folder_uri={tmp_path}")
    wait_until((tmp_path / "started").exists)
    # At once, while the step goes on.
    assert "       …    waiting for the end\n" in iter(process.stdout.readline, "")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert (tmp_path / "checkpoint").read_text() == "saved"
    record = only_record(tmp_path / "home")[1]
    assert record["state"] == "cancelled"
    assert [step["state"] for step in record["steps"]] == ["succeeded", "cancelled"]
    assert "asked wait to stop" in output
    assert "in many words" not in output
    assert re.search(
        r"^  error +cancelled by SIG\w+\n +told to stop: the checkpoint is kept\n +Run it again", output, re.MULTILINE
    )
    assert "Traceback" not in output
    assert not Path(record["scratch"]).exists()


def test_a_second_interrupt_does_not_wait_for_a_step_that_will_not_end(packages, tmp_path, modelyard):
    process = modelyard("run", packages / "waiting.yaml", "-p", f"folder_uri={tmp_path}", "-p", "heed_sigterm=no")
    wait_until((tmp_path / "started").exists)
    step = int((tmp_path / "started").read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not lives(step)


def test_a_home_that_cannot_be_made_is_named(packages, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailable, match="choose another --home"):
        run_pipeline(packages / "speech.yaml", {"text": "hi"}, tmp_path / "file" / "home")


def test_a_folder_whose_run_died_before_it_said_anything_is_removed(packages, tmp_path):
    empty = tmp_path / "runs" / "20260101T000000Z-release-abcdef"
    empty.mkdir(parents=True)
    run_pipeline(packages / "speech.yaml", {"text": "hi"}, tmp_path)
    assert not empty.exists()


def test_an_edited_record_cannot_make_the_clean_up_remove_another_folder(packages, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    dead = tmp_path / "home" / "runs" / "20260101T000000Z-release-abcdef"
    dead.mkdir(parents=True)
    (dead / "run.json").write_text(json.dumps({"state": "running", "pid": 1, "scratch": str(precious), "steps": []}))
    run_pipeline(packages / "speech.yaml", {"text": "hi"}, tmp_path / "home")
    assert precious.is_dir()
    assert json.loads((dead / "run.json").read_text())["state"] == "killed"


def test_the_steps_of_a_dead_runner_die_even_while_it_starts_them(packages, tmp_path):
    """Kills the runner at many moments around a step's start: no step may survive it."""
    code = (
        "import sys; from modelyard.scripts.local_run import run_pipeline\n"
        "tell = lambda step: print(step.name, step.state, flush=True)\n"
        "run_pipeline(sys.argv[1], {'folder_uri': sys.argv[2]}, sys.argv[3], on_step=tell)"
    )
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(packages / "waiting.yaml"), str(folder), str(tmp_path / "home")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "wait running\n" in iter(process.stdout.readline, "")
        time.sleep(0.01 * number)
        process.kill()
        process.communicate()
    run_pipeline(packages / "speech.yaml", {"text": "after"}, tmp_path / "home")
    survivors = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(tmp_path).encode() in _command_line(entry) and int(entry.name) != os.getpid()
    ]
    assert survivors == []
    states = [json.loads(path.read_text())["state"] for path in sorted((tmp_path / "home" / "runs").glob("*/run.json"))]
    assert sorted(states) == ["killed"] * 6 + ["succeeded"]


def _command_line(process):
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
