"""Runs a compiled pipeline on this machine: the file that a cluster gets, its steps as processes of this environment.

KFP's local runner decides what runs when; this module starts the steps (``step_process``), writes down what happened
(``run_record``), and answers what the runner does badly: its messages and the steps' output go to log files, a failure
comes back with the step that failed and its last lines, and an interrupted run ends its steps.

    from modelyard.scripts.local_run import run_pipeline

    result = run_pipeline("compiled/release.yaml", {"model_name": "fraud", ...}, home=".modelyard")
    result.state, result.step("register_model").outputs["version"]
"""

import builtins
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelyard.components.announcements import MARK
from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.components.storage.files import atomic_file
from modelyard.scripts import compiled
from modelyard.scripts.run_record import RunRecord, open_run
from modelyard.scripts.step_process import Lifeline, StepProcess

# As long as Kubernetes gives a pod between SIGTERM and SIGKILL.
GRACE_SECONDS = 30.0
_TAIL_LINES = 60
_FOLLOW_SECONDS = 0.5
_REPORT_SUFFIXES = {"system.HTML": ".html", "system.Markdown": ".md"}
# As a traceback names a ModelyardError; those that are private to a module never leave it.
_OWN_ERROR = re.compile(r"modelyard\.components\.(?:\w+\.)+[A-Z]\w*: ")
_one_run = threading.Lock()


@dataclass(frozen=True)
class Step:
    """What is known of one step.

    Attributes:
        name: its component's name (``train_xgboost``), with a number from the second step of that component on.
        state: ``running``, ``stopping`` (told once an interrupted step was asked to end), ``succeeded``, ``failed`` or
            ``cancelled``.
        component: its component's name.
        seconds: wall time.
        outputs: output parameters by name.
        artifacts: paths of output artifacts by name.
        reports: paths of those that a person reads (HTML, Markdown), copied to a name that a browser knows.
        log: the step's log file.
    """

    name: str
    state: str
    component: str = ""
    seconds: float = 0.0
    outputs: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        name: the pipeline's name.
        state: ``succeeded``, ``failed`` or ``cancelled``.
        folder: the run's folder.
        seconds: wall time.
        steps: in the order in which they started.
        skipped: names of the components that only branches use which were not taken.
        outputs: the pipeline's own outputs by name; artifacts as paths.
        decision: ``pass``, ``fail`` or ``inconclusive`` where a step gave one, else empty.
        reasons: the reasons that came with it.
        error: what went wrong, else empty; one line, or more where one of this package's errors has more.
        tail: last lines of the failed step's log; the message alone of one of this package's errors.
        signal: number of the signal that cancelled the run, else 0.
    """

    name: str
    state: str
    folder: Path
    seconds: float
    steps: tuple[Step, ...]
    skipped: tuple[str, ...] = ()
    outputs: dict[str, Any] = field(default_factory=dict)
    decision: str = ""
    reasons: str = ""
    error: str = ""
    tail: str = ""
    signal: int = 0

    def step(self, name: str) -> Step:
        """The step of this name.

        Raises:
            KeyError: it did not run.
        """
        return next((step for step in self.steps if step.name == name), None) or _missing(name)


def run_pipeline(
    package_path: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    home: str | os.PathLike[str],
    on_step: Callable[[Step], None] | None = None,
    on_start: Callable[[Path], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> RunResult:
    """Runs a compiled pipeline to its end.

    SIGINT and SIGTERM cancel it: steps get SIGTERM and ``GRACE_SECONDS`` to write a checkpoint, a second signal kills them.

    Args:
        package_path: the compiled YAML.
        parameters: values by name, as text or of the declared type; relative paths count from the current folder.
        home: folder of all local state; steps find it as ``MODELYARD_HOME``.
        on_step: called when a step starts and again when it ends.
        on_start: called with the run's folder before the first step.
        on_line: called with each line that a step announces (``announcements``), from another thread.

    Returns:
        The outcome; a failed run is a result, too.

    Raises:
        InvalidInput: the pipeline or a parameter cannot be used as given.
        NotAvailable: the home cannot be written, or this process is running a pipeline already.
    """
    package = compiled.read(package_path)
    values = compiled.check_local_values(package, compiled.check_parameters(package, parameters), Path.cwd())
    if not _one_run.acquire(blocking=False):
        raise NotAvailable("kfp's local runner keeps its state in the process: run one pipeline at a time, or use processes")
    try:
        state = Path(home).expanduser().resolve()
        record = open_run(
            state,
            package.name,
            {
                "package": str(package.path),
                "package_digest": file_digest(package.path),
                "parameters": values,
                "steps": [],
                "outputs": {},
                "error": "",
            },
        )
        try:
            if on_start:
                on_start(record.folder)
            return _Execution(package, record, state, on_step, on_line).run(values)
        finally:
            record.close()
    finally:
        _one_run.release()


class _Cancelled(BaseException):
    """Not an Exception: KFP's orchestrator would take it for a step's failure and retry."""


class _Refused(ModelyardError):
    """The pipeline cannot go on locally, though no step failed."""


class _Execution:
    """One run in progress."""

    def __init__(
        self,
        package: compiled.Package,
        record: RunRecord,
        home: Path,
        on_step: Callable[[Step], None] | None,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._package, self._record, self._on_step, self._on_line = package, record, on_step, on_line
        self._environment = {**os.environ, "MODELYARD_HOME": str(home)}
        self._lifeline = Lifeline()
        self._steps: dict[str, Step] = {}
        self._guard = threading.RLock()
        self._current = threading.local()
        self._processes: set[StepProcess] = set()
        self._signal = 0
        self._failed, self._refusal = "", ""
        self._stdout = sys.stdout
        self._timer: threading.Timer | None = None

    def run(self, values: dict[str, Any]) -> RunResult:
        began = time.monotonic()
        state, error, outputs = "failed", "", {}
        try:
            with (self._record.logs / "pipeline.log").open("a", encoding="utf-8", buffering=1) as log:
                try:
                    with contextlib.redirect_stdout(log), self._signals(), self._runner():
                        outputs = self._run_kfp(values)
                    state = "succeeded"
                except _Cancelled:
                    state = "cancelled"
                except (RuntimeError, ValueError, ModelyardError) as raised:
                    # KFP's way to say that a step failed, or that its runner cannot do what the pipeline asks for.
                    traceback.print_exc(file=log)
                    error = self._refusal or f"{type(raised).__name__}: {raised}"
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            if self._timer:
                self._timer.cancel()
            self._lifeline.close()
            result = self._result(state, error, outputs, time.monotonic() - began)
        return result

    def _run_kfp(self, values: dict[str, Any]) -> dict[str, Any]:
        from google.protobuf import json_format
        from kfp.local import pipeline_orchestrator
        from kfp.pipeline_spec import pipeline_spec_pb2

        try:
            specification = json_format.ParseDict(compiled.load(self._package.text), pipeline_spec_pb2.PipelineSpec())
        except json_format.ParseError as error:
            raise InvalidInput("pipeline", str(self._package.path), f"compile it with this kfp release ({error})") from error
        outputs = pipeline_orchestrator.run_local_pipeline(specification, values)
        if self._refusal:
            raise _Refused(self._refusal)
        return {name: _plain(value) for name, value in sorted(outputs.items())}

    def _result(self, state: str, error: str, outputs: dict[str, Any], seconds: float) -> RunResult:
        tail = ""
        if state == "failed" and self._failed and not self._refusal:
            tail = last_lines(Path(self._steps[self._failed].log))
            own = own_error(tail)
            error = f"{self._failed} failed: {own or (tail.splitlines() or ['its log is empty'])[-1].strip()}"
            tail = own or tail
        if state == "cancelled":
            error = "\n".join([f"cancelled by {signal.Signals(self._signal).name}", *self._last_words()])
        judged = [step for step in self._steps.values() if step.outputs.get("decision")]
        result = RunResult(
            name=self._package.name,
            state=state,
            folder=self._record.folder,
            seconds=round(seconds, 3),
            steps=tuple(self._steps.values()),
            skipped=self._skipped() if state == "succeeded" else (),
            outputs=outputs,
            decision=judged[-1].outputs["decision"] if judged else "",
            reasons=str(judged[-1].outputs.get("reasons", "")) if judged else "",
            error=error,
            tail=tail,
            signal=self._signal,
        )
        self._record.content.update(
            state=state,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=result.seconds,
            outputs=outputs,
            decision=result.decision,
            error=error,
            skipped=list(result.skipped),
        )
        self._save()
        return result

    def _last_words(self) -> list[str]:
        """What the cancelled steps said of what they leave."""
        cancelled = [step for step in self._steps.values() if step.state == "cancelled"]
        return [said for step in cancelled if (said := own_error(last_lines(Path(step.log))))]

    def _skipped(self) -> tuple[str, ...]:
        ran = {step.component for step in self._steps.values()}
        return tuple(name for name in compiled.component_names(compiled.load(self._package.text)) if name not in ran)

    # Steps, as KFP's orchestrator calls for them.

    def execute_task(self, original: Callable[..., Any], **arguments: Any) -> Any:
        """Stands in for KFP's ``execute_single_task``: writes down when a task starts and how it ends."""
        if self._signal:
            raise _Cancelled
        task = arguments["task_spec"]
        executor = arguments["executors"][arguments["components"][task.component_ref.name].executor_label]
        if executor.WhichOneof("spec") == "importer":
            # It has no process and takes no time: nobody waits for it.
            return original(**arguments)
        # Retries are for lost nodes. Here a step that failed would fail again, after minutes of backing off.
        once = type(task)()
        once.CopyFrom(task)
        once.ClearField("retry_policy")
        began = time.monotonic()
        name = self._start(compiled.function_name(list(executor.container.args)) or arguments["task_name"])
        self._current.name = name
        state, outputs = "failed", {}
        try:
            found, status = original(**{**arguments, "task_spec": once})
            # KFP gives them in an order that changes from run to run.
            outputs = dict(sorted(found.items()))
            state = "succeeded" if status.name == "SUCCESS" else "failed"
            return outputs, status
        except _Cancelled:
            state = "cancelled"
            raise
        finally:
            artifacts = {key for key, value in outputs.items() if _is_artifact(value)}
            self._end(
                name,
                state=state,
                seconds=round(time.monotonic() - began, 3),
                outputs={key: _plain(value) for key, value in outputs.items() if key not in artifacts},
                artifacts={key: _plain(value) for key, value in outputs.items() if key in artifacts},
                reports=self._keep_reports(name, outputs),
            )

    def _keep_reports(self, step: str, outputs: dict[str, Any]) -> dict[str, str]:
        """KFP's artifact files have no suffix, so a double click would not open them."""
        reports = {}
        for name, artifact in outputs.items():
            suffix = _REPORT_SUFFIXES.get(getattr(artifact, "schema_title", ""))
            if suffix and Path(artifact.path).is_file():
                report = self._record.reports / f"{step}.{name}{suffix}"
                report.parent.mkdir(exist_ok=True)
                with atomic_file(report) as partial:
                    shutil.copyfile(artifact.path, partial)
                reports[name] = str(report)
        return reports

    def run_process(self, command: list[str], environment: dict[str, str]) -> int:
        """Runs the process of the current thread's task and returns its exit status."""
        step = self._steps[self._current.name]
        process = StepProcess(
            command,
            {**self._environment, **environment},
            log=Path(step.log),
            scratch=self._record.scratch,
            lifeline=self._lifeline,
            lock=self._record.lock,
        )
        self._processes.add(process)
        try:
            if self._signal:
                raise _Cancelled
            with self._followed(Path(step.log)):
                status = process.run()
        finally:
            self._processes.discard(process)
        if self._signal:
            raise _Cancelled
        if status != 0:
            self._failed = step.name
        if status < 0:
            with Path(step.log).open("a", encoding="utf-8") as log:
                log.write(f"\nended by {_signal_name(-status)}\n")
        return status

    @contextlib.contextmanager
    def _followed(self, log: Path) -> Iterator[None]:
        """Passes on what the step announces while the block runs, the last of it before the block ends."""
        if self._on_line is None:
            yield
            return
        log.touch()
        ended = threading.Event()
        follower = threading.Thread(target=self._follow, args=(log, ended), daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()

    def _follow(self, log: Path, ended: threading.Event) -> None:
        # Whoever does not read on is noticed where the run itself says its next word.
        with log.open(encoding="utf-8", errors="replace") as written, contextlib.suppress(BrokenPipeError):
            rest, last = "", False
            while not last:
                last = ended.wait(_FOLLOW_SECONDS)
                *lines, rest = (rest + written.read()).split("\n")
                for line in lines:
                    if self._on_line and line.startswith(MARK):
                        self._on_line(line.removeprefix(MARK))

    def check_condition(self, original: Callable[..., bool], resolve: Callable[..., Any], condition: str, store: Any) -> bool:
        """Stands in for KFP's ``evaluate_condition``, which skips every branch when a text holds a quote."""
        for name in compiled.condition_names(condition):
            value = resolve(name, store)
            if isinstance(value, str) and set(value) & compiled.UNSAFE_IN_CONDITIONS:
                self._refusal = (
                    f"the pipeline branches on {name.removeprefix('pipelinechannel--')} = {value!r}, and the local runner "
                    f"cannot compare text with quotes, backslashes or line ends"
                )
                raise _Refused(self._refusal)
        return original(condition, store)

    def _start(self, wanted: str) -> str:
        with self._guard:
            name, count = wanted, 1
            while name in self._steps:
                count += 1
                name = f"{wanted}_{count}"
            step = Step(name, "running", component=wanted, log=str(self._record.logs / f"{name}.log"))
            self._steps[name] = step
            self._save()
            self._tell(step)
            return name

    def _end(self, name: str, **changes: Any) -> None:
        with self._guard:
            step = self._steps[name] = replace(self._steps[name], **changes)
            self._save()
            self._tell(step)

    def _save(self) -> None:
        self._record.content["steps"] = [asdict(step) for step in self._steps.values()]
        self._record.save()

    def _tell(self, step: Step) -> None:
        if self._on_step:
            # KFP's messages go to a file; what the caller prints does not.
            with contextlib.redirect_stdout(self._stdout):
                self._on_step(step)

    # What the process lends to the run.

    @contextlib.contextmanager
    def _runner(self) -> Iterator[None]:
        """KFP's local runner, set up for this run and put back as it was.

        kfp is pinned exactly, so its internals can be relied upon; a test fails if they move.
        """
        from kfp import local
        from kfp.local import config, status, subprocess_task_handler
        from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor

        execution = self

        class Handler(subprocess_task_handler.SubprocessTaskHandler):
            def run(self) -> status.Status:
                exit_status = execution.run_process(self.full_command, self.env_vars)
                return status.Status.SUCCESS if exit_status == 0 else status.Status.FAILURE

        evaluator = enhanced_dag_orchestrator.ConditionEvaluator
        execute, evaluate, configured = (
            task_executor.execute_single_task,
            evaluator.evaluate_condition,
            config.LocalExecutionConfig.instance,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_output_restored())
            stack.enter_context(_replaced(subprocess_task_handler, "SubprocessTaskHandler", Handler))
            stack.enter_context(
                _replaced(
                    task_executor, "execute_single_task", lambda **arguments: execution.execute_task(execute, **arguments)
                )
            )
            stack.enter_context(
                _replaced(
                    evaluator,
                    "evaluate_condition",
                    staticmethod(
                        lambda condition, io_store: execution.check_condition(
                            evaluate, evaluator._resolve_pipeline_channel, condition, io_store
                        )
                    ),
                )
            )
            stack.callback(setattr, config.LocalExecutionConfig, "instance", configured)
            stack.enter_context(warnings.catch_warnings())
            # Own images have no "python" in their names, and limits are for the cluster.
            warnings.filterwarnings("ignore", message="You may be attemp", category=RuntimeWarning)
            warnings.filterwarnings("ignore", message=r"Task .*: settings .* have no effect")
            local.init(
                local.SubprocessRunner(use_venv=False),
                pipeline_root=str(self._record.artifacts),
                # KFP deletes this folder after the run, so it must be one of ours.
                workspace_root=str(self._record.scratch / "workspace"),
            )
            yield

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._cancel) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _cancel(self, number: int, _frame: Any) -> None:
        """The signal handler."""
        if self._signal:
            self._kill_processes()
            return
        self._signal = number
        processes = list(self._processes)
        for process in processes:
            process.ask_to_stop()
        # In a thread of its own: a signal handler may interrupt the very code that it would call.
        threading.Thread(target=self._tell_stopping, daemon=True).start()
        self._timer = threading.Timer(GRACE_SECONDS, self._kill_processes)
        self._timer.daemon = True
        self._timer.start()
        if not processes:
            raise _Cancelled

    def _tell_stopping(self) -> None:
        with self._guard:
            for step in list(self._steps.values()):
                if step.state == "running":
                    self._tell(replace(step, state="stopping"))

    def _kill_processes(self) -> None:
        for process in list(self._processes):
            process.kill()


@contextlib.contextmanager
def _output_restored() -> Iterator[None]:
    """Two steps at once can leave behind KFP's own handler on the root logger, and its indenting ``print``."""
    root = logging.getLogger()
    handlers, level, own_print = root.handlers[:], root.level, builtins.print
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        builtins.print = own_print


def last_lines(log: Path) -> str:
    """The traceback at the end of a step's log (with the exceptions that caused it), else its last lines."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    start = text.rfind("Traceback (most recent call last):")
    while start > 0:
        before = text[:start].rstrip()
        if not before.endswith(("exception occurred:", "direct cause of the following exception:")):
            break
        start = text.rfind("Traceback (most recent call last):", 0, start)
    lines = text[max(start, 0) :].rstrip().splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def own_error(tail: str) -> str:
    """The message, all its lines, of the error that a traceback ends with, if it is one of this package's; else empty.

    Those are meant for the user, who has no use for the lines of code above them.
    """
    lines = tail[max(tail.rfind("Traceback (most recent call last):"), 0) :].splitlines()
    raised = next((index for index, line in enumerate(lines) if index and line and not line.startswith(" ")), len(lines))
    return _OWN_ERROR.sub("", "\n".join(lines[raised:])) if _OWN_ERROR.match("".join(lines[raised : raised + 1])) else ""


def _is_artifact(value: Any) -> bool:
    from kfp import dsl

    return isinstance(value, dsl.Artifact) or (isinstance(value, list) and bool(value) and isinstance(value[0], dsl.Artifact))


def _plain(value: Any) -> Any:
    """JSON-ready: an artifact becomes its path."""
    from kfp import dsl

    if isinstance(value, dsl.Artifact):
        return value.path or value.uri
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL, which is also what a system sends that runs out of memory"
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _missing(name: str) -> Step:
    raise KeyError(name)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)
