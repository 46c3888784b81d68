import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from modelyard.scripts import cli
from modelyard.scripts.benchmark import command, import_clock
from modelyard.scripts.benchmark.figure import Figure, Row
from modelyard.scripts.benchmark.measuring import Measurement, MeasurementFailed, Task, measure, measure_in_turn
from modelyard.scripts.benchmark.registry import FIGURES
from modelyard.scripts.benchmark.report import Outcome, against, as_json, as_markdown, quantity
from tests.support.waiting import until

CHECKOUT = Path(__file__).resolve().parents[2]
# The processes that are measured run elsewhere and must find this module.
HERE = {"PYTHONPATH": str(CHECKOUT)}
RUN = {
    "date": "2026-11-22T00:00:00+00:00",
    "revision": "abc",
    "quick": False,
    "machine": {"cores": 2, "cpu": "A CPU", "memory_gib": 8.0, "system": "An OS", "load": 0.5},
    "versions": {"python": "3.11.7"},
}


# Work to be measured.


def write_name(clock, name, path):
    with Path(path).open("a") as file:
        file.write(name)
    return {}


def wait_outside_of_the_clock(clock):
    began = time.perf_counter()
    time.sleep(0.1)
    with clock:
        pass
    return {"whole": time.perf_counter() - began}


def compute_in_a_child(clock):
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time())"
    with clock:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"child": float(done.stdout)}


def watch_a_child(clock):
    grandchild = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ntime.sleep(60)"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True) as process:
        clock.watch([process.pid])
        own = time.process_time()
        with clock:
            process.stdout.readline()
            while time.process_time() < own + 1:
                pass
        os.killpg(process.pid, signal.SIGKILL)
    return {}


def watch_what_has_ended(clock):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    clock.watch([process.pid])
    with clock:
        pass
    return {}


def fill_memory(clock):
    with clock:
        filled = bytearray(os.urandom(1 << 20) * 300)
    return {"bytes": len(filled)}


def show_environment(clock):
    return {name: value for name, value in os.environ.items() if name.startswith(("MODELYARD_", "MLFLOW_"))}


def fail(clock):
    raise ValueError("no such luck")


# Measuring.


def test_tasks_are_measured_in_turn(tmp_path):
    order = tmp_path / "order"
    tasks = {name: Task(write_name, {"name": name, "path": str(order)}, HERE) for name in "ab"}
    measured = measure_in_turn(tasks, tmp_path, repeats=2)
    assert order.read_text() == "abab"
    assert measured["a"].repeats == 2


def test_only_what_the_clock_encloses_is_counted(tmp_path):
    measured = measure(Task(wait_outside_of_the_clock, {}, HERE), tmp_path)
    assert 0 < measured.seconds < measured.facts["whole"] - 0.1


def test_the_time_of_child_processes_counts_as_the_work_s(tmp_path):
    measured = measure(Task(compute_in_a_child, {}, HERE), tmp_path)
    # The system counts in ticks.
    assert measured.cpu_seconds >= measured.facts["child"] - 0.05


def test_a_watched_server_s_time_counts_with_its_descendants_and_the_client_s_does_not(tmp_path):
    measured = measure(Task(watch_a_child, {}, HERE), tmp_path)
    assert 0.15 < measured.cpu_seconds < 0.9


def test_a_watched_server_that_has_ended_is_no_measurement(tmp_path):
    with pytest.raises(MeasurementFailed, match="has ended"):
        measure(Task(watch_what_has_ended, {}, HERE), tmp_path)


@pytest.fixture
def large_process():
    """This process holds memory, so that what is counted of it as a child's own is seen."""
    held = bytearray(os.urandom(1 << 20) * 1024)
    yield
    assert len(held) == 1 << 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere a child's count begins with its parent's size")
def test_the_peak_of_memory_is_the_process_s_own(tmp_path, large_process):
    measured = measure(Task(fill_memory, {}, HERE), tmp_path)
    filled = measured.facts["bytes"] / 2**30
    assert filled < measured.peak_gib < filled + 0.5


def test_what_is_measured_sees_no_registry_store_or_key_of_the_user(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MODELYARD_MODEL_STORE", "MODELYARD_SIGNING_KEY", "MODELYARD_HOME"):
        monkeypatch.setenv(name, "/somebody/else")
    measured = measure(Task(show_environment, {}, HERE), tmp_path)
    assert measured.facts == {"MODELYARD_HOME": str(tmp_path / "home")}


def test_work_that_fails_shows_the_end_of_its_output(tmp_path):
    with pytest.raises(MeasurementFailed, match="no such luck"):
        measure(Task(fail, {}, HERE), tmp_path)


def test_nothing_is_left_of_a_process_that_was_measured(tmp_path):
    measure(Task(show_environment, {}, HERE), tmp_path)
    assert list(tmp_path.iterdir()) == []


# The report.


def _row(**changes):
    return Row(**{"work": "some | work", "unit": "s", "ours": 2.0, "peer_name": "a peer", "peer": 5.0, **changes})


def test_a_row_says_how_much_faster_or_slower_it_is():
    assert against(_row()) == "2.5 x faster"
    assert against(_row(ours=5.0, peer=2.0)) == "2.5 x slower"
    assert against(_row(ours=5.0, peer=2.0, larger_is_better=True)) == "2.5 x faster"
    assert against(_row(ours=2.0, peer=5.0, larger_is_better=True)) == "2.5 x slower"
    assert against(_row(peer_name="", peer=None)) == "–"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0123456, "0.0123 s"), (1.0, "1.00 s"), (12.345, "12.3 s"), (99.96, "100 s"), (12345.6, "12,346 s")]
)
def test_a_quantity_has_three_digits_or_is_whole(value, shown):
    assert quantity(value, "s") == shown


def test_the_table_has_a_cell_for_each_heading():
    figure = Figure("one", "One", lambda setting: [])
    rows = [_row(target="at most 3 s", reached=True, differences=0, note="a\nnote"), _row(reached=False), _row()]
    table = as_markdown([Outcome(figure, rows)], RUN).splitlines()[2:]
    assert len(table) == 2 + len(rows)
    assert {line.replace("\\|", "").count("|") for line in table} == {9}
    assert "| at most 3 s | yes | 0 differences; a note |" in table[2]
    assert "| **no** |" in table[3]


def test_a_figure_that_is_missing_is_named_with_the_reason():
    figure = Figure("one", "One", lambda setting: [])
    outcomes = [Outcome(figure, error="Traceback\nValueError: no such luck"), Outcome(figure, skipped="not measured: no peer")]
    table = as_markdown(outcomes, RUN)
    assert "One: ValueError: no such luck\n" in table
    assert "One: not measured: no peer\n" in table


def test_the_json_holds_everything_that_was_measured():
    figure = Figure("one", "One", lambda setting: [])
    row = _row(target="at most 3 s", reached=True, measurements={"ours": Measurement(2.0, 3.0, 0.5, 3, {"rows": 7})})
    content = json.loads(json.dumps(as_json([Outcome(figure, [row], 9.0)], RUN)))
    assert content["machine"] == RUN["machine"]
    assert content["versions"] == RUN["versions"]
    (shown,) = content["figures"][0]["rows"]
    assert shown["ratio"] == 0.4
    assert shown["measurements"]["ours"] == {
        "seconds": 2.0,
        "cpu_seconds": 3.0,
        "peak_gib": 0.5,
        "repeats": 3,
        "facts": {"rows": 7},
    }


# The command.


def _benchmark(tmp_path, *words):
    """The exit code, the report and the table of ``modelyard benchmark --quick``."""
    status = cli.main(["benchmark", "--quick", "--output", str(tmp_path / "out"), *words])
    report = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    return status, report, (tmp_path / "out" / "benchmark.md").read_text()


def _check(report, name):
    """The rows of a figure, complete and with agreeing results."""
    (figure,) = [figure for figure in report["figures"] if figure["name"] == name]
    assert not figure["error"]
    assert figure["rows"]
    for row in figure["rows"]:
        assert row["ours"] > 0
        assert row["peer"] is None or row["peer"] > 0
        assert row["differences"] in (0, None)
        assert (row["reached"] is None) == (row["target"] == "")
        for measured in row["measurements"].values():
            assert measured["cpu_seconds"] >= 0
            assert measured["peak_gib"] > 0
    return figure["rows"]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files go; to be empty at the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_quick_run_compares_and_writes_what_was_asked_for(tmp_path, scratch, capsys):
    status, report, table = _benchmark(tmp_path, "--only", "sign", "--only", "bootstrap", "--only", "simulate")
    assert status == cli.OK
    assert [figure["name"] for figure in report["figures"]] == ["sign", "bootstrap", "simulate"]
    assert report["quick"] is True
    assert report["versions"]["python"]
    assert report["machine"]["cores"] >= 1
    assert len(_check(report, "sign")) == 2
    bootstrapped = _check(report, "bootstrap")
    assert [row["differences"] for row in bootstrapped] == [0] * len(bootstrapped)
    (simulated,) = _check(report, "simulate")
    assert simulated["measurements"]["modelyard"]["facts"]["frauds"] > 0
    assert capsys.readouterr().out.startswith(table)


@pytest.mark.slow
def test_features_are_the_same_by_every_way_of_joining(tmp_path, scratch):
    status, report, _ = _benchmark(tmp_path, "--only", "fetch")
    assert status == cli.OK
    rows = _check(report, "fetch")
    assert [row["differences"] for row in rows] == [0, 0, 0]


@pytest.mark.slow
def test_every_component_of_the_pipeline_has_its_start_measured(tmp_path, scratch):
    status, report, _ = _benchmark(tmp_path, "--only", "start")
    assert status == cli.OK
    components = {row["work"].removeprefix("imports of ") for row in _check(report, "start")}
    from modelyard.scripts import compiled

    package = compiled.read(compiled.find("quickstart"))
    untried = set(compiled.component_names(compiled.load(package.text))) - components
    assert untried <= {"train_torch"}


@pytest.mark.slow
@pytest.mark.server
def test_a_request_s_cost_is_measured_in_every_protocol_and_nothing_is_left_running(tmp_path, scratch):
    status, report, _ = _benchmark(tmp_path, "--only", "serve")
    assert status == cli.OK
    rows = _check(report, "serve")
    for batch in ("one row", "100 rows"):
        for form in ("V1 lists", "V1 dicts", "V2 JSON", "V2 binary"):
            (judged,) = [row for row in rows if row["work"] == f"{batch} by {form}: CPU of a request" and row["target"]]
            assert judged["measurements"]["modelyard"]["facts"]["sampled"] > 0
    assert {row["peer_name"] for row in rows} >= {"FastAPI + orjson", "kserve", "mlflow models serve, MLflow frame"}
    assert "load" in report["machine"]
    # Every server had its files in there, and names them in its command line.
    assert [process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if _names(process, scratch)] == []


def _names(process, folder):
    return any(str(folder) in word for word in process.info["cmdline"] or ())


def test_a_demo_s_seconds_are_shown(tmp_path):
    demo = tmp_path / "demo.json"
    demo.write_text(json.dumps({"releases": [{}, {}], "seconds": {"simulate": 1.5, "train": 20.0}}))
    status, report, _ = _benchmark(tmp_path, "--only", "demo", "--demo", str(demo))
    assert status == cli.OK
    (row,) = _check(report, "demo")
    assert (row["ours"], row["reached"]) == (21.5, True)


def test_without_a_demo_its_figure_is_said_to_be_missing(tmp_path):
    status, report, table = _benchmark(tmp_path, "--only", "demo")
    assert status == cli.OK
    assert report["figures"][0]["rows"] == []
    assert "modelyard demo" in table


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": {"a": "long"}, "releases": []}', '{"seconds": {}}'])
def test_a_demo_file_that_is_none_is_refused_before_anything_is_measured(tmp_path, capsys, content):
    demo = tmp_path / "demo.json"
    demo.write_text(content)
    assert cli.main(["benchmark", "--demo", str(demo), "--output", str(tmp_path / "out")]) == cli.BAD_INPUT
    assert "--demo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_figure_is_refused_with_those_there_are(tmp_path, capsys):
    assert cli.main(["benchmark", "--only", "speed", "--output", str(tmp_path)]) == cli.BAD_INPUT
    shown = capsys.readouterr().err
    assert all(figure.name in shown for figure in FIGURES)


def _failing(setting):
    measure(Task(fail, {}, HERE), setting.scratch)
    return []


def test_a_figure_that_fails_leaves_the_others_and_ends_in_an_error(tmp_path, scratch, monkeypatch):
    failing, good = Figure("failing", "Failing", _failing), Figure("good", "Good", lambda setting: [_row()])
    monkeypatch.setattr(command, "FIGURES", (failing, good))
    status, report, table = _benchmark(tmp_path)
    assert status == cli.FAILED
    assert "no such luck" in report["figures"][0]["error"]
    assert "Failing: ValueError: no such luck" in table
    _check(report, "good")


def test_results_that_differ_end_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "FIGURES", (Figure("odd", "Odd", lambda setting: [_row(differences=1)]),))
    status, _, table = _benchmark(tmp_path)
    assert status == cli.FAILED
    assert "1 differences" in table


def test_a_figure_out_of_reach_is_no_error(tmp_path, monkeypatch):
    row = _row(target="at most 1 s", reached=False)
    monkeypatch.setattr(command, "FIGURES", (Figure("far", "Far", lambda setting: [row]),))
    assert _benchmark(tmp_path)[0] == cli.OK


def test_a_figure_whose_peer_is_not_installed_is_left_out(tmp_path, monkeypatch):
    figure = Figure("rare", "Rare", lambda setting: [_row()], needs=("no_such_library",))
    monkeypatch.setattr(command, "FIGURES", (figure,))
    status, report, table = _benchmark(tmp_path)
    assert status == cli.OK
    assert report["figures"][0]["rows"] == []
    assert "no_such_library must be installed" in table


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_sigterm_ends_the_process_that_is_measured_and_removes_its_files(tmp_path, scratch):
    modelyard = Path(sys.executable).with_name("modelyard")
    words = ["benchmark", "--quick", "--only", "bootstrap", "--output", str(tmp_path / "out")]
    process = subprocess.Popen([modelyard, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    measured = []

    def begun():
        assert process.poll() is None
        measured[:] = children.read_text().split()
        return measured

    try:
        assert "bootstrap" in process.stderr.readline()
        until(begun)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    until(lambda: not any(Path("/proc", child).exists() for child in measured))
    assert not (tmp_path / "out").exists()


# The clock in a pipeline's steps.


def test_the_import_clock_counts_outermost_imports_of_a_step_once(tmp_path, large_process):
    hook, clocks, package = tmp_path / "hook", tmp_path / "clocks", tmp_path / "package"
    for folder in (hook, clocks, package):
        folder.mkdir()
    (hook / "sitecustomize.py").write_text(Path(import_clock.__file__).read_text())
    (package / "outer.py").write_text("import inner\n")
    (package / "inner.py").write_text("import time\ntime.sleep(0.05)\n")
    step = tmp_path / "step.py"
    step.write_text("import outer\nimport inner\nimport importlib\nimportlib.import_module('wave')\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{hook}{os.pathsep}{package}",
        import_clock.FOLDER_VARIABLE: str(clocks),
    }
    subprocess.run([sys.executable, step, "--function_to_execute", "some_step"], env=environment, check=True)
    subprocess.run([sys.executable, step], env=environment, check=True)
    (written,) = clocks.iterdir()
    content = json.loads(written.read_text())
    assert content["component"] == "some_step"
    seconds = {name: wall for name, wall, _ in content["imports"]}
    assert set(seconds) >= {"outer", "wave"}
    assert "inner" not in seconds
    assert seconds["outer"] >= 0.05
    assert content["peak_gib"] > 0
    if Path("/proc/self/status").exists():
        assert content["peak_gib"] < 0.5
