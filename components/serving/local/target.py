"""The serving target of one machine: predictor processes behind Envoy on 127.0.0.1, kept up by a supervisor.

    >>> target = LocalTarget()
    >>> target.start_canary("fraud", ServedModel("7", "blake3:5f3c…", "/home/me/.modelyard/models/fraud/5f3c…"))
    >>> target.promote("fraud", "blake3:5f3c…")
    >>> target.state("fraud").url
    'http://127.0.0.1:8080'

Everything lies in ``HOME/serving`` and outlives the process that asked for it. A verb writes what is wanted, starts a
supervisor if there is none, and waits until it says that it is so.
"""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from modelyard.components import settings
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable, VerificationFailed
from modelyard.components.serving.local.metrics import PredictorMetrics, read_metrics
from modelyard.components.serving.local.predictor_process import (
    START_SECONDS,
    end_predictors,
    find_predictors,
    get,
    kept_environment,
    logs_elsewhere,
)
from modelyard.components.serving.local.processes import ProcessIdentity, find, identify, spawn_detached
from modelyard.components.serving.local.proxy import BackendCounts, Proxy
from modelyard.components.serving.local.state import (
    PROXY_FOLDER,
    STATE_FILE,
    SUPERVISOR_LOG,
    Desired,
    DesiredArm,
    DesiredModel,
    Observed,
    ObservedArm,
    ObservedRoute,
    as_error,
    make_folder,
    read_desired,
    read_observed,
    write_desired,
    write_json,
)
from modelyard.components.serving.target import (
    Arm,
    ArmCounts,
    Counts,
    RecordChanged,
    ServedModel,
    ServingState,
    TargetChanged,
)
from modelyard.components.storage.locks import exclusive_lock

DEFAULT_PORT = 8080
PORT_VARIABLE = "MODELYARD_SERVING_PORT"
# Longer than the supervisor waits for a predictor, so that it is the one to say what went wrong.
_READY_SECONDS = START_SECONDS + 30.0
_OBEY_SECONDS = 60.0
# Longer than the supervisor waits for slow clients of the proxy, then for its last requests, then for the predictors.
_STOP_SECONDS = 180.0
_POLL_SECONDS = 0.05
_ALIVE_SECONDS = 1.0
_START_AGAIN_SECONDS = 5.0
# A supervisor that has just started takes over what runs within this time; one that runs but tells nothing is replaced.
_LOOK_SECONDS = 20.0
_MUTE_SECONDS = 30.0
SUPERVISOR = "modelyard.components.serving.local.supervisor"
# Settings that a predictor gets as they are where its arm is asked for, so that a supervisor that somebody else starts
# later trusts the same signatures and writes the same log. None of them is a secret.
_PATHS = (
    "MODELYARD_TRUSTED_CERTIFICATES",
    "MODELYARD_SIGSTORE_TRUST_CONFIG",
    "MODELYARD_MODEL_STORE",
    "MODELYARD_PREDICTION_LOG",
)
_SETTINGS = (
    *_PATHS,
    "MODELYARD_TRUST",
    "MODELYARD_TRUSTED_IDENTITY",
    "MODELYARD_TRUSTED_ISSUER",
    "MODELYARD_PREDICTION_LOG_SECONDS",
    "MODELYARD_PREDICTION_LOG_DAYS",
    "MODELYARD_MAX_REQUEST_BYTES",
    "MODELYARD_MAX_REQUEST_ROWS",
    "MODEL_THRESHOLD",
)


@dataclass(frozen=True)
class Health:
    """How the processes behind the target are.

    Attributes:
        wanted: whether anything is to run.
        port: of the proxy.
        supervisor: pid; 0 if none runs.
        proxy: pid of Envoy; 0 if it does not run.
        predictors: by the name of their arm: pid (0 if none runs), port, crashes, log.
        problem: what hinders; empty if nothing does.
    """

    wanted: bool
    port: int
    supervisor: int
    proxy: int
    predictors: dict[str, dict[str, Any]]
    problem: str


class LocalTarget:
    """Serves models on this machine; see ``ServingTarget`` for the verbs.

    Args:
        home: folder of all local state; by default what ``settings.home()`` says.
        port: of the live traffic, on 127.0.0.1. 0 leaves it where it is; at first ``MODELYARD_SERVING_PORT``, else 8080.
    """

    mirrors = True

    def __init__(self, home: Path | None = None, port: int = 0) -> None:
        self._home = Path(home).expanduser().resolve() if home else settings.home()
        self._folder = self._home / "serving"
        self._port = port
        self._last_metrics: dict[str, PredictorMetrics] = {}

    def state(self, model_name: str) -> ServingState:
        """What is served now."""
        desired = self._desired()
        served = desired.models.get(check_model_name(model_name))
        if served is None:
            return ServingState(model_name)
        observed = self._attended(desired)
        route = observed.routes.get(model_name)
        stable = served.stable and _arm(served.stable, observed, desired, _stable_share(served.stable, route))
        canary = None
        if served.canary:
            share, mirrored = _canary_share(served.canary, served, route)
            canary = _arm(served.canary, observed, desired, share, mirrored=mirrored)
        return ServingState(model_name, stable or None, canary, served.previous, f"http://127.0.0.1:{desired.port}")

    def start_canary(self, model_name: str, model: ServedModel) -> None:
        """Starts ``model`` beside the stable version; see ``ServingTarget``. A model that is refused is an arm that failed."""
        check_model_name(model_name)
        with self._brought(model_name, model) as brought, self._change() as change:
            served = change.model(model_name)
            if served.canary and served.canary.model.digest != model.digest:
                raise TargetChanged(
                    f"version {served.canary.model.version} of {model_name!r} is under trial already: end that first, "
                    f"with modelyard split {model_name} --end"
                )
            if not served.canary and served.stable and served.stable.model.digest == model.digest:
                return
            arm = served.canary
            if arm is None:
                arm = brought or _changed_meanwhile(model_name)
                change.put(model_name, replace(served, canary=arm, incoming=None, share=0, mirror=False))
            change.run()
        what = f"version {model.version} to be ready"
        self._wait_until(lambda observed: _settled(arm, observed), what, change.desired, _READY_SECONDS)

    def set_share(self, model_name: str, percent: int, *, mirror: bool = False) -> None:
        """Gives the canary a share of the live traffic, or a copy of it; see ``ServingTarget``."""
        if not 0 <= percent <= 100:
            raise InvalidInput("percent", percent, "give a whole number from 0 to 100")
        with self._change() as change:
            served = change.model(model_name)
            if served.canary is None:
                raise TargetChanged(f"no version of {model_name!r} is under trial")
            arm = served.canary
            change.put(model_name, replace(served, share=percent, mirror=mirror))
            change.run()
        wanted = change.desired.models[model_name]

        def in_force(observed: Observed) -> bool:
            if observed.generation < change.desired.generation:
                return False
            if not percent or _canary_share(arm, wanted, observed.routes.get(model_name)) == (percent, mirror):
                return True
            found = observed.arms.get(arm.name)
            if found and found.state == "failed":
                raise NotAvailable(f"version {arm.model.version} of {model_name!r} cannot get traffic: {found.reason}")
            return False

        self._wait_until(in_force, f"version {arm.model.version} to get {percent} %", change.desired)

    def promote(self, model_name: str, digest: str) -> None:
        """Makes the canary the stable version; see ``ServingTarget``."""
        served = self._desired().models.get(model_name, DesiredModel())
        if served.canary and served.canary.model.digest == digest:
            self._await_ready(served.canary, model_name)
        with self._change() as change:
            served = change.model(model_name)
            if served.canary and served.canary.model.digest == digest:
                change.put(model_name, DesiredModel(served.canary, previous=_previous(served)))
            elif not (served.stable and served.stable.model.digest == digest):
                raise TargetChanged(f"neither arm of {model_name!r} is the model {digest}: it cannot be promoted")
            change.run()
        self._wait_for_stable(model_name, change.desired)

    def roll_back(self, model_name: str) -> None:
        """Takes the canary away; see ``ServingTarget``."""
        with self._change() as change:
            served = change.model(model_name)
            change.put(model_name, replace(served, canary=None, incoming=None, share=0, mirror=False))
        arm = served.canary
        if arm is None or not change.desired.running:
            return

        def gone(observed: Observed) -> bool:
            routes = observed.routes.values()
            return observed.generation >= change.desired.generation and all(
                arm.name not in (route.stable, route.canary) for route in routes
            )

        self._wait_until(gone, f"version {arm.model.version} to go", change.desired)

    def restore(self, model_name: str, model: ServedModel) -> None:
        """Puts ``model`` in charge in one step; see ``ServingTarget``. If it cannot be served, nothing changes.

        Raises:
            VerificationFailed: it is refused.
            NotAvailable: it does not become ready; the message says why.
        """
        check_model_name(model_name)
        with self._brought(model_name, model, incoming=True) as brought, self._change() as change:
            served = change.model(model_name)
            arm = next((arm for arm in served.arms if arm.model.digest == model.digest), None)
            if arm is None:
                arm = brought or _changed_meanwhile(model_name)
                if arm.refused:
                    raise VerificationFailed(arm.refused)
                change.put(model_name, replace(served, incoming=arm))
            change.run()
        try:
            self._await_ready(arm, model_name)
        except ModelyardError:
            with self._change() as undo:
                served = undo.model(model_name)
                if served.incoming == arm:
                    undo.put(model_name, replace(served, incoming=None))
            raise
        with self._change() as change:
            served = change.model(model_name)
            if arm not in served.arms:
                _changed_meanwhile(model_name)
            previous = served.previous if served.stable == arm else _previous(served)
            change.put(model_name, DesiredModel(arm, previous=previous))
        self._wait_for_stable(model_name, change.desired)

    def counts(self, model_name: str) -> ArmCounts:
        """The counts of both arms: the proxy's for how requests ended, the predictors' for latencies and scores."""
        desired = self._desired()
        served = desired.models.get(check_model_name(model_name))
        if served is None or not desired.running:
            return ArmCounts(None, None)
        observed = self._attended(desired)
        by_backend = Proxy(self._folder / PROXY_FOLDER, desired.port).counts()
        routed = {arm for route in observed.routes.values() for arm in (route.stable, route.canary)}

        def of(arm: DesiredArm | None) -> Counts | None:
            found = observed.arms.get(arm.name) if arm else None
            if arm is None or found is None or not found.port:
                return None
            metrics = self._metrics(arm.name, found.port, running=found.pid != 0)
            # What no route leads to has not been given anything.
            through = by_backend.get(arm.name, None if arm.name in routed else BackendCounts())
            if metrics is None or through is None:
                return None
            return Counts(through.answered, through.rejected, through.failed, metrics.latency, metrics.scores, metrics.flagged)

        return ArmCounts(of(served.stable), of(served.canary))

    def read_record(self, model_name: str) -> dict[str, Any] | None:
        """The rollout's own notes."""
        path = self._record(model_name)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["record"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            remedy = f"it is damaged ({type(error).__name__}); remove it: only the notes of the last rollout are lost"
            raise InvalidInput("rollout record", str(path), remedy) from error
        return record

    def write_record(self, model_name: str, record: dict[str, Any] | None, *, revision: int | None = None) -> None:
        """Keeps the rollout's notes; see ``ServingTarget``."""
        path = self._record(model_name)
        make_folder(self._folder)
        with exclusive_lock(path.with_suffix(".lock")):
            if revision is not None and revision != (found := (self.read_record(model_name) or {}).get("revision", 0)):
                raise RecordChanged(f"the record of {model_name!r} was read at revision {revision} and is at {found} now")
            if record is None:
                path.unlink(missing_ok=True)
            else:
                write_json(path, {"record": record})

    def start(self) -> None:
        """Brings back everything that was served, and returns when each version is ready or has failed.

        A version that had failed is tried again.

        Raises:
            InvalidInput: nothing was ever served, or the port is in use.
        """
        if not self._desired().models:
            raise InvalidInput("serving state", str(self._folder), "nothing was served here yet; name a model")
        with self._tried_again() as again, self._change() as change:
            for name, served in change.desired.models.items():
                stable, canary = (arm and again.get(arm.name, arm) for arm in (served.stable, served.canary))
                change.put(name, replace(served, stable=stable, canary=canary, incoming=None))
            change.run()
        wanted = change.desired

        def back(observed: Observed) -> bool:
            return observed.generation >= wanted.generation and all(
                _is_back(served, observed, observed.routes.get(name)) for name, served in wanted.models.items()
            )

        self._wait_until(back, "what was served to be back", wanted, _READY_SECONDS)

    def stop(self) -> None:
        """Ends proxy, predictors and supervisor, after what is in flight; what is served is kept for ``start``."""
        if not self._folder.is_dir():
            return
        port = self._port or DEFAULT_PORT
        try:
            with self._change() as change:
                change.desired = replace(change.desired, running=False)
            port, number = change.desired.port, 0
        except InvalidInput:
            # What is wanted cannot be read. What runs can be found without.
            number = signal.SIGTERM
        supervisor = read_observed(self._folder).supervisor
        if supervisor and supervisor.alive():
            if number:
                supervisor.signal(number)
            _poll(lambda: not supervisor.alive(), "the supervisor to end", _STOP_SECONDS)
        Proxy(self._folder / PROXY_FOLDER, port).stop()
        end_predictors(self._folder)

    def model_names(self) -> list[str]:
        """The models that are served, or would be if it were not stopped."""
        return sorted(self._desired().models)

    def model_directory(self, model_name: str) -> Path | None:
        """The signed directory, on this machine, of the version in charge; None if there is none."""
        stable = self._desired().models.get(model_name, DesiredModel()).stable
        return Path(stable.directory) if stable else None

    def health(self) -> Health:
        """How the processes behind the target are; starts a supervisor if one is wanted and missing."""
        desired = self._desired()
        observed = self._attended(desired)
        supervisor = observed.supervisor
        alive = supervisor is not None and supervisor.alive()
        predictors = {
            name: {
                "pid": arm.pid,
                "port": arm.port,
                "crashes": arm.crashes,
                "log": str(self._folder / "logs" / f"{name}.log"),
            }
            for name, arm in observed.arms.items()
        }
        return Health(
            desired.running,
            desired.port,
            supervisor.pid if supervisor and alive else 0,
            Proxy(self._folder / PROXY_FOLDER, desired.port).pid() or 0,
            predictors,
            str(as_error(observed.problem)) if observed.problem and desired.running else self._without_state(),
        )

    def _without_state(self) -> str:
        """What to do if processes run of which no state says that they are to; empty if there are none."""
        if read_desired(self._folder) is not None or not find_predictors(self._folder):
            return ""
        return (
            f"{self._folder / STATE_FILE} is gone, but what was served goes on: modelyard serve NAME takes each model up "
            f"again, modelyard stop ends everything"
        )

    def _desired(self) -> Desired:
        return read_desired(self._folder) or Desired(port=self._first_port())

    def _first_port(self) -> int:
        """Where the live traffic is to be if no state says so: where the proxy is that still runs, if there is one."""
        return (
            _check_port("port", self._port)
            or self._running_at()
            or _check_port(PORT_VARIABLE, os.environ.get(PORT_VARIABLE, ""))
            or DEFAULT_PORT
        )

    def _running_at(self) -> int:
        """Where the proxy is that runs, whatever is wanted; 0 if there is none."""
        return Proxy(self._folder / PROXY_FOLDER, DEFAULT_PORT).running_at()

    @contextmanager
    def _change(self) -> Iterator["_Change"]:
        """Changes what is wanted, alone; writes it if it is another at the end."""
        make_folder(self._folder)
        with exclusive_lock(self._folder / "state.lock"):
            before = self._desired()
            change = _Change(before, self._port_to_use)
            yield change
            if change.desired != before:
                change.desired = write_desired(self._folder, change.desired)
                if _logs_elsewhere(change.desired) and not _logs_elsewhere(before):
                    # The one at work has no credentials, which this process may have.
                    self._replace_supervisor()
            self._forget_models(change.desired)

    def _port_to_use(self, desired: Desired) -> int:
        """Where the live traffic is to be: another port than it is now only if that was asked for, or nothing runs."""
        given = _check_port("port", self._port)
        if not given and not desired.running and not self._running_at():
            given = _check_port(PORT_VARIABLE, os.environ.get(PORT_VARIABLE, ""))
        if given and given != desired.port and desired.running:
            _check_free(given)
        wanted = given or desired.port
        if not desired.running:
            Proxy(self._folder / PROXY_FOLDER, wanted).check_port()
        return wanted

    @contextmanager
    def _brought(self, model_name: str, model: ServedModel, *, incoming: bool = False) -> Iterator[DesiredArm | None]:
        """An arm for a model that no arm serves yet; None if one does, also the incoming one if that counts.

        The model is fetched and verified before the state is locked, so that no other verb has to wait for it.
        """
        served = self._desired().models.get(model_name, DesiredModel())
        arms = (served.stable, served.canary, served.incoming if incoming else None)
        if any(arm and arm.model.digest == model.digest for arm in arms):
            yield None
            return
        make_folder(self._folder)
        with self._held(model):
            yield self._new_arm(model_name, model)

    @contextmanager
    def _held(self, model: ServedModel) -> Iterator[None]:
        """Keeps a model's copy from being made or removed by anybody else."""
        with exclusive_lock(self._lock_of(self._copy(model))):
            yield

    def _lock_of(self, copy: Path) -> Path:
        return self._folder / f"model-{copy.name}.lock"

    def _new_arm(self, model_name: str, model: ServedModel) -> DesiredArm:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{model_name}-v{model.version}") + f"-{secrets.token_hex(3)}"
        environment = {"MODELYARD_PREDICTION_LOG": str(self._home / "predictions")}
        environment |= {variable: os.environ[variable] for variable in _SETTINGS if variable in os.environ}
        for variable in _PATHS:
            if (value := environment.get(variable, "")) and "://" not in value:
                # A predictor has another current folder.
                environment[variable] = str(Path(value).expanduser().resolve())
        if environment.get("MODELYARD_TRUST", "key") == "key":
            environment["MODELYARD_VERIFICATION_KEY"] = str(self._verification_key())
        directory, refused = "", ""
        try:
            directory = str(self._bring(model_name, model))
        except (VerificationFailed, InvalidInput) as error:
            refused = str(error)
        return DesiredArm(name, model, directory, environment, refused)

    def _verification_key(self) -> Path:
        if "MODELYARD_VERIFICATION_KEY" in os.environ:
            return settings.verification_key()
        return self._home / "keys" / "signing.pub"

    def _bring(self, model_name: str, model: ServedModel) -> Path:
        """The signed directory of a model, on this machine and verified."""
        from modelyard.components.signing.trust import TrustedKey, configured_trust
        from modelyard.components.signing.verification import verify_model
        from modelyard.components.storage import uris

        own_key = os.environ.get("MODELYARD_TRUST", "key") == "key"
        trust = TrustedKey(self._verification_key()) if own_key else configured_trust()
        copy = self._copy(model)
        local = uris.local_path(model.uri)
        for downloaded_before in (copy.is_dir(), False):
            if local is None and not downloaded_before:
                shutil.rmtree(copy, ignore_errors=True)
                uris.download(model.uri, copy)
            directory = local.resolve() if local else copy
            try:
                verify_model(directory, model_name=model_name, digest=model.digest, trust=trust)
            except VerificationFailed:
                # A copy from earlier may have been damaged here; what it was made of is the one to judge.
                if not (local is None and downloaded_before):
                    raise
            else:
                return directory
        raise AssertionError("the second round returns or raises")

    def _copy(self, model: ServedModel) -> Path:
        return self._folder / "models" / model.digest.removeprefix("blake3:")

    def _forget_models(self, desired: Desired) -> None:
        """Removes downloaded models that no arm and no rollback needs any more."""
        needed = {arm.model for served in desired.models.values() for arm in served.arms}
        needed |= {served.previous for served in desired.models.values() if served.previous}
        kept = {self._copy(model) for model in needed}
        folder = self._folder / "models"
        for copy in folder.iterdir() if folder.is_dir() else ():
            if copy not in kept:
                # One that somebody is fetching is about to be needed.
                with suppress(_Held), exclusive_lock(self._lock_of(copy), on_wait=_leave_it):
                    shutil.rmtree(copy, ignore_errors=True)

    @contextmanager
    def _tried_again(self) -> Iterator[dict[str, DesiredArm]]:
        """New arms in place of those that had failed, by the names of these."""
        observed = read_observed(self._folder)
        again = {}
        with ExitStack() as held:
            for name, served in self._desired().models.items():
                for arm in (served.stable, served.canary):
                    found = observed.arms.get(arm.name) if arm else None
                    if arm and (arm.refused or (found and found.state == "failed")):
                        held.enter_context(self._held(arm.model))
                        again[arm.name] = self._new_arm(name, arm.model)
            yield again

    def _attended(self, desired: Desired) -> Observed:
        """What the supervisor sees, after one was started if something is to run and there is none."""
        if desired.running:
            self._wait_until(lambda _: True, "a supervisor to start", desired)
            # One that has just started has not looked at what runs yet.
            deadline = time.monotonic() + _LOOK_SECONDS
            while not ((observed := read_observed(self._folder)).generation or observed.problem):
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)
        return read_observed(self._folder)

    def _replace_supervisor(self) -> None:
        """Ends the supervisor; what it has started goes on, and the next one takes it over."""
        for supervisor in find(f"-m {SUPERVISOR} --home {self._home}"):
            if supervisor.command.endswith(f" {self._home}"):
                supervisor.signal(signal.SIGTERM)

    def _start_supervisor(self) -> None:
        kept = kept_environment(cloud=_logs_elsewhere(self._desired()))
        spawn_detached(
            [sys.executable, "-P", "-m", SUPERVISOR, "--home", str(self._home)],
            environment={**kept, "MODELYARD_HOME": str(self._home), "TMPDIR": str(self._folder / "scratch")},
            folder=self._folder,
            log=self._folder / SUPERVISOR_LOG,
        )

    def _wait_until(self, so: Callable[[Observed], bool], what: str, desired: Desired, seconds: float = _OBEY_SECONDS) -> None:
        """Waits until the supervisor says so, with a supervisor at work all the while.

        Raises:
            NotAvailable: it does not come to be in time.
            InvalidInput: the supervisor says that it cannot be as ``desired`` says.
        """
        attended: ProcessIdentity | None = None
        deadline = time.monotonic() + seconds
        next_look = next_start = 0.0
        next_replacement = time.monotonic() + _MUTE_SECONDS
        while True:
            observed, now = read_observed(self._folder), time.monotonic()
            if now >= next_look or observed.supervisor != attended:
                # What a supervisor that is dead by now has seen says nothing.
                attended = observed.supervisor if observed.supervisor and observed.supervisor.alive() else None
                next_look = now + _ALIVE_SECONDS
            if attended is None:
                if now >= next_replacement:
                    # Such as one of another release, which tells what it sees in another format.
                    self._replace_supervisor()
                    next_start, next_replacement = now + _ALIVE_SECONDS, deadline
                elif now >= next_start:
                    self._start_supervisor()
                    next_start = now + _START_AGAIN_SECONDS
            elif so(observed):
                return
            elif observed.problem and "field" in observed.problem and observed.tried >= desired.generation:
                # An input that cannot be used does not get better by waiting.
                raise as_error(observed.problem)
            if now > deadline:
                because = f": {as_error(observed.problem)}" if observed.problem else ""
                raise NotAvailable(f"waited {seconds:.0f} s in vain for {what}{because} (log: {self._folder / SUPERVISOR_LOG})")
            time.sleep(_POLL_SECONDS)

    def _await_ready(self, arm: DesiredArm, model_name: str) -> None:
        def ready(observed: Observed) -> bool:
            found = observed.arms.get(arm.name)
            if found and found.state == "failed":
                raise NotAvailable(f"version {arm.model.version} of {model_name!r} cannot be served: {found.reason}")
            return found is not None and found.state == "ready"

        self._wait_until(ready, f"version {arm.model.version} to be ready", self._desired(), _READY_SECONDS)

    def _wait_for_stable(self, model_name: str, desired: Desired) -> None:
        """Waits until all of a model's live traffic goes as ``desired`` says."""
        served = desired.models[model_name]
        stable = served.stable
        if stable is None:
            return
        canary = served.canary.name if served.canary else ""

        def in_charge(observed: Observed) -> bool:
            route = observed.routes.get(model_name)
            if observed.generation < desired.generation or route is None:
                return False
            return route.stable == stable.name and route.canary in ("", canary)

        self._wait_until(in_charge, f"version {stable.model.version} to be in charge", desired)

    def _metrics(self, arm_name: str, port: int, *, running: bool) -> PredictorMetrics | None:
        """What a predictor has counted. One that hangs has counted what it had when it was last asked; None if it never was."""
        if running:
            with suppress(OSError, http.client.HTTPException, ValueError):
                self._last_metrics[arm_name] = read_metrics(get(port, "/metrics", timeout=2.0))
            return self._last_metrics.get(arm_name)
        return read_metrics("")

    def _record(self, model_name: str) -> Path:
        return self._folder / "records" / f"{check_model_name(model_name)}.json"


class _Held(Exception):
    """Somebody else is at work on it."""


def _leave_it() -> None:
    raise _Held


class _Change:
    """What a verb makes of what is wanted."""

    def __init__(self, desired: Desired, port_to_use: Callable[[Desired], int]) -> None:
        self.desired = desired
        self._port_to_use = port_to_use

    def model(self, name: str) -> DesiredModel:
        """What is wanted of a model."""
        return self.desired.models.get(name, DesiredModel())

    def put(self, name: str, model: DesiredModel) -> None:
        """Wants this of a model."""
        self.desired = self.desired.with_model(name, model)

    def run(self) -> None:
        """Wants everything to run."""
        self.desired = replace(self.desired, port=self._port_to_use(self.desired), running=True)


def _changed_meanwhile(model_name: str) -> NoReturn:
    raise TargetChanged(f"somebody else changed what is served of {model_name!r}: look at modelyard status")


def _logs_elsewhere(desired: Desired) -> bool:
    """Whether a prediction log is not on this machine, so that a predictor needs credentials."""
    arms = [arm for served in desired.models.values() for arm in served.arms]
    return any(logs_elsewhere(arm) for arm in arms)


def _previous(served: DesiredModel) -> ServedModel | None:
    return served.stable.model if served.stable else served.previous


def _settled(arm: DesiredArm, observed: Observed) -> bool:
    found = observed.arms.get(arm.name)
    return found is not None and found.state in ("ready", "failed")


def _is_back(served: DesiredModel, observed: Observed, route: ObservedRoute | None) -> bool:
    """Whether each arm that can be served is, with its share."""
    if not all(_settled(arm, observed) for arm in served.arms):
        return False
    ready = [arm for arm in served.arms if observed.arms[arm.name].state == "ready"]
    if served.stable in ready and not (route and route.stable == served.stable.name):
        return False
    if served.canary in ready and (served.stable is None or served.stable in ready):
        return not served.share or _canary_share(served.canary, served, route) == (served.share, served.mirror)
    return True


def _stable_share(arm: DesiredArm, route: ObservedRoute | None) -> int:
    given = 0 if route is None or route.mirror else route.share
    if route is None or arm.name not in (route.stable, route.canary):
        return 0
    return 100 - given if arm.name == route.stable else given


def _canary_share(arm: DesiredArm, served: DesiredModel, route: ObservedRoute | None) -> tuple[int, bool]:
    """The share that a canary has, and whether it is one of a copy."""
    if served.stable is None:
        # The only arm gets all the traffic that there is, or none; its share is what was asked for.
        in_force = served.mirror or (route is not None and route.stable == arm.name)
        return (served.share, served.mirror) if in_force else (0, False)
    if route is None or route.canary != arm.name:
        return 0, False
    return route.share, route.mirror


_WHILE = {
    "starting": "it is being started",
    "restarting": "it is being started again",
    "leaving": "it is being ended",
}


def _arm(arm: DesiredArm, observed: Observed, desired: Desired, share: int, *, mirrored: bool = False) -> Arm:
    if not desired.running:
        return Arm(arm.model, 0, ready=False, reason="serving is stopped; modelyard serve brings it back")
    found = observed.arms.get(arm.name) or ObservedArm("failed" if arm.refused else "starting", arm.refused)
    if found.state == "ready" and identify(found.pid) is None:
        # It died since the supervisor looked.
        found = replace(found, state="restarting")
    elif found.state == "ready" and share and not (observed.proxy and observed.proxy.alive()):
        found = replace(found, state="restarting", reason="the proxy is being started again")
    ready = found.state == "ready"
    return Arm(
        arm.model,
        share,
        ready=ready,
        failed=found.state == "failed",
        reason="" if ready else found.reason or _WHILE.get(found.state, found.state),
        url=f"http://127.0.0.1:{found.port}" if found.port else "",
        mirrored=mirrored,
    )


def _check_port(field: str, port: int | str) -> int:
    """A port to listen on; 0 if none is given."""
    if port in ("", 0):
        return 0
    try:
        number = int(port)
    except ValueError:
        number = -1
    if not 0 < number < 65536:
        raise InvalidInput(field, port, "give a port to listen on, 1 to 65535")
    return number


def _check_free(port: int) -> None:
    """Makes sure that the proxy can move to a port before it leaves the one that it has."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            remedy = f"the proxy cannot move there ({error.strerror}): choose another with --port, or end what listens there"
            raise InvalidInput("port", port, remedy) from error


def _poll(so: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        if time.monotonic() > deadline:
            raise NotAvailable(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(_POLL_SECONDS)
