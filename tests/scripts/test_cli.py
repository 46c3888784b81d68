import json
import os
import pty
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from modelyard.components.evaluation.gates import parse_gates
from modelyard.scripts import cli

MODELYARD = Path(sys.executable).with_name("modelyard")


def run(*words, folder=None, **environment):
    return subprocess.run(
        [MODELYARD, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )


def on_a_terminal(*words, **environment):
    """What ``modelyard`` writes to a terminal, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(MODELYARD, [str(MODELYARD), *map(str, words)], {**os.environ, "TERM": "xterm", **environment})
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    os.close(terminal)
    return written.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_help_names_every_command_and_exit_code_and_imports_nothing_heavy():
    shown = run("--help").stdout
    for command in (
        "run",
        "describe",
        "compile",
        "submit",
        "schedule",
        "verify",
        "docs",
        "demo",
        "benchmark",
        "serve",
        "status",
        "stop",
        "promote",
        "rollback",
        "split",
    ):
        assert re.search(rf"^    {command}\b", shown, re.MULTILINE), command
    for code in (
        cli.OK,
        cli.FAILED,
        cli.BAD_INPUT,
        cli.REFUSED,
        cli.NOT_AVAILABLE,
        cli.CANCELLED,
        cli.TIMED_OUT,
        130,
        141,
        143,
    ):
        assert re.search(rf"^  (130, )?{code}\b", shown, re.MULTILINE), code
    code = (
        "import sys; from modelyard.scripts import cli; cli.build_parser().format_help()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(loaded & {'kfp', 'polars', 'numpy', 'yaml', 'google', 'mlflow'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "describe",
        "compile",
        "submit",
        "schedule",
        "verify",
        "docs",
        "serve",
        "status",
        "stop",
        "promote",
        "rollback",
        "split",
    ],
)
def test_each_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: modelyard {command}" in capsys.readouterr().out


def test_the_gates_of_the_example_are_gates(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    gates = re.search(r"gates=({.*})'", capsys.readouterr().out)
    assert parse_gates(json.loads(gates[1])).absolute


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"modelyard {metadata.version('modelyard')}\n"


def test_a_command_line_that_makes_no_sense_exits_with_2():
    assert run("dance").returncode == 2
    assert run().returncode == 2
    assert run("run").returncode == 2


def test_output_that_nobody_reads_to_its_end_is_no_error(packages, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["describe", "release"], ["run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path]):
        finished = subprocess.run([MODELYARD, *map(str, words)], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        assert (finished.returncode, finished.stderr) == (141, "")
    os.close(writer)


def test_what_a_run_leaves_serving_is_told_with_how_to_end_it(tmp_path, monkeypatch, capsys):
    from modelyard.components.serving.local.target import Health, LocalTarget
    from modelyard.components.serving.target import ServingState
    from modelyard.scripts.run_command import _tell_what_is_served

    _tell_what_is_served(tmp_path, "")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(LocalTarget, "health", lambda self: Health(True, 8080, 1, 2, {}, ""))
    monkeypatch.setattr(LocalTarget, "model_names", lambda self: ["fraud"])
    monkeypatch.setattr(LocalTarget, "state", lambda self, name: ServingState(name, url="http://127.0.0.1:8080"))
    _tell_what_is_served(tmp_path, " --home here")
    shown = capsys.readouterr().out
    assert shown.startswith("  serving   http://127.0.0.1:8080/v1/models/fraud:predict\n")
    assert "modelyard status --home here shows it, modelyard stop --home here ends it" in shown


@pytest.mark.parametrize("command", [["status"], ["serve", "fraud"], ["serve"], ["stop"], ["split", "fraud", "--end"]])
def test_a_home_that_can_hold_no_state_is_one_clear_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODELYARD_HOME", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("")
    assert cli.main([*command, "--home", str(tmp_path / "file" / "home")]) == cli.NOT_AVAILABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modelyard: ")
    assert f"{tmp_path}/file is no folder" in line


def test_a_home_that_cannot_be_made_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setenv("MODELYARD_HOME", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["serve", "fraud", "--home", "/proc/nothing"]) == cli.NOT_AVAILABLE
    assert "modelyard: /proc/nothing cannot be made" in capsys.readouterr().err


def test_a_decisions_reasons_are_told_once_and_outputs_in_order(capsys, tmp_path):
    from modelyard.scripts.local_run import RunResult
    from modelyard.scripts.progress import Progress

    outputs = {"decision": "fail", "outcome": "rolled_back", "reasons": "it is slow", "version": "3"}
    for decision in ("fail", "pass"):
        result = RunResult("rollout", "succeeded", tmp_path, 1.0, (), (), outputs, decision, "it is slow")
        Progress().finish(result)
        shown = capsys.readouterr().out
        assert shown.count("it is slow") == 1
        assert shown.index("outcome") < shown.index("version")


def test_a_component_without_a_description_is_described_by_its_name(capsys):
    assert cli.main(["describe", str(Path(__file__).parents[2] / "compiled" / "components" / "rollout_model.yaml")]) == cli.OK
    assert capsys.readouterr().out.startswith("rollout-model\n\nparameters:\n")


def test_describing_a_pipeline_lists_its_parameters_required_ones_first(packages):
    shown = run("describe", packages / "speech.yaml").stdout
    assert shown.index("text  (text, required)") < shown.index("count  (whole number, default 2)")
    assert "What to say." in shown


def test_a_run_shows_a_line_for_each_step_and_nothing_of_their_logs(packages, tmp_path):
    finished = run("run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path / "home", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (cli.OK, "")
    first, step, last, output = finished.stdout.splitlines()
    assert first.startswith(f"speech  {tmp_path}/home/runs/")
    assert re.fullmatch(r" +\d+\.\d s  say", step)
    assert re.fullmatch(r"speech succeeded in \d+\.\d s", last)
    assert output == "  Output    hi hi"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_parameters_come_from_a_file_and_the_command_line_wins(packages, tmp_path):
    (tmp_path / "values.yaml").write_text("text: file\ncount: 3\n")
    words = ("run", packages / "speech.yaml", "--params", tmp_path / "values.yaml", "-p", "count=1", "--home", tmp_path)
    assert "  Output    file\n" in run(*words).stdout


def test_a_failed_run_shows_the_steps_traceback_and_its_log(packages, tmp_path):
    finished = run("run", packages / "failure.yaml", "--home", tmp_path)
    assert finished.returncode == cli.FAILED
    assert re.search(r"^ +\d+\.\d s  fail  failed$", finished.stdout, re.MULTILINE)
    assert "KeyError: 'first of two'" in finished.stdout
    assert "  error     fail failed: ValueError: second of two" in finished.stdout
    log = Path(re.search(r"^  log       (.*)$", finished.stdout, re.MULTILINE)[1])
    assert "some words before the failure" in log.read_text()


@pytest.mark.parametrize(("verdict", "status"), [("pass", cli.OK), ("fail", cli.REFUSED), ("inconclusive", cli.REFUSED)])
def test_the_gates_decision_is_the_exit_code(packages, tmp_path, verdict, status):
    finished = run("run", packages / "branches.yaml", "-p", "kind=quiet", "-p", f"verdict={verdict}", "--home", tmp_path)
    assert finished.returncode == status, finished.stdout
    assert f"decision  {verdict}" in finished.stdout
    assert ("because" in finished.stdout) == (verdict != "pass")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "text=hi", "-p", "count=three"], "count = 'three': it must be a whole number"),
        (["-p", "txt=hi"], "txt = 'hi': speech has no such parameter"),
        ([], "speech also needs text"),
        (["--params", "nothing.yaml"], "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line_and_no_run(packages, tmp_path, words, message):
    finished = run("run", packages / "speech.yaml", "--home", tmp_path, *words)
    assert finished.returncode == cli.BAD_INPUT
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("modelyard: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_the_traceback_of_an_error_is_shown_on_demand(packages):
    assert "Traceback" in run("--debug", "run", packages / "speech.yaml").stderr


def test_the_home_comes_from_the_environment(packages, tmp_path):
    run("run", packages / "speech.yaml", "-p", "text=hi", MODELYARD_HOME=str(tmp_path / "yard"))
    assert list((tmp_path / "yard" / "runs").glob("*-speech-*/run.json"))


def test_a_terminal_gets_colours_and_the_step_that_runs(packages, tmp_path):
    written, status = on_a_terminal("run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path)
    assert status == 0
    assert "\x1b[32msay\x1b[0m" in written
    assert "say 0 s" in written
    # The line of the running step is wiped before the next is written.
    assert written.index("say 0 s") < written.index("\r\x1b[K", written.index("say 0 s")) < written.index("\x1b[32msay")


def test_no_colour_is_honoured_on_a_terminal(packages, tmp_path):
    written, _ = on_a_terminal("run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path, NO_COLOR="1")
    assert "say 0 s" in written
    assert not re.search(r"\x1b\[\d*m", written)


def test_a_dumb_terminal_gets_plain_lines(packages, tmp_path):
    written, _ = on_a_terminal("run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path, TERM="dumb")
    assert "\x1b" not in written


@pytest.fixture
def signed(tmp_path, monkeypatch):
    """A signed model directory of the home, and its digest."""
    from tests.support.signed_models import make_signed_model

    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    provenance = make_signed_model(tmp_path / "model", model_name="fraud")
    return tmp_path / "model" / "signed", provenance.model_digest


def test_a_signed_model_is_verified_and_told(signed, capsys):
    directory, digest = signed
    assert cli.main(["verify", str(directory), "--name", "fraud", "--digest", digest]) == cli.OK
    shown = capsys.readouterr().out
    assert f"{directory}: verified" in shown
    assert digest in shown
    assert "not compared" not in shown


def test_what_was_not_compared_is_said(signed, capsys):
    assert cli.main(["verify", str(signed[0])]) == cli.OK
    shown = capsys.readouterr().out
    assert shown.count("not compared") == 2


@pytest.mark.parametrize("change", ["flip", "add", "remove", "name", "version"])
def test_a_model_that_is_not_what_it_is_said_to_be_fails(signed, change, capsys):
    directory, _ = signed
    words = ["verify", str(directory), "--name", "fraud"]
    spec = directory / "modelyard.json"
    if change == "flip":
        spec.write_bytes(bytes([spec.read_bytes()[0] ^ 1]) + spec.read_bytes()[1:])
    elif change == "add":
        (directory / "extra").write_text("")
    elif change == "remove":
        spec.unlink()
    elif change == "name":
        words[-1] = "another"
    else:
        words += ["--digest", "blake3:" + "0" * 64]
    assert cli.main(words) == cli.FAILED
    errors = capsys.readouterr().err
    assert errors.startswith("modelyard: ")
    assert len(errors.splitlines()) == 1


def test_another_signers_key_is_not_enough(signed, tmp_path, monkeypatch, capsys):
    from modelyard.components.signing.keys import private_key_path

    own = tmp_path / "home" / "keys" / "signing.pub"
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "another"))
    private_key_path()
    assert cli.main(["verify", str(signed[0]), "--key", str(own.with_name("nothing.pub"))]) != cli.OK
    assert cli.main(["verify", str(signed[0]), "--key", str(tmp_path / "another" / "keys" / "signing.pub")]) == cli.FAILED
    assert cli.main(["verify", str(signed[0]), "--key", str(own)]) == cli.OK


def test_a_replayed_version_fails(signed, capsys):
    from modelyard.components.tracking.connection import client

    directory, digest = signed
    registry = client()
    registry.create_registered_model("fraud")
    for known in (digest, "blake3:" + "0" * 64):
        registry.create_model_version("fraud", source=str(directory), tags={"digest": known})
    assert cli.main(["verify", str(directory), "--name", "fraud", "--version", "1"]) == cli.OK
    capsys.readouterr()
    assert cli.main(["verify", str(directory), "--name", "fraud", "--version", "2"]) == cli.FAILED
    assert "another version" in capsys.readouterr().err
    assert cli.main(["verify", str(directory), "--name", "fraud", "--version", "3"]) == cli.BAD_INPUT


def test_a_version_needs_a_name(signed, capsys):
    assert cli.main(["verify", str(signed[0]), "--version", "1"]) == cli.BAD_INPUT
    assert "--name" in capsys.readouterr().err


def test_demo_and_benchmark_parse_their_own_arguments(capsys):
    for command in ("demo", "benchmark"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        assert end.value.code == 0
        assert f"modelyard {command}" in capsys.readouterr().out


def test_json_of_a_run_can_be_read_by_scripts(packages, tmp_path):
    run("run", packages / "speech.yaml", "-p", "text=hi", "--home", tmp_path)
    (record,) = (tmp_path / "runs").glob("*/run.json")
    assert json.loads(record.read_text())["format_version"] == 1
