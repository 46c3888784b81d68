"""The serving target of a cluster: a KServe InferenceService, in Standard or in Knative mode.

    >>> target = open_kserve_target(parse_placement({"namespace": "models"}))
    >>> target.start_canary("fraud", ServedModel("7", "blake3:5f3c…", "s3://models/fraud/5f3c…"))
    >>> target.set_share("fraud", 10)
    >>> target.promote("fraud", "blake3:5f3c…")

What is served is read from the cluster; ``notes`` keeps beside it what the cluster does not. Every verb first brings the notes
up to the cluster, then writes down what it is about to ask for, then asks, then waits until the cluster says that it is so.
Killed anywhere in between, the version in charge goes on serving, and the same verb goes on when it is called again.

Which cluster it is says ``KUBECONFIG``, else the pod that this runs in; who counts the requests says the environment that
``serving.metrics.sources`` lists.

There is no copy of the traffic: KServe does not mirror. A model's very first version gets all the traffic as soon as it is
ready, because KServe has nothing else to send it to; so do not publish the address before the first promotion. In Knative mode
at 100 % the version in charge may be scaled down: if the one on trial is sent back from there, its pods start again first.
"""

import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelyard.components.announcements import announce
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.serving.kserve.api import Cluster, Object, open_cluster
from modelyard.components.serving.kserve.knative import KnativeMode
from modelyard.components.serving.kserve.names import LONGEST_LABEL, SHORTEST_PREDICTOR, predictor_room, service_name
from modelyard.components.serving.kserve.notes import Memory, Notes, Version
from modelyard.components.serving.kserve.placement import KNATIVE, STANDARD, Placement, completed, scaling_problem
from modelyard.components.serving.kserve.predictors import DEPLOYMENT_MODE, MODES, build_predictor, inherit, placement_of
from modelyard.components.serving.kserve.service import Seen, SeenArm, Service, adopt_scaling, model_of, recover, refuse_local
from modelyard.components.serving.kserve.standard import StandardMode
from modelyard.components.serving.metrics.source import MetricsSource, Workload
from modelyard.components.serving.target import ArmCounts, ServedModel, ServingState, TargetChanged
from modelyard.components.serving.targets import KSERVE, command_options
from modelyard.components.signing.provenance import PROVENANCE_FILE, Provenance

_OBEY_SECONDS = 180.0
_POLL_SECONDS = 1.0
# What has not passed by then is told while it is still waited for.
_TELL_AFTER_SECONDS = 30.0

Mode = StandardMode | KnativeMode


class KServeTarget:
    """Serves models as InferenceServices; see ``ServingTarget`` for the verbs.

    Args:
        cluster: where they are served.
        placement: how versions run that are started from here on.
        metrics: counts the arms' requests.
        obey_seconds: in which the cluster must do what it is asked; versions have the placement's ``ready_seconds``.
        poll_seconds: between two looks.
    """

    mirrors = False

    def __init__(
        self,
        cluster: Cluster,
        placement: Placement,
        metrics: MetricsSource,
        *,
        obey_seconds: float = _OBEY_SECONDS,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._cluster, self._placement, self._metrics = cluster, placement, metrics
        self._obey_seconds, self._poll_seconds = obey_seconds, poll_seconds

    def state(self, model_name: str) -> ServingState:
        """What is served now, as the cluster says."""
        live = self._service(model_name).live()
        if live is None:
            return ServingState(model_name)
        memory = self._notes(model_name).memory()
        seen = self._mode(model_name, live).see(live, memory)
        memory = _brought_up(memory, live, seen)
        return ServingState(
            model_name,
            seen.stable.arm if seen.stable else None,
            seen.canary.arm if seen.canary else None,
            memory.previous.model if memory.previous else None,
            str((live.get("status") or {}).get("url") or ""),
        )

    def check(self, model_name: str) -> None:
        """Looks whether a version could be rolled out as the placement says, without changing anything.

        Raises:
            InvalidInput: the placement does not fit how the model is served, or its name is too long for the namespace.
            NotAvailable: the cluster cannot be reached, has no KServe, or does not let us look.
        """
        live = self._service(model_name).live()
        memory = self._notes(model_name).memory()
        self._placed(self._mode(model_name, live).name, model_name, memory.stable if live else None)

    def start_canary(self, model_name: str, model: ServedModel) -> None:
        """Starts ``model`` beside the stable version, without traffic; see ``ServingTarget``.

        A version that is alone gets all the traffic as soon as it is ready.

        Raises:
            InvalidInput: the model is not in an object store, the placement does not fit how it is served, or its name is too
                long for the namespace.
            VerificationFailed: it is not what it is said to be.
            NotAvailable: it does not become ready in time; the message says why.
        """
        self._start(model_name, model)

    def set_share(self, model_name: str, percent: int, *, mirror: bool = False) -> None:
        """Gives the canary a share of the live traffic; see ``ServingTarget``."""
        if not 0 <= percent <= 100:
            raise InvalidInput("percent", percent, "give a whole number from 0 to 100")
        if mirror:
            raise InvalidInput("mirror", mirror, "KServe does not copy traffic: leave the shadow out (shadow_seconds = 0)")
        mode, memory, seen = self._now(model_name)
        if seen.canary is None:
            raise TargetChanged(f"no version of {model_name!r} is under trial")
        if seen.stable is None:
            self._notes(model_name).change(lambda found: replace(found, share=percent))
        else:
            mode.set_share(memory, percent)

    def promote(self, model_name: str, digest: str) -> None:
        """Makes the canary the stable version; see ``ServingTarget``."""
        mode, memory, seen = self._now(model_name)
        if seen.canary is not None and seen.canary_digest == digest:
            version = memory.canary
            if version is None or not seen.canary.arm.ready:
                reason = seen.canary.arm.reason or "it is being started"
                raise NotAvailable(f"version {seen.canary.arm.model.version} of {model_name!r} is not ready: {reason}")
            if seen.stable is not None:
                mode.promote(memory)
            mode.await_alone(version)
            self._in_charge(model_name, version)
        elif seen.stable_digest != digest:
            raise TargetChanged(f"neither arm of {model_name!r} is the model {digest}: it cannot be promoted")
        elif seen.canary is None and memory.stable is not None:
            if not seen.settled:
                mode.withdraw(memory)
            mode.await_alone(memory.stable)

    def roll_back(self, model_name: str) -> None:
        """Takes the canary away; see ``ServingTarget``. A first version that is alone goes with the whole service."""
        mode, memory, seen = self._now(model_name)
        if seen.stable is None and seen.canary is not None:
            self._service(model_name).remove(seen.canary_digest)
        elif seen.canary is not None or not seen.settled:
            mode.withdraw(memory)
        else:
            # A call that was killed may have ended the trial, and no more.
            mode.tidy()
        if seen.canary is not None:
            ended = seen.canary_digest

            def change(found: Memory) -> Memory:
                over = found.canary is not None and found.canary.digest == ended
                return replace(found, canary=None, share=0) if over else found

            self._notes(model_name).change(change)

    def restore(self, model_name: str, model: ServedModel) -> None:
        """Puts ``model`` in charge in one step; see ``ServingTarget``.

        It is started beside the one in charge, where it was before if it was, and gets all the traffic once it is ready. If it
        cannot be served it is taken away again; a canary is gone then, too. Once it serves it stays, whatever comes: repeat it.

        Raises:
            VerificationFailed: it is refused.
            NotAvailable: it does not become ready; the message says why.
        """
        mode, memory, seen = self._now(model_name)
        if seen.stable_digest == model.digest:
            self.roll_back(model_name)
            return
        if seen.canary is not None and seen.canary_digest != model.digest:
            if seen.stable is None:
                # It has all the traffic, so it is what stays until another can have it.
                memory = self._notes(model_name).change(lambda found: replace(found, stable=found.canary, canary=None, share=0))
            else:
                mode.make_room(memory)
        previous = memory.previous
        try:
            self._start(model_name, model, in_its_place=True)
            arm = self.state(model_name).canary
            if arm is None or arm.model.digest != model.digest:
                raise TargetChanged(f"somebody else changed the versions of {model_name!r} meanwhile")
            if arm.failed:
                raise NotAvailable(f"version {model.version} of {model_name!r} cannot be served: {arm.reason}")
            self.promote(model_name, model.digest)
        except NotAvailable:
            # Where the cluster does not answer, it cannot be told either; then the next call goes on.
            with suppress(NotAvailable):
                arm = self.state(model_name).canary
                if arm is None or not (arm.ready and arm.share):
                    self.roll_back(model_name)
            raise
        if seen.stable is None and seen.canary is not None:
            self._notes(model_name).change(lambda found: replace(found, previous=previous))

    def counts(self, model_name: str) -> ArmCounts:
        """The counts of both arms, as the metrics source has them."""
        live = self._service(model_name).live()
        if live is None:
            return ArmCounts(None, None)
        seen = self._mode(model_name, live).see(live, self._notes(model_name).memory())
        stable, canary = (self._workload(model_name, arm) for arm in (seen.stable, seen.canary))
        return self._metrics.counts(stable, canary)

    def read_record(self, model_name: str) -> dict[str, Any] | None:
        """The rollout's own notes."""
        return self._notes(model_name).record()

    def write_record(self, model_name: str, record: dict[str, Any] | None, *, revision: int | None = None) -> None:
        """Keeps the rollout's notes; see ``ServingTarget``."""
        self._notes(model_name).write_record(record, revision)

    def _start(self, model_name: str, model: ServedModel, *, in_its_place: bool = False) -> None:
        mode, memory, seen = self._now(model_name)
        if seen.canary is None and seen.stable_digest == model.digest:
            return
        if seen.canary is not None and seen.canary_digest != model.digest and not in_its_place:
            raise TargetChanged(
                f"version {seen.canary.arm.model.version} of {model_name!r} is under trial already: end that first, "
                f"with modelyard split {model_name} --end{command_options(KSERVE, {'namespace': self._cluster.namespace})}"
            )
        if seen.canary_digest != model.digest:
            stable = memory.stable if seen.stable else None
            before = memory.previous
            as_before = before is not None and before.digest == model.digest and (in_its_place or not self._placement.given)
            version = self._version(mode.name, model_name, model, stable, before if as_before else None)
            if stable is not None and mode.name == STANDARD:
                version = replace(version, predictor=inherit(stable.predictor, version.predictor))
            trial = Memory(stable, version, memory.previous)
            trial = replace(trial, replicas=mode.replicas(trial, version))
            if not self._notes(model_name).swap(memory, trial):
                raise TargetChanged(f"somebody else changed the versions of {model_name!r} meanwhile")
            memory = trial
            mode.start(version, memory, over=seen.canary_digest)
        self._await_settled(mode, memory, model_name, model)

    def _await_settled(self, mode: Mode, memory: Memory, model_name: str, model: ServedModel) -> None:
        """Waits until the canary is ready or has failed, or is no longer there."""
        service = self._service(model_name)
        expected = memory.stable.digest if memory.stable else ""
        reason, since = "", time.monotonic()
        told: set[str] = set()

        def settled() -> bool:
            nonlocal reason, since
            live = service.live()
            if live is None:
                return True
            seen = mode.see(live, memory)
            if expected and seen.stable_digest != expected and seen.canary_digest == model.digest:
                # KServe takes a moment between two of Knative's own steps for a rollback, and goes to the version before.
                mode.withdraw(memory)
                raise NotAvailable(
                    f"KServe gave the traffic to another version while version {model.version} of {model_name!r} was being "
                    f"started; the one in charge has it again. Try again"
                )
            if seen.canary is None or seen.canary_digest != model.digest:
                return True
            if reason != seen.canary.arm.reason:
                reason, since = seen.canary.arm.reason, time.monotonic()
            if reason and reason not in told and time.monotonic() - since >= _TELL_AFTER_SECONDS:
                told.add(reason)
                announce(f"Version {model.version} of {model_name!r} is not ready yet: {reason.splitlines()[0]}")
            return seen.canary.arm.ready or seen.canary.arm.failed

        service.wait(settled, f"version {model.version} of {model_name!r} to be ready", service.ready_seconds, lambda: reason)

    def _version(
        self, mode: str, model_name: str, model: ServedModel, stable: Version | None, known: Version | None
    ) -> Version:
        """The version as it is known, else as the placement says; verified in any case."""
        refuse_local(model.uri)
        provenance = _provenance(model_name, model)
        if known is not None:
            return known
        placement, room = self._placed(mode, model_name, stable)
        return Version(model, build_predictor(placement, mode, model_name, model, provenance, room))

    def _placed(self, mode: str, model_name: str, stable: Version | None) -> tuple[Placement, int]:
        """How a new version runs, as the version in charge where the placement says nothing; and the room for its name.

        Raises:
            InvalidInput: it cannot be scaled so in this mode, or KServe could make no host for it.
        """
        placement = completed(self._placement, mode, placement_of(stable.predictor)) if stable else self._placement
        if problem := scaling_problem(placement, mode):
            raise problem
        return placement, self._room(model_name, stable) if mode == STANDARD else LONGEST_LABEL

    def _room(self, model_name: str, stable: Version | None) -> int:
        """How many characters the name of a new version's predictor may have in Standard mode.

        Raises:
            InvalidInput: too few for any name.
        """
        service, namespace = service_name(model_name), self._cluster.namespace
        room = predictor_room(service, namespace)
        # A version in charge whose host would be too long by KServe's default shows that the cluster has another template.
        if self._placement.long_hosts or (stable is not None and len(stable.predictor.get("name", "")) > room):
            return LONGEST_LABEL
        if room < SHORTEST_PREDICTOR:
            missing = SHORTEST_PREDICTOR - room
            most = len(service) - missing
            shorter = f"a model name of at most {most} characters (a-z, 0-9 and -), or " if most > 0 else ""
            raise InvalidInput(
                "model_name",
                model_name,
                f"in Standard mode KServe makes a host of the service's name {service!r} and the namespace {namespace!r}, "
                f"whose parts have {LONGEST_LABEL} characters at most: take {shorter}a namespace of at most "
                f"{len(namespace) - missing}; or, where domainTemplate in KServe's ConfigMap inferenceservice-config is "
                "{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}, set serving.long_hosts to true",
            )
        return room

    def _in_charge(self, model_name: str, version: Version) -> None:
        def change(found: Memory) -> Memory:
            if found.stable is not None and found.stable.digest == version.digest:
                return replace(found, canary=None, share=0)
            return Memory(version, None, found.stable or found.previous)

        self._notes(model_name).change(change)

    def _now(self, model_name: str) -> tuple[Mode, Memory, Seen]:
        """How the model is served, with the notes brought up to what the cluster says.

        The notes are read first: what the cluster did meanwhile, they may lack; what they say, it has been told.
        """
        memory = self._notes(model_name).memory()
        live = self._service(model_name).live()
        mode = self._mode(model_name, live)
        if live is None:
            return mode, memory, Seen()
        seen = mode.see(live, memory)
        brought_up = _brought_up(memory, live, seen)
        if seen.stable is not None and brought_up.stable is None:
            # The notes are gone, and the object speaks of the version on trial alone: it is run again as the placement says.
            brought_up = replace(brought_up, stable=self._version(mode.name, model_name, seen.stable.arm.model, None, None))
        if brought_up != memory and not self._notes(model_name).swap(memory, brought_up):
            return self._now(model_name)
        return mode, brought_up, seen

    def _mode(self, model_name: str, live: Object | None) -> Mode:
        service = self._service(model_name)
        wanted = self._placement.mode
        if live is None:
            return (KnativeMode if wanted == KNATIVE else StandardMode)(service)
        name = (live["metadata"].get("annotations") or {}).get(DEPLOYMENT_MODE, "Standard")
        found = MODES.get(name)
        if found is None or wanted not in ("", found):
            remedy = f"{model_name!r} is served in the mode {name}, which cannot change: leave it out, or delete the service"
            raise InvalidInput("serving.mode", wanted, remedy)
        return (KnativeMode if found == KNATIVE else StandardMode)(service)

    def _service(self, model_name: str) -> Service:
        return Service(
            self._cluster,
            model_name,
            ready_seconds=self._placement.ready_seconds,
            obey_seconds=self._obey_seconds,
            poll_seconds=self._poll_seconds,
        )

    def _notes(self, model_name: str) -> Notes:
        return Notes(self._cluster, model_name)

    def _workload(self, model_name: str, arm: SeenArm | None) -> Workload | None:
        if arm is None or not arm.workload:
            return None
        service = self._service(model_name).name
        return Workload(model_name, arm.arm.model.version, self._cluster.namespace, service, arm.workload)


class _SourceOnDemand:
    """The metrics source that the environment names, else this one, opened for the first count: a look needs none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._source: MetricsSource | None = None

    def open(self) -> MetricsSource:
        from modelyard.components.serving.metrics.sources import open_source

        if self._source is None:
            self._source = open_source(self._name)
        return self._source

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        return self.open().counts(stable, canary)


def open_kserve_target(placement: Placement, *, watched: bool = False) -> KServeTarget:
    """The target in the cluster that ``KUBECONFIG`` names, or that this process runs in.

    Args:
        placement: how versions run that are started from here on.
        watched: whether counts will be asked for, so that who keeps them must be known from the beginning.

    Raises:
        InvalidInput: it is to be watched, and no Prometheus is named.
        NotAvailable: no cluster is configured.
    """
    source = _SourceOnDemand(placement.runtime)
    if watched:
        source.open()
    return KServeTarget(open_cluster(placement.namespace), placement, source)


def _brought_up(memory: Memory, live: Object, seen: Seen) -> Memory:
    """The notes, with what the cluster says is in charge and on trial."""
    stable, canary, previous = memory.stable, memory.canary, memory.previous
    if seen.stable is not None and seen.stable_digest != (stable.digest if stable else ""):
        # Somebody was killed when the cluster had done it and before it was written down; or it was somebody else.
        before, stable = (
            stable,
            memory.find(seen.stable_digest) or _recovered(live, memory, seen),
        )
        previous = before or previous
    if seen.canary is None:
        canary = None
        if stable is not None and model_of(live["spec"]["predictor"]).digest == stable.digest:
            stable = adopt_scaling(stable, live)
    elif seen.canary_digest != (canary.digest if canary else ""):
        canary = memory.find(seen.canary_digest) or recover(live, replace(memory, stable=stable), "canary")
    if (stable, canary, previous) == (memory.stable, memory.canary, memory.previous):
        return memory
    return replace(memory, stable=stable, canary=canary, previous=previous)


def _recovered(live: Object, memory: Memory, seen: Seen) -> Version | None:
    """The version in charge, if the object says how it is run: in Knative mode it speaks of the newest one alone."""
    version = recover(live, memory)
    return version if version.digest == seen.stable_digest else None


def _provenance(model_name: str, model: ServedModel) -> Provenance:
    """Where a version comes from, as its signed directory says, which is fetched and verified."""
    from modelyard.components.registry.versions import fetch_verified

    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        directory = fetch_verified(model_name, model.version, model.digest, model.uri, folder)
        return Provenance.from_json(Path(directory, PROVENANCE_FILE).read_bytes())
