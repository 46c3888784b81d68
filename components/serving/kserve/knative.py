"""Knative mode: revisions, and Knative splits the traffic between them.

An InferenceService has one predictor, the newest. With a percentage, the latest revision *that is ready* gets it, and the
revision that had all the traffic last gets the rest; without one, the latest that is ready gets everything. So

- a version on trial is written together with 0 %;
- the percentage goes only when the latest revision is ready and is the one that is meant: else another would get everything;
- a version that is sent back is not left in the predictor: with 0 % still in force the version in charge is written there
  again, and the percentage goes when that is ready;
- before a trial the version in charge is made again, unless it is also the revision that was rolled out before: KServe goes
  back to that one if the 0 % reaches the route before the version on trial is a revision.

The very first version gets all the traffic as soon as it is ready, whatever is asked: KServe has no other way.
At 100 % KServe counts a version as rolled out, before it is promoted: what says that it is on trial still, is that the
percentage stands there, and the notes.

| killed after | then |
|---|---|
| the version in charge is made again | it serves all the time; the next call goes on |
| the version is on trial, at 0 % | it gets nothing; the next call waits for it |
| the share is changed | it comes into force by itself; the next call waits for it |
| the percentage is taken away, before the notes | the cluster says which one is in charge; the notes follow |
| a version that is sent back gets 0 % | it gets nothing; the next call goes on |
| the version in charge is written again, at 0 % | the revision that served goes on serving; the next call goes on |
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from modelyard.components import settings
from modelyard.components.errors import NotAvailable
from modelyard.components.serving.kserve.api import REVISION, Object
from modelyard.components.serving.kserve.names import ATTEMPT, identity, layout
from modelyard.components.serving.kserve.notes import Memory, Version
from modelyard.components.serving.kserve.placement import KNATIVE
from modelyard.components.serving.kserve.pods import crashes, is_ready, living, trouble
from modelyard.components.serving.kserve.service import Seen, SeenArm, Service, model_of
from modelyard.components.serving.target import Arm, ServedModel, TargetChanged

_PERCENT = "canaryTrafficPercent"
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
_NO_PODS = "FailedCreate"
_REVISION_LABEL = "serving.knative.dev/revision"
_ROUTED = "PredictorRouteReady"


class KnativeMode:
    """How a model is served in Knative mode."""

    name = KNATIVE

    def __init__(self, service: Service) -> None:
        self._service = service

    def see(self, live: Object, memory: Memory) -> Seen:
        """What is served, from the revisions and the traffic between them."""
        now = _Now(self._service, live)
        newest = now.newest
        if memory.stable is None and memory.canary is not None and memory.canary.digest == newest.digest:
            # A first version is on trial alone, and gets all there is: what it is told is only written down.
            share = memory.share if now.share(newest.digest) else 0
            return Seen(canary=self._latest_arm(now, share, memory))
        in_charge = self._in_charge(now, memory)
        if in_charge is None:
            return Seen(self._arm(now, newest, now.created, now.share(newest.digest), memory))
        digest = now.digest(in_charge)
        stable = self._arm(now, now.model(in_charge), in_charge, now.share(digest), memory)
        if digest == newest.digest:
            return Seen(stable, settled=now.percent is None)
        canary = self._latest_arm(now, now.share(newest.digest), memory)
        if canary.arm.ready and not canary.arm.url:
            # Knative's route has not come to it yet, so nobody can ask it anything.
            canary = replace(canary, arm=replace(canary.arm, ready=False, reason="its address is being made"))
        return Seen(stable, canary, settled=False)

    def _in_charge(self, now: "_Now", memory: Memory) -> str | None:
        """The revision in charge: the one rolled out last, unless that is still on trial."""
        rolled_out = now.component.get("latestRolledoutRevision")
        on_trial = memory.canary is not None and memory.stable is not None and now.percent is not None
        if on_trial and rolled_out and memory.canary and now.digest(rolled_out) == memory.canary.digest == now.newest.digest:
            before = now.component.get("previousRolledoutRevision")
            return before if before and memory.stable and now.digest(before) == memory.stable.digest else rolled_out
        return rolled_out

    def start(self, version: Version, memory: Memory, over: str = "") -> None:
        """Puts a version on trial, without traffic; or makes the service with it.

        Args:
            version: what comes on trial.
            memory: the notes, in which it is on trial already.
            over: digest of the version on trial that made room for it.
        """
        self._make_again(memory)

        def decide(live: Object | None) -> Object | None:
            if live is None and memory.stable is None:
                return self._manifest(version, None)
            now = self._now(live)
            if now.newest.digest == version.digest:
                return None
            in_charge = self._in_charge(now, memory)
            if in_charge is None:
                raise NotAvailable(f"version {now.newest.version}, which is in charge, has not been ready yet: try again then")
            stable = memory.stable.digest if memory.stable else ""
            if now.digest(in_charge) != stable or now.newest.digest not in (stable, over) or now.percent not in (None, 0):
                raise TargetChanged(f"somebody else changed the versions of {self._service.model_name!r} meanwhile")
            return self._manifest(version, 0, live)

        self._service.edit(decide)

    def _make_again(self, memory: Memory) -> None:
        """Makes another revision of the version in charge, if KServe could go back to a revision of another version."""
        stable = memory.stable
        if stable is None:
            return

        def could_go_elsewhere(now: _Now) -> bool:
            before = now.component.get("previousRolledoutRevision", "")
            return bool(before) and now.digest(before) != stable.digest

        def decide(live: Object | None) -> Object | None:
            now = self._now(live)
            alone = now.newest.digest == stable.digest and now.percent is None
            return self._manifest(stable, None, live, again=True) if alone and could_go_elsewhere(now) else None

        def done(now: _Now) -> bool:
            # One that made room is never the one that was rolled out last; somebody else's is refused right after this.
            return now.newest.digest != stable.digest or now.percent is not None or not could_go_elsewhere(now)

        self._service.edit(decide)
        what = f"version {stable.model.version}, which is in charge, to run as a revision that KServe can go back to"
        self._wait(done, what, self._service.ready_seconds, stable.digest)

    def tidy(self) -> None:
        """Nothing is left behind: Knative's autoscalers go with their revisions."""

    def replicas(self, memory: Memory, version: Version) -> int:
        """Knative scales each revision by itself."""
        return 1

    def set_share(self, memory: Memory, percent: int) -> None:
        """Changes the share of the latest revision, when that is the version on trial."""
        canary = _on_trial(memory)
        if percent:
            self._await_latest(canary, self._service.obey_seconds)
        self._put(canary, percent)
        self._await_share(canary.digest, percent)

    def promote(self, memory: Memory) -> None:
        """Lets everything go to the latest revision, which is the version on trial."""
        canary = _on_trial(memory)
        self._await_latest(canary, self._service.obey_seconds)
        self._let_go(canary)

    def withdraw(self, memory: Memory) -> None:
        """Takes the traffic from the version on trial, then puts the version in charge into its place."""
        stable = memory.stable
        if stable is None:
            return
        self.make_room(memory)

        def decide(live: Object | None) -> Object | None:
            if live is None:
                return None
            now = _Now(self._service, live)
            given_up = now.is_made() and now.is_given_up(now.created)
            if now.newest.digest == stable.digest and not given_up:
                return None
            return self._manifest(stable, 0, live, again=given_up)

        self._service.edit(decide, ours=f"spec.predictor.{_PERCENT}")
        self._await_latest(stable, self._service.ready_seconds)
        self._let_go(stable)

    def make_room(self, memory: Memory) -> None:
        """Takes the traffic from the version on trial, whoever gave it."""
        stable = memory.stable

        def decide(live: Object | None) -> Object | None:
            if live is None or stable is None:
                return None
            now = _Now(self._service, live)
            if now.newest.digest == stable.digest or now.percent == 0:
                return None
            version = memory.find(now.newest.digest)
            if version is None:
                raise TargetChanged(f"somebody else put version {now.newest.version} of {self._service.model_name!r} on trial")
            return self._manifest(version, 0, live)

        live = self._service.edit(decide, ours=f"spec.predictor.{_PERCENT}")
        if live is not None and stable is not None:
            newest = _Now(self._service, live).newest
            if newest.digest != stable.digest:
                self._await_share(newest.digest, 0)

    def await_alone(self, version: Version, gone: Version | None = None) -> None:
        """Waits until a version gets all the traffic."""
        self._await_share(version.digest, 100)

    def _let_go(self, version: Version) -> None:
        """Takes the percentage away, if that gives everything to this version."""

        def ask_for(percent: int | None, live: Object | None) -> Object | None:
            now = self._now(live)
            if now.newest.digest != version.digest:
                raise TargetChanged(f"somebody else put version {now.newest.version} of {self._service.model_name!r} there")
            if now.percent in (None, percent):
                return None
            if not now.is_latest(version.digest):
                raise NotAvailable(f"version {version.model.version} is not the latest revision that is ready any more")
            return self._manifest(version, percent, live)

        # A percentage that somebody else has set would stay when ours goes; asked for another one, they are named.
        for percent in (100, None):
            self._service.edit(partial(ask_for, percent))

        def rolled_out(now: _Now) -> bool:
            alone = now.share(version.digest) == 100 and now.component.get("latestRolledoutRevision") == now.created
            return alone and now.digest(now.created) == version.digest

        self._wait(rolled_out, f"version {version.model.version} to get all the traffic")

    def _put(self, canary: Version, percent: int) -> None:
        def decide(live: Object | None) -> Object | None:
            now = self._now(live)
            if now.newest.digest != canary.digest:
                raise TargetChanged(f"no longer version {canary.model.version} of {self._service.model_name!r} is on trial")
            return None if now.percent == percent else self._manifest(canary, percent, live)

        self._service.edit(decide)

    def _await_latest(self, version: Version, seconds: float) -> None:
        """Waits until the latest revision is of this version, and ready."""

        def latest(now: _Now) -> bool:
            if now.newest.digest != version.digest:
                raise TargetChanged(f"somebody else put version {now.newest.version} of {self._service.model_name!r} there")
            if now.is_latest(version.digest):
                return True
            why, failed = self._trouble(now, version.digest)
            if failed:
                raise NotAvailable(f"version {version.model.version} cannot get traffic: {why}")
            return False

        self._wait(latest, f"version {version.model.version} to be ready", seconds, version.digest)

    def _await_share(self, digest: str, percent: int) -> None:
        def in_force(now: _Now) -> bool:
            return bool(now.traffic) and now.share(digest) == percent and now.is_routed()

        self._wait(in_force, f"the traffic to be split, {percent} % for the version on trial")

    def _wait(self, so: "Callable[[_Now], bool]", what: str, seconds: float = 0.0, digest: str = "") -> None:
        def why() -> str:
            live = self._service.live()
            if live is None:
                return ""
            found = self._trouble(_Now(self._service, live), digest)[0] if digest else ""
            return found or self._service.refusal(live) or _told(live)

        self._service.wait(lambda: so(self._now(self._service.live())), what, seconds or self._service.obey_seconds, why)

    def _now(self, live: Object | None) -> "_Now":
        if live is None:
            raise TargetChanged(f"somebody else deleted InferenceService {self._service.name}")
        return _Now(self._service, live)

    def _manifest(self, version: Version, percent: int | None, live: Object | None = None, *, again: bool = False) -> Object:
        """The service with this version; over one that has it already it makes no new revision, unless ``again``.

        Every new revision is told from the others of its version by the generation that it was written over: the status speaks
        of an older one until the controllers have come to the new one.
        """
        wanted = self._service.manifest(KNATIVE, version.predictor, percent=percent)
        if live is None:
            return wanted
        before, annotations = live["spec"]["predictor"], wanted["spec"]["predictor"]["annotations"]
        if again or model_of(before).digest != version.digest:
            annotations[ATTEMPT] = str(live["metadata"]["generation"])
        elif ATTEMPT in before["annotations"]:
            annotations[ATTEMPT] = before["annotations"][ATTEMPT]
        return wanted

    def _trouble(self, now: "_Now", digest: str) -> tuple[str, bool]:
        """Why the latest revision is not ready, if it is of this version."""
        if not now.is_made() or now.newest.digest != digest:
            return "", False
        return trouble(self._pods(now, now.created))

    def _pods(self, now: "_Now", revision: str) -> list[Mapping[str, Any]]:
        pods = living(self._service.pods(now.digest(revision)))
        return [pod for pod in pods if pod["metadata"]["labels"].get(_REVISION_LABEL) == revision]

    def _latest_arm(self, now: "_Now", share: int, memory: Memory) -> SeenArm:
        """The latest revision; it has failed also if it is ready now and then."""
        seen = self._arm(now, now.newest, now.created, share, memory)
        if not now.is_made() or not (why := crashes(self._pods(now, now.created))):
            return seen
        return replace(seen, arm=replace(seen.arm, ready=False, failed=True, reason=why, url=""))

    def _arm(self, now: "_Now", model: ServedModel, revision: str, share: int, memory: Memory) -> SeenArm:
        known = memory.find(model.digest)
        model = known.model if known else model
        if now.digest(revision) != model.digest:
            reason = self._service.refusal(now.live) or "its revision is being made"
            return SeenArm(Arm(model, share, ready=False, reason=reason))
        pods = self._pods(now, revision)
        # One that gets nothing may have no pods, and is ready all the same.
        ready = now.is_ready(revision) and (not pods or any(is_ready(pod) for pod in pods))
        reason, failed = ("", False) if ready else trouble(pods)
        if not ready and not reason:
            reason, failed = now.problem(revision)
        url = now.url(revision) if ready else ""
        arm = Arm(model, share, ready=ready, failed=failed, reason=reason, url=url, layout=now.layout(revision))
        return SeenArm(arm, revision)


class _Now:
    """The service at one moment: its status, and the revisions that the status speaks of."""

    def __init__(self, service: Service, live: Object) -> None:
        self._service, self.live = service, live
        self._revisions: dict[str, Object | None] = {}
        self.newest = model_of(live["spec"]["predictor"])
        self.percent: int | None = live["spec"]["predictor"].get(_PERCENT)
        self.component: dict[str, Any] = ((live.get("status") or {}).get("components") or {}).get("predictor") or {}
        self.traffic: list[dict[str, Any]] = self.component.get("traffic") or []
        self.created: str = self.component.get("latestCreatedRevision", "")

    def digest(self, revision: str) -> str:
        return identity(self._annotations(revision))[2]

    def model(self, revision: str) -> ServedModel:
        _, version, digest = identity(self._annotations(revision))
        return ServedModel(version, digest, self._annotations(revision).get(_SOURCE, ""))

    def layout(self, revision: str) -> str:
        return layout(self._annotations(revision))

    def share(self, digest: str) -> int:
        """Percent of the traffic that revisions of this version get."""
        return sum(target.get("percent") or 0 for target in self.traffic if self.digest(target["revisionName"]) == digest)

    def is_made(self) -> bool:
        """Whether the latest revision is of what is written in the service now."""
        of_revision, written = self._annotations(self.created), self.live["spec"]["predictor"]["annotations"]
        return identity(of_revision) == identity(written) and of_revision.get(ATTEMPT) == written.get(ATTEMPT)

    def is_latest(self, digest: str) -> bool:
        """Whether the latest revision is of this version, and ready."""
        latest = self.created == self.component.get("latestReadyRevision") and self.newest.digest == digest
        return self.is_made() and latest and self.is_ready(self.created)

    def is_routed(self) -> bool:
        """Whether the gateway does what the traffic says: Knative writes that down first. True where nothing is said of it."""
        conditions = (self.live.get("status") or {}).get("conditions") or ()
        return all(found["status"] == "True" for found in conditions if found["type"] == _ROUTED)

    def is_ready(self, revision: str) -> bool:
        return self._condition(revision).get("status") == "True"

    def is_refused_pods(self, revision: str) -> bool:
        """Whether its pods cannot be made; it is tried again and again, for a quota or a service account can still come."""
        return self._condition(revision).get("reason") == _NO_PODS

    def is_given_up(self, revision: str) -> bool:
        return self._condition(revision).get("status") == "False" and not self.is_refused_pods(revision)

    def problem(self, revision: str) -> tuple[str, bool]:
        """Why a revision is not ready, where its pods do not say; and whether that will not pass by itself."""
        condition = self._condition(revision)
        told = condition.get("message") or condition.get("reason")
        if self.is_refused_pods(revision):
            return f"its pods cannot be made: {told}", False
        if self.is_given_up(revision):
            return f"Knative gave it up: {told or 'no reason given'}{self._last_failure(revision)}", True
        return told or "it is being started", False

    def _last_failure(self, revision: str) -> str:
        """What KServe saw last in a pod, which may be gone; it does not say of which version, so only of the latest."""
        of_model = (self.live.get("status") or {}).get("modelStatus") or {}
        told = str((of_model.get("lastFailureInfo") or {}).get("message") or "").strip()
        blocked = revision == self.created and of_model.get("transitionStatus") == "BlockedByFailedLoad"
        return f"; the last failure that KServe saw: {told}" if blocked and told else ""

    def url(self, revision: str) -> str:
        """Address that leads to a revision alone: inside the cluster its own there, elsewhere the public one."""
        for target in self.traffic:
            if target["revisionName"] == revision and target.get("tag"):
                host = (self.component.get("address") or {}).get("url", "")
                if settings.in_cluster() and "://" in host:
                    scheme, _, rest = host.partition("://")
                    return f"{scheme}://{target['tag']}-{rest}"
                return str(target.get("url") or "")
        return ""

    def _condition(self, revision: str) -> dict[str, Any]:
        conditions = ((self._find(revision) or {}).get("status") or {}).get("conditions") or ()
        return next((found for found in conditions if found["type"] == "Ready"), {})

    def _annotations(self, revision: str) -> dict[str, str]:
        found = self._find(revision)
        return (found["metadata"].get("annotations") or {}) if found else {}

    def _find(self, revision: str) -> Object | None:
        if revision and revision not in self._revisions:
            self._revisions[revision] = self._service.cluster.get(REVISION, revision)
        return self._revisions.get(revision)


def _on_trial(memory: Memory) -> Version:
    if memory.stable is None or memory.canary is None:
        raise TargetChanged("no version is on trial beside one in charge")
    return memory.canary


def _told(live: Object) -> str:
    """What the service says of its predictor, if that is not ready."""
    for condition in (live.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PredictorReady" and condition["status"] != "True":
            return f"{condition['status']}: {condition.get('message') or condition.get('reason') or 'no reason given'}"
    return ""
