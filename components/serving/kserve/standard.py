"""Standard mode: Deployments, and the Gateway API splits the traffic between them.

KServe deletes the Deployment and the Service of a predictor that the InferenceService names no longer *before* it changes the
HTTPRoute. So the weight is moved first and seen in the routes, then names change. It gives a version on trial a fixed number of
replicas and takes as many off the version in charge, as soon as one of them is ready: so they are raised before the share is,
lowered after it, and the version in charge keeps its own.

While the version in charge is down, KServe changes no route at all. Then there is nothing to move first: names change at once,
and with the new names KServe changes the routes, too.

| killed after | then |
|---|---|
| the version is on trial, at 0 % | it gets nothing; the next call waits for it |
| replicas or share are changed | what was asked last comes into force by itself; the next call waits for it |
| all the weight is moved, before names change | the version on trial serves all there is; the next promotion goes on |
| names are changed, before the notes | the cluster says which one is in charge; the notes follow |
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.kserve.api import (
    DEPLOYMENT,
    HTTP_ROUTE,
    POD_AUTOSCALER,
    SCALED_OBJECT,
    SERVICE,
    Object,
    Stale,
)
from modelyard.components.serving.kserve.names import identity, layout, workload_name
from modelyard.components.serving.kserve.notes import Memory, Version
from modelyard.components.serving.kserve.placement import STANDARD
from modelyard.components.serving.kserve.pods import crashes, stuck, trouble
from modelyard.components.serving.kserve.predictors import beside_trial, canary_replicas, is_scaled, on_trial
from modelyard.components.serving.kserve.service import OWNER_LABEL, Seen, SeenArm, Service, model_of
from modelyard.components.serving.target import Arm, TargetChanged

# As KServe finds the Deployments that no predictor needs any more.
_OF_PREDICTORS = {"component": "predictor"}
# What a service says of its version in charge.
_READY = "PredictorReady"
_NO_ROUTE = (
    "there is no HTTPRoute: KServe splits traffic in Standard mode only through the Gateway API "
    "(enableGatewayApi in its ConfigMap inferenceservice-config)"
)


class StandardMode:
    """How a model is served in Standard mode."""

    name = STANDARD

    def __init__(self, service: Service) -> None:
        self._service = service

    def see(self, live: Object, memory: Memory) -> Seen:
        """What is served, from the Deployments and the HTTPRoute."""
        weights = _weights(self._service.cluster.get(HTTP_ROUTE, self._service.name))
        stable = self._arm(live["spec"]["predictor"], weights, live)
        trial = _trial(live)
        if memory.stable is None and memory.canary and memory.canary.digest == stable.arm.model.digest and trial is None:
            # A first version is on trial alone, and gets all there is: what it is told is only written down.
            share = memory.share if stable.arm.share else 0
            return Seen(canary=self._tried(SeenArm(replace(stable.arm, share=share), stable.workload)))
        if trial is None:
            return Seen(stable)
        return Seen(stable, self._tried(self._arm(trial["predictor"], weights, live, on_trial=True)))

    def start(self, version: Version, memory: Memory, over: str = "") -> None:
        """Puts a version on trial, without traffic; or makes the service with it."""

        def decide(live: Object | None) -> Object | None:
            if live is None:
                return self._service.manifest(STANDARD, version.predictor)
            trial = _trial(live)
            in_charge = model_of(live["spec"]["predictor"]).digest
            if in_charge == version.digest or (trial and model_of(trial["predictor"]).digest == version.digest):
                return None
            if trial or memory.stable is None or in_charge != memory.stable.digest:
                raise TargetChanged(f"somebody else changed the versions of {self._service.model_name!r} meanwhile")
            return self._manifest(memory, version, 0, 1)

        self.tidy()
        self._service.edit(decide)

    def tidy(self) -> None:
        """Takes away the autoscalers of versions that are not served any more, which KServe leaves behind.

        A version that is started again has the name that it had, and an old autoscaler would fight KServe for its replicas.
        """
        live = self._service.live()
        if live is None:
            # With the service goes what it owns.
            return
        served = [live["spec"]["predictor"], *(trial["predictor"] for trial in live["spec"].get("canary") or ())]
        names = {self._workload(predictor) for predictor in served}
        for kind in (SCALED_OBJECT, POD_AUTOSCALER):
            for found in self._service.cluster.select(kind, {OWNER_LABEL: self._service.name, **_OF_PREDICTORS}):
                metadata = found["metadata"]
                if metadata["name"] in names or metadata.get("deletionTimestamp") or not _is_owned(found, live):
                    continue
                # KServe may still be at work on the version as long as that runs, and would make it anew.
                self._await_gone(metadata["name"], f"what runs as {metadata['name']} to be taken away")
                # Another object of that name is not the one that was left.
                with suppress(Stale):
                    self._service.cluster.delete(kind, found, changed_too=True)

    def replicas(self, memory: Memory, version: Version) -> int:
        """How many replicas it takes to answer all the traffic."""
        if memory.stable is None:
            return 1
        predictor = memory.stable.predictor
        wanted = max(predictor.get("minReplicas", 1), version.predictor.get("minReplicas", 1))
        if not is_scaled(predictor):
            return int(wanted)
        deployment = self._service.cluster.get(DEPLOYMENT, self._workload(predictor))
        running = _status(deployment, "replicas") if deployment else 0
        return int(min(max(wanted, running), predictor.get("maxReplicas", wanted)))

    def set_share(self, memory: Memory, percent: int) -> None:
        """Moves the share; with more replicas before it rises, and with fewer after it has fallen."""
        stable, canary = _both(memory)
        memory = self._counted(memory, canary)
        replicas = canary_replicas(memory.replicas, percent)
        before, running = self._share_and_replicas(canary)
        if percent > before:
            self._await_replicas(memory, canary, replicas)
        self._put(memory, canary, percent, max(replicas, running))
        self._await_weights(stable, canary, percent)
        self._put(memory, canary, percent, replicas)

    def promote(self, memory: Memory) -> None:
        """All the weight first, then the names."""
        stable, canary = _both(memory)
        memory = self._counted(memory, canary)

        def move() -> None:
            self.set_share(memory, 100)

        self._await_replicas(memory, canary, canary_replicas(memory.replicas, 100))
        moved = self._move_weight(stable, move)

        def decide(live: Object | None) -> Object | None:
            if live is not None and model_of(live["spec"]["predictor"]).digest == canary.digest:
                return None
            if self._on_trial(live, canary)["trafficPercent"] != 100 and moved:
                raise TargetChanged(f"somebody else took traffic from version {canary.model.version} meanwhile")
            return self._service.manifest(STANDARD, canary.predictor)

        self._service.edit(decide)
        self.await_alone(canary, gone=stable)

    def withdraw(self, memory: Memory) -> None:
        """Takes the weight away first, then the version on trial."""
        stable = memory.stable
        if stable is None:
            return
        moved = self._move_weight(stable, lambda: self._silence(memory))
        live = self._service.live()
        trial = _trial(live) if live else None
        if trial is None:
            self.tidy()
            return

        def decide(live: Object | None) -> Object | None:
            if live is None or _trial(live) is None:
                return None
            return self._service.manifest(STANDARD, stable.predictor)

        self._service.edit(decide, ours="spec.canary")
        gone = Version(model_of(trial["predictor"]), trial["predictor"])
        if moved:
            self.await_alone(stable, gone=gone)
        else:
            self._await_gone(self._workload(gone.predictor), f"version {gone.model.version} to be taken away")
            self.tidy()

    make_room = withdraw

    def await_alone(self, version: Version, gone: Version | None = None) -> None:
        """Waits until a version gets all the traffic, with no other beside it."""

        def alone() -> bool:
            if not self._routes_lead_to({self._workload(version.predictor): 100}):
                return False
            return gone is None or self._is_gone(self._workload(gone.predictor))

        what = f"version {version.model.version} to get all the traffic alone"
        self._service.wait(alone, what, self._service.obey_seconds, self._why_not)
        self.tidy()

    def _await_gone(self, workload: str, what: str) -> None:
        self._service.wait(lambda: self._is_gone(workload), what, self._service.obey_seconds, self._why_not)

    def _is_gone(self, workload: str) -> bool:
        return self._service.cluster.get(DEPLOYMENT, workload) is None

    def _move_weight(self, stable: Version, move: Callable[[], None]) -> bool:
        """Moves the weight, if KServe does: not while the version in charge is down, or too few of its replicas answer."""
        deployment = self._service.cluster.get(DEPLOYMENT, self._workload(stable.predictor))
        if deployment is None or not _status(deployment, "availableReplicas"):
            return False
        try:
            move()
        except NotAvailable:
            live = self._service.live()
            if live is None or not _condition(live, _READY):
                raise
            return False
        return True

    def _silence(self, memory: Memory) -> None:
        """Takes the weight from the version on trial, whoever gave it."""

        def decide(live: Object | None) -> Object | None:
            trial = _trial(live) if live else None
            if live is None or trial is None or not trial["trafficPercent"] or memory.stable is None:
                return None
            predictor = beside_trial(memory.stable.predictor, trial["predictor"].get("minReplicas", 1), memory.replicas)
            return self._service.manifest(STANDARD, predictor, canary=trial["predictor"], percent=0)

        live = self._service.edit(decide, ours="spec.canary")
        trial = _trial(live) if live else None
        if live is not None and trial is not None:
            in_charge = self._workload(live["spec"]["predictor"])
            what = f"version {model_of(trial['predictor']).version} to get no traffic"
            self._service.wait(lambda: self._routes_lead_to({in_charge: 100}), what, self._service.obey_seconds, self._why_not)

    def _share_and_replicas(self, canary: Version) -> tuple[int, int]:
        trial = self._on_trial(self._service.live(), canary)
        return int(trial["trafficPercent"]), int(trial["predictor"].get("minReplicas", 1))

    def _counted(self, memory: Memory, canary: Version) -> Memory:
        """The notes with the replicas that it takes now: an autoscaler may have started more since the trial began."""
        return replace(memory, replicas=max(memory.replicas, self.replicas(memory, canary)))

    def _put(self, memory: Memory, canary: Version, percent: int, replicas: int) -> None:
        def decide(live: Object | None) -> Object | None:
            trial = self._on_trial(live, canary)
            if (trial["trafficPercent"], trial["predictor"].get("minReplicas", 1)) == (percent, replicas):
                return None
            return self._manifest(memory, canary, percent, replicas)

        self._service.edit(decide)

    def _manifest(self, memory: Memory, canary: Version, percent: int, replicas: int) -> Object:
        if memory.stable is None:
            raise TargetChanged(f"no version of {self._service.model_name!r} is in charge")
        predictor = beside_trial(memory.stable.predictor, replicas, memory.replicas)
        trial = on_trial(canary.predictor, replicas)
        return self._service.manifest(STANDARD, predictor, canary=trial, percent=percent)

    def _on_trial(self, live: Object | None, canary: Version) -> Object:
        trial = _trial(live) if live else None
        if trial is None:
            raise TargetChanged(f"no version of {self._service.model_name!r} is on trial any more")
        found = model_of(trial["predictor"])
        if found.digest != canary.digest:
            raise TargetChanged(f"somebody else put version {found.version} of {self._service.model_name!r} on trial")
        return trial

    def _await_replicas(self, memory: Memory, canary: Version, replicas: int) -> None:
        """Raises the replicas on trial, and waits until so many answer; the share stays what it is."""
        name = self._workload(canary.predictor)
        share, running = self._share_and_replicas(canary)
        self._put(memory, canary, share, max(replicas, running))

        def enough() -> bool:
            deployment = self._service.cluster.get(DEPLOYMENT, name)
            self._check_not_failed(canary, deployment)
            return deployment is not None and _status(deployment, "availableReplicas") >= replicas

        what = f"{replicas} replicas of version {canary.model.version}"
        self._service.wait(enough, what, self._service.ready_seconds, lambda: self._trouble(canary)[0])

    def _await_weights(self, stable: Version, canary: Version, percent: int) -> None:
        names = (self._workload(stable.predictor), self._workload(canary.predictor))
        wanted = {name: share for name, share in zip(names, (100 - percent, percent)) if share}

        def in_force() -> bool:
            if self._routes_lead_to(wanted):
                return True
            if percent:
                self._check_not_failed(canary, self._service.cluster.get(DEPLOYMENT, names[1]))
            # Somebody else may have ended the trial.
            self._on_trial(self._service.live(), canary)
            return False

        what = f"version {canary.model.version} to get {percent} %"
        self._service.wait(in_force, what, self._service.obey_seconds, self._why_not)

    def _check_not_failed(self, canary: Version, deployment: Object | None) -> None:
        if deployment is None or not _status(deployment, "availableReplicas"):
            why, failed = self._trouble(canary)
            if failed:
                raise NotAvailable(f"version {canary.model.version} cannot get traffic: {why}")

    def _routes_lead_to(self, wanted: Mapping[str, int]) -> bool:
        """Whether both routes, of the service and of its predictor, are in force with these weights."""
        names = (self._service.name, workload_name(self._service.name))
        routes = [self._service.cluster.get(HTTP_ROUTE, name) for name in names]
        return all(route is not None and _is_in_force(route) and _weights(route) == wanted for route in routes)

    def _why_not(self) -> str:
        live = self._service.live()
        if live is None:
            return "the InferenceService is gone"
        told = [_condition(live, kind) for kind in (_READY, "IngressReady")]
        found = "; ".join(text for text in told if text)
        if not found and self._service.cluster.get(HTTP_ROUTE, self._service.name) is None:
            return _NO_ROUTE
        return found

    def _trouble(self, version: Version) -> tuple[str, bool]:
        why, failed = trouble(self._service.pods(version.digest))
        if why:
            return why, failed
        deployment = self._service.cluster.get(DEPLOYMENT, self._workload(version.predictor))
        live = self._service.live() if deployment is None else None
        return (self._service.refusal(live) if live else stuck(deployment)), failed

    def _workload(self, predictor: Mapping[str, Any]) -> str:
        return workload_name(self._service.name, predictor.get("name", ""))

    def _arm(self, predictor: Object, weights: Mapping[str, int], live: Object, *, on_trial: bool = False) -> SeenArm:
        model, name = model_of(predictor), self._workload(predictor)
        deployment = self._service.cluster.get(DEPLOYMENT, name)
        ready = (
            deployment is not None and _digest(deployment) == model.digest and bool(_status(deployment, "availableReplicas"))
        )
        if ready and on_trial:
            # Only what KServe says is ready gets a weight.
            said = (live.get("status") or {}).get("canaryStatuses") or ()
            ready = any(found["name"] == predictor["name"] and found["ready"] for found in said)
        reason, failed = ("", False) if ready else trouble(self._service.pods(model.digest))
        if not ready and not reason:
            reason = stuck(deployment) or (self._service.refusal(live) if deployment is None else "") or "it is being started"
        url, spoken = self._url(name) if ready else "", layout(predictor.get("annotations"))
        arm = Arm(model, weights.get(name, 0), ready=ready, failed=failed, reason=reason, url=url, layout=spoken)
        return SeenArm(arm, name)

    def _tried(self, seen: SeenArm) -> SeenArm:
        """A version on trial; failed if it crashes again and again, though it answers in between."""
        why = crashes(self._service.pods(seen.arm.model.digest))
        return replace(seen, arm=replace(seen.arm, ready=False, failed=True, reason=why, url="")) if why else seen

    def _url(self, name: str) -> str:
        """Address of one version inside the cluster; nothing leads to it alone from outside."""
        found = self._service.cluster.get(SERVICE, name)
        if found is None:
            return ""
        port = found["spec"]["ports"][0]
        number = port["targetPort"] if found["spec"].get("clusterIP") == "None" else port["port"]
        return f"http://{name}.{self._service.cluster.namespace}.svc" + ("" if number == 80 else f":{number}")


def _trial(live: Object) -> Object | None:
    """What is on trial.

    Raises:
        TargetChanged: somebody else put something there.
    """
    found = live["spec"].get("canary") or []
    if not found:
        return None
    if len(found) > 1 or not identity(found[0]["predictor"].get("annotations"))[2]:
        raise TargetChanged(
            f"somebody else put a version on trial in InferenceService {live['metadata']['name']}: end that first"
        )
    trial: Object = found[0]
    return trial


def _is_owned(found: Object, live: Object) -> bool:
    """Whether an object goes with this InferenceService, and not with another one or with nobody."""
    return any(owner.get("uid") == live["metadata"]["uid"] for owner in found["metadata"].get("ownerReferences") or ())


def _both(memory: Memory) -> tuple[Version, Version]:
    if memory.stable is None or memory.canary is None:
        raise TargetChanged("no version is on trial beside one in charge")
    return memory.stable, memory.canary


def _weights(route: Object | None) -> dict[str, int]:
    """Percent of the traffic by backend; empty where the rules of a route differ, or there is none."""
    found = []
    for rule in (route or {}).get("spec", {}).get("rules") or ():
        backends = rule.get("backendRefs") or ()
        total = sum(backend.get("weight", 1) for backend in backends)
        if total:
            found.append(
                {each["name"]: round(100 * each.get("weight", 1) / total) for each in backends if each.get("weight", 1)}
            )
    return found[0] if found and all(weights == found[0] for weights in found) else {}


def _is_in_force(route: Object) -> bool:
    """Whether every gateway has taken up the route as it is, and found what it leads to."""
    parents = [parent for parent in (route.get("status") or {}).get("parents") or () if _is_of_gateway(parent)]
    return bool(parents) and all(_takes(parent, route["metadata"].get("generation", 0)) for parent in parents)


def _is_of_gateway(parent: Object) -> bool:
    """Whether an entry is, or will be, a gateway's: controllers of policies add their own, which say nothing of the route."""
    conditions = parent.get("conditions") or ()
    return not conditions or any(condition["type"] in ("Accepted", "ResolvedRefs") for condition in conditions)


def _takes(parent: Object, generation: int) -> bool:
    said = {
        condition["type"]: condition["status"] == "True" and condition.get("observedGeneration", generation) >= generation
        for condition in parent.get("conditions") or ()
    }
    return said.get("Accepted", False) and said.get("ResolvedRefs", True)


def _status(deployment: Object, count: str) -> int:
    return int((deployment.get("status") or {}).get(count) or 0)


def _digest(deployment: Object) -> str:
    return identity(deployment["spec"]["template"]["metadata"].get("annotations"))[2]


def _condition(live: Object, kind: str) -> str:
    """What a condition of the service says, if it is not true."""
    for condition in (live.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] != "True":
            return f"{kind} is {condition['status']}: {condition.get('message') or condition.get('reason') or 'no reason'}"
    return ""
