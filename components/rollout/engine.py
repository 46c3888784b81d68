"""The rollout itself, written once above the verbs of a serving target: start the canary, raise its share, look, decide.

At each step below 100 % both arms serve side by side and are compared (``evidence``). Under them lies a floor that needs no
comparison: the canary is refused or dies, fails a golden row, or fails in a burst. What a look finds is written down before the
next one, so a rollout that was killed goes on where it stood: same evidence, same counts, same step.

| what happens | decision | then |
|---|---|---|
| every step lasted its time, saw its requests, and no test failed | pass | champion in the registry, then all the traffic |
| a test or the floor decides against the canary | fail | traffic back at once, then sent back in the registry |
| a step did not see its requests by its deadline | inconclusive | traffic back; it stays the challenger and may try again |
| it was not ready for too long, though nothing speaks against it | inconclusive | the same |
| somebody else changed what is served | inconclusive | the canary is taken away if it is still there |

Without a version in charge there is nothing to compare with: the first version gets all the traffic at once, and only the
floor is watched.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from modelyard.components.announcements import announce
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry.promotion import PromotionRefused, promote_model
from modelyard.components.rollout import registry_side
from modelyard.components.rollout.evidence import TITLES, Evidence, shift_between, without_data
from modelyard.components.rollout.golden import golden_fault
from modelyard.components.rollout.increments import Increment, increment
from modelyard.components.rollout.plan import WHOLE, Plan, Step
from modelyard.components.rollout.record import (
    CANARY,
    FINISHED,
    NO_SHARE,
    PROMOTING,
    ROLLING_BACK,
    STABLE,
    STARTING,
    WATCHING,
    Notes,
    Progress,
    Record,
    TakenOver,
    point_of,
)
from modelyard.components.rollout.registry_side import RegistryChange, RegistryView
from modelyard.components.rollout.sequential import is_burst
from modelyard.components.serving.target import Arm, ArmCounts, ServedModel, ServingState, ServingTarget, TargetChanged, serves

_T = TypeVar("_T")

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
PROMOTED, ROLLED_BACK = "promoted", "rolled_back"

_WINDOW_REQUESTS = 100
# About 4 in 100,000 for one look: a step has hundreds, and this is a net under the tests, not one of them.
_Z = 4.0
_MOST_RESTARTS = 2


class _Decided(Exception):
    """Ends the watching with a decision."""

    def __init__(self, decision: str, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.decision, self.reasons = decision, list(reasons)


class Rollout:
    """One rollout of one version.

    Args:
        target: where the model is served.
        model_name: the model.
        view: what the registry says; its versions are verified.
        plan: what to do.
        notes: the record, claimed.
        clock: seconds that only grow.
        now: seconds since 1970.
        sleep: waits for a number of seconds.
        options: what the ``modelyard`` commands need to reach the target; see ``command_options``.
        replay: says what is wrong with an arm's answers to the golden rows, given the model's name and directory.
    """

    def __init__(
        self,
        target: ServingTarget,
        model_name: str,
        view: RegistryView,
        plan: Plan,
        notes: Notes,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        options: str = "",
        replay: Callable[[Arm, str, Path], str] = golden_fault,
    ) -> None:
        self._target, self._name, self._view, self._plan, self._notes = target, model_name, view, plan, notes
        self._clock, self._now, self._sleep, self._replay, self._options = clock, now, sleep, replay, options
        self._candidate = view.candidate.model
        self._progress = Progress(self._candidate.version, self._candidate.digest, self._candidate.uri, plan.to_json())
        self._evidence: Evidence | None = None
        self._last_look = 0.0

    def run(self, earlier: Progress | None) -> Progress:
        """Brings the version to its end, promoted or rolled back, and returns how it went.

        Args:
            earlier: the last rollout of the model, from the record.

        Raises:
            InvalidInput, TargetChanged: it cannot begin on what is served now; nothing was changed.
            NotAvailable: the target or the registry cannot be reached; what is served stays as it is, and a repetition goes on.
        """
        state = self._target.state(self._name)
        unfinished = earlier is not None and earlier.phase != FINISHED
        if earlier is not None and earlier.digest == self._candidate.digest and earlier.version == self._candidate.version:
            if unfinished and self._goes_on(earlier, state):
                self._progress = earlier
                self._event(f"Goes on after it was stopped while {earlier.phase}.")
            elif not unfinished and self._still_holds(earlier, state):
                return earlier
        elif earlier is not None and unfinished and serves(state.canary, earlier.digest):
            raise TargetChanged(
                f"a rollout of version {earlier.version} of {self._name!r} was stopped half-way and its canary still stands: "
                f"run that rollout again to finish it, or end it with: {self._command('split', ' --end')}"
            )
        try:
            if self._progress is not earlier:
                self._begin(state)
            try:
                if self._progress.phase == STARTING:
                    self._start()
                if self._progress.phase == WATCHING:
                    self._watch()
            except _Decided as decided:
                self._turn_back(decided.decision, decided.reasons)
            if self._progress.phase == PROMOTING:
                self._promote()
            if self._progress.phase == ROLLING_BACK:
                self._roll_back()
        except TakenOver as taken:
            with suppress(NotAvailable):
                self._leave(taken.record)
            raise
        return self._progress

    def refuse(self, earlier: Progress | None, why: VerificationFailed) -> Progress:
        """Ends the rollout of a version that is not what the registry says it is, and returns how it went.

        Args:
            earlier: the last rollout of the model, from the record.
            why: what was found.

        Raises:
            VerificationFailed: it is in charge already, or the rollout of another version stands half-way: nothing was changed.
            NotAvailable: the target cannot be reached; a repetition goes on.
        """
        state = self._target.state(self._name)
        unfinished = earlier is not None and earlier.phase != FINISHED
        mine = earlier is not None and earlier.digest == self._candidate.digest
        if serves(state.stable, self._candidate.digest) or (
            earlier is not None and unfinished and not mine and serves(state.canary, earlier.digest)
        ):
            raise why
        if earlier is not None and unfinished and mine:
            self._progress = earlier
        else:
            self._progress.started = self._now()
        self._turn_back(FAIL, [f"version {self._candidate.version} was refused: {why}"])
        self._roll_back()
        return self._progress

    def _leave(self, kept: Record) -> None:
        """Undoes what this process did since a rollback, or the promotion of another version, ended its rollout."""
        ended, digest = kept.rollout, self._progress.digest
        if kept.promoted:
            if kept.promoted["model"]["digest"] != digest and serves(self._target.state(self._name).canary, digest):
                self._target.roll_back(self._name)
            return
        if kept.holder or not kept.rolled_back or ended is None or ended.digest != digest or ended.phase != FINISHED:
            return
        state = self._target.state(self._name)
        if serves(state.canary, digest):
            self._target.roll_back(self._name)
        elif serves(state.stable, digest) and kept.rolled_back["to"]:
            self._target.restore(self._name, ServedModel(**kept.rolled_back["to"]))
        if self._progress.registry_asked:
            self._notes.add_pending(self._registry_change("; ".join(ended.reasons)).to_json())
            registry_side.finish_pending(self._target, self._name)

    def _command(self, verb: str, details: str = "") -> str:
        return f"modelyard {verb} {self._name}{details}{self._options}"

    # Where it stands

    def _goes_on(self, earlier: Progress, state: ServingState) -> bool:
        """Whether to take up an unfinished rollout of the same version, or to begin anew."""
        if earlier.phase == WATCHING and not serves(state.canary, earlier.digest):
            return False
        if earlier.plan == self._plan.to_json() or earlier.phase in (PROMOTING, ROLLING_BACK):
            return True
        if serves(state.canary, earlier.digest):
            raise InvalidInput(
                "steps, seconds and limits",
                self._plan.to_json(),
                f"a rollout of this version is under way with others ({earlier.plan}): repeat it with those, "
                f"or end it with: {self._command('split', ' --end')}",
            )
        return False

    def _still_holds(self, earlier: Progress, state: ServingState) -> bool:
        """Whether the answer of a finished rollout of the same version is the answer now."""
        if earlier.decision == PASS:
            return serves(state.stable, earlier.digest) and self._is_champion()
        # Registered again, it is a challenger again and is tried again; so is one that was not refuted.
        return earlier.decision == FAIL and bool(self._view.rejected)

    def _is_champion(self) -> bool:
        champion = self._view.champion
        return champion is not None and champion.model.digest == self._candidate.digest

    def _begin(self, state: ServingState) -> None:
        """Checks what is served against what the registry says, and opens the record."""
        progress, champion = self._progress, self._view.champion
        progress.started = self._now()
        if self._is_champion() and serves(state.stable, self._candidate.digest):
            progress.reasons = [f"version {self._candidate.version} is in charge already"]
            progress.phase, progress.decision, progress.outcome = FINISHED, PASS, PROMOTED
            return
        if self._view.rejected:
            progress.reasons = [
                f"version {self._candidate.version} was sent back before ({self._view.rejected}): register it to try again"
            ]
            progress.phase, progress.decision, progress.outcome = FINISHED, FAIL, ROLLED_BACK
            return
        in_charge = champion.model if champion else None
        if in_charge is None and state.stable is not None and serves(state.stable, self._candidate.digest):
            progress.reasons = ["the first version, and served already: there was nothing to compare with"]
            progress.phase, progress.decision = PROMOTING, PASS
            self._notes.write(progress)
            return
        if state.stable is not None and (in_charge is None or in_charge.digest != state.stable.model.digest):
            called = f"version {in_charge.version}" if in_charge else "no version"
            version = in_charge.version if in_charge else state.stable.model.version
            way_on = f"put version {version} in charge first, with: {self._command('promote', f' --version {version}')}"
            raise TargetChanged(
                f"version {state.stable.model.version} of {self._name!r} is served, but the registry's champion is {called}: "
                + way_on
            )
        canary = state.canary
        beside = state.stable is not None
        if canary is not None and (canary.model.digest != self._candidate.digest or (beside and _share_of(canary) != NO_SHARE)):
            waits_for = None if beside else in_charge
            if waits_for is None or canary.model.digest != waits_for.digest:
                raise TargetChanged(
                    f"version {canary.model.version} of {self._name!r} is on trial already, which this rollout did not start: "
                    f"wait for its end, or end it with: {self._command('split', ' --end')}"
                )
        if in_charge is not None and not self._is_champion():
            progress.replaces = {"version": in_charge.version, "digest": in_charge.digest}
        self._event(f"Version {self._candidate.version} is to be rolled out" + self._against() + ".")
        self._notes.write(progress)

    def _against(self) -> str:
        return f" in place of version {self._progress.replaces['version']}" if self._progress.replaces else ", the first one"

    # Start

    def _start(self) -> None:
        champion = self._view.champion
        if self._progress.replaces and champion is not None and not self._is_champion():
            if self._view.judged_against != champion.model.version:
                raise _Decided(
                    FAIL,
                    f"it was judged against {self._judged_against()}, but the champion is version {champion.model.version} "
                    "now: evaluate it against that one",
                )
            self._serve_champion(champion)
        try:
            arm = self._start_arm(self._candidate)
        except NotAvailable as error:
            arm = self._target.state(self._name).canary
            if not serves(arm, self._candidate.digest):
                raise
            # That may be the version's doing, or that of a cluster without a place for it: it may be tried again.
            reason = f"version {self._candidate.version} did not become ready in time: {error}"
            raise _Decided(INCONCLUSIVE, reason) from error
        if arm is None:
            raise _Decided(INCONCLUSIVE, "the canary was taken away while it was starting")
        if not arm.ready:
            reason = f"version {self._candidate.version} did not become ready: {arm.reason or 'no reason given'}"
            raise _Decided(FAIL if arm.failed else INCONCLUSIVE, reason)
        try:
            fault = self._replay(arm, self._name, self._view.candidate.directory)
        except NotAvailable as error:
            found = self._target.state(self._name).canary
            if found is not None and serves(found, self._candidate.digest) and found.failed:
                raise _Decided(FAIL, self._failure(found)) from error
            raise _Decided(INCONCLUSIVE, f"it could not be asked for its golden rows from here: {error}") from error
        if fault:
            raise _Decided(FAIL, fault)
        try:
            self._begin_counts(self._insist(lambda: self._target.counts(self._name)))
        except NotAvailable as error:
            # Nobody is given traffic that cannot be watched.
            raise _Decided(INCONCLUSIVE, f"what is served cannot be counted: {error}") from error
        self._event("The canary is ready and answers the golden rows as it must.")
        self._progress.phase = WATCHING
        self._notes.write(self._progress)

    def _judged_against(self) -> str:
        return f"version {self._view.judged_against}" if self._view.judged_against else "no champion"

    def _serve_champion(self, champion: registry_side.Released) -> None:
        """Where nothing is served yet, the champion comes first."""
        if self._target.state(self._name).stable is not None:
            return
        self._event(f"Nothing is served yet: version {champion.model.version}, the champion, comes first.")
        arm = self._start_arm(champion.model)
        fault = "it was taken away while it was starting" if arm is None else arm.reason or "it is not ready"
        if arm is not None and arm.ready:
            try:
                fault = self._replay(arm, self._name, champion.directory)
            except NotAvailable as error:
                fault = str(error)
        if arm is None or not arm.ready or fault:
            if arm is not None:
                self._target.roll_back(self._name)
            raise NotAvailable(f"the champion, version {champion.model.version} of {self._name!r}, cannot be served: {fault}")
        self._target.promote(self._name, champion.model.digest)

    def _start_arm(self, model: ServedModel) -> Arm | None:
        """The arm once it is ready or has failed; None if it was taken away. One that has just died may be on its way back."""
        began = self._clock()
        while True:
            try:
                self._target.start_canary(self._name, model)
                break
            except NotAvailable:
                arm = self._target.state(self._name).canary
                if serves(arm, model.digest) and arm is not None and (arm.ready or arm.failed):
                    break
                # A verb that waited in vain has taken longer than that; a server that was away for a moment has not.
                if self._clock() - began >= self._plan.limits.ready_grace_seconds:
                    raise
                self._sleep(self._plan.look_seconds)
        began = self._clock()
        while True:
            arm = self._target.state(self._name).canary
            if arm is None or not serves(arm, model.digest):
                return None
            if arm.ready or arm.failed or self._clock() - began >= self._plan.limits.ready_grace_seconds:
                return arm
            self._sleep(self._plan.look_seconds)

    # Watch

    @property
    def _steps(self) -> tuple[Step, ...]:
        return self._plan.steps if self._progress.replaces else (Step(WHOLE, self._plan.bake_seconds),)

    def _watch(self) -> None:
        progress = self._progress
        self._evidence = Evidence(self._plan.limits, self._reference_shift(), progress.evidence, self._plan.look_seconds)
        while progress.step < len(self._steps):
            step = self._steps[progress.step]
            self._enter(step)
            while not self._look(step):
                pass
            self._event(f"Step {progress.step + 1} of {len(self._steps)}, {step}: passed.")
            progress.step += 1
            progress.waited, progress.watched, progress.held = 0.0, 0.0, False
            progress.samples, progress.failed = {STABLE: 0, CANARY: 0}, {STABLE: 0, CANARY: 0}
            progress.rejected = {STABLE: 0, CANARY: 0}
        self._conclude()

    def _conclude(self) -> None:
        progress = self._progress
        total = progress.total(CANARY)
        if progress.replaces:
            reason = f"every step passed: {total.samples:,} requests, {total.failed:,} failed, and no test speaks against it"
            if silent := without_data(total, progress.total(STABLE)):
                reason += f"; without data, nothing can be said of {' and '.join(TITLES[name].lower() for name in silent)}"
        else:
            reason = "the first version: with nothing to compare with, only readiness, golden rows and bursts were watched"
        progress.phase, progress.decision, progress.reasons = PROMOTING, PASS, [reason]
        self._notes.write(progress)

    def _reference_shift(self) -> float:
        champion = self._view.champion
        return shift_between(self._view.candidate.directory, champion.directory) if champion else 0.0

    def _enter(self, step: Step) -> None:
        """Asks for the step's share, unless it is in force."""
        self._last_look = self._clock()
        share = {"percent": step.percent, "mirror": step.mirror}
        progress = self._progress
        progress.window = {STABLE: [0, 0], CANARY: [0, 0]}
        shares = (progress.asked, progress.in_force)
        if self._differs(self._check_untouched(self._insist(lambda: self._target.state(self._name))), shares):
            # A target that was just started again may not see yet what is in force.
            self._sleep(self._plan.look_seconds)
            self._check_share(self._check_untouched(self._insist(lambda: self._target.state(self._name))), shares)
        if progress.in_force == progress.asked == share:
            return
        progress.asked = share
        # Written first: a share that the record does not explain is somebody else's.
        self._notes.write(progress)
        try:
            self._insist(lambda: self._target.set_share(self._name, step.percent, mirror=step.mirror))
        except TargetChanged as error:
            raise _Decided(INCONCLUSIVE, str(error)) from error
        except NotAvailable as error:
            arm = self._target.state(self._name).canary
            if serves(arm, progress.digest) and arm is not None and arm.failed:
                raise _Decided(FAIL, f"version {progress.version} failed: {arm.reason}") from error
            raise _Decided(INCONCLUSIVE, f"its share could not be set: {error}") from error
        progress.in_force = share
        # A look must not mix two shares, so what was answered meanwhile belongs to none.
        try:
            self._begin_counts(self._target.counts(self._name))
        except NotAvailable:
            self._begin_counts(ArmCounts(None, None))
        self._event(f"Step {progress.step + 1} of {len(self._steps)}: the canary gets {step} of the traffic.")

    def _insist(self, verb: Callable[[], _T]) -> _T:
        """Does it, again and again while the target does not obey, for as long as a canary may be not ready."""
        began = self._clock()
        while True:
            try:
                return verb()
            except NotAvailable:
                # A verb may have waited for longer than that itself.
                if self._clock() - began >= self._plan.limits.ready_grace_seconds:
                    raise
                self._sleep(self._plan.look_seconds)

    def _differs(self, canary: Arm, shares: tuple[dict[str, Any], ...]) -> bool:
        """Whether somebody gave the canary another share. One that is not ready may have none, and the only version has all."""
        return bool(self._progress.replaces) and canary.ready and _share_of(canary) not in shares

    def _check_share(self, canary: Arm, shares: tuple[dict[str, Any], ...]) -> None:
        if self._differs(canary, shares):
            kind = "a copy of " if canary.mirrored else ""
            raise _Decided(INCONCLUSIVE, f"somebody else gave the canary {kind}{canary.share} % of the traffic")

    def _check_untouched(self, state: ServingState) -> Arm:
        """The canary, if the versions that are served are those that this rollout left."""
        progress, stable, canary = self._progress, state.stable, state.canary
        if serves(stable, progress.digest):
            progress.phase, progress.decision = FINISHED, INCONCLUSIVE
            progress.reasons = ["somebody else put it in charge while it was on trial"]
            self._notes.write(progress)
            raise TargetChanged(
                f"somebody else put version {progress.version} of {self._name!r} in charge while it was on trial: it is left "
                f"so, and the registry as it is. Bring back the version before with: {self._command('rollback')}"
            )
        if progress.replaces and not serves(stable, progress.replaces["digest"]):
            found = f"version {stable.model.version}" if stable else "no version"
            raise _Decided(INCONCLUSIVE, f"somebody else changed the version in charge: it is {found} now")
        if canary is None:
            raise _Decided(INCONCLUSIVE, "somebody else took the canary away")
        if canary.model.digest != progress.digest:
            raise _Decided(INCONCLUSIVE, f"somebody else made version {canary.model.version} the canary")
        return canary

    def _look(self, step: Step) -> bool:
        """Waits, looks at both arms and writes down what it saw; returns whether the step has passed."""
        progress = self._progress
        self._sleep(self._plan.look_seconds)
        now = self._clock()
        elapsed, self._last_look = now - self._last_look, now
        progress.waited += elapsed
        try:
            passed = self._see(step, elapsed)
        except NotAvailable as error:
            if not progress.unreachable:
                self._event(f"The target cannot be reached: {error}")
            progress.unreachable += elapsed
            if progress.unreachable > self._plan.limits.ready_grace_seconds:
                raise _Decided(
                    INCONCLUSIVE, f"the target could not be reached for {progress.unreachable:.0f} s: {error}"
                ) from error
            return False
        progress.unreachable = 0.0
        return passed

    def _see(self, step: Step, elapsed: float) -> bool:
        progress = self._progress
        canary = self._check_untouched(self._target.state(self._name))
        try:
            counts = self._target.counts(self._name)
        except NotAvailable as error:
            if canary.failed:
                raise _Decided(FAIL, self._failure(canary)) from error
            raise
        if self._differs(canary, (progress.in_force,)):
            if progress.share_differed:
                self._check_share(canary, (progress.in_force,))
            # Once, it may be a target that was just started again and does not see yet what is in force.
            progress.share_differed = True
            self._begin_counts(counts)
            self._notes.write(progress)
            return False
        progress.share_differed = False
        seen = self._take_in(step, counts)
        if counts.canary is not None and (counts.stable is not None or not progress.replaces):
            progress.watched += elapsed
        reasons = [*self._floor(canary, elapsed, seen), *self._faults(step)]
        self._notes.write(progress)
        self._say(step, seen)
        if reasons:
            raise _Decided(FAIL, *reasons)
        if progress.unready > self._plan.limits.ready_grace_seconds:
            # That need not be the version's doing: a node may have gone, and no other have room.
            reason = f"has not been ready for {progress.unready:.0f} s: {canary.reason or 'no reason given'}"
            raise _Decided(INCONCLUSIVE, f"version {progress.version} {reason}")
        return self._is_done(step)

    def _take_in(self, step: Step, counts: ArmCounts) -> dict[str, Increment]:
        progress = self._progress
        seen = {}
        for arm, found in ((STABLE, counts.stable), (CANARY, counts.canary)):
            seen[arm] = increment(progress.counts_before(arm), found)
            if seen[arm].restarted:
                self._event(f"The {arm} version, or what counts for it, started again: its counts begin at zero.")
            progress.add(arm, seen[arm])
        progress.restarts += seen[CANARY].predictor_restarted
        self._keep_counts(counts)
        evidence = self._evidence
        if evidence is not None and self._compares(step):
            evidence.look(seen[CANARY], seen[STABLE])
            progress.evidence = evidence.to_json()
        progress.add_point(
            {
                "at": round(self._now(), 3),
                "step": progress.step,
                "percent": step.percent,
                "mirror": step.mirror,
                STABLE: point_of(seen[STABLE]),
                CANARY: point_of(seen[CANARY]),
                "log_e": evidence.log_e_values if evidence is not None else {},
            }
        )
        return seen

    def _compares(self, step: Step) -> bool:
        return bool(self._progress.replaces) and (step.mirror or step.percent < WHOLE)

    def _begin_counts(self, counts: ArmCounts) -> None:
        """Counts from here; an arm that cannot be read counts from where it can be."""
        self._progress.last_counts = {}
        self._keep_counts(counts)

    def _keep_counts(self, counts: ArmCounts) -> None:
        self._progress.keep_counts(STABLE, counts.stable)
        self._progress.keep_counts(CANARY, counts.canary)

    def _floor(self, canary: Arm, elapsed: float, seen: dict[str, Increment]) -> list[str]:
        """What no test is needed for."""
        progress = self._progress
        reasons = []
        if canary.failed:
            reasons.append(self._failure(canary))
        progress.unready = 0.0 if canary.ready else progress.unready + elapsed
        if progress.restarts > _MOST_RESTARTS:
            reasons.append(f"version {progress.version}: its predictor restarted {progress.restarts} times")
        for arm, found in seen.items():
            failed, requests = progress.window[arm]
            progress.window[arm] = [failed + found.failed, requests + found.samples]
        if is_burst(*progress.window[CANARY], *progress.window[STABLE]):
            failed, requests = progress.window[CANARY]
            reasons.append(f"a burst of failures: {failed} of the canary's last {requests} requests")
        elif progress.window[CANARY][1] >= _WINDOW_REQUESTS:
            progress.window = {STABLE: [0, 0], CANARY: [0, 0]}
        return reasons

    def _faults(self, step: Step) -> list[str]:
        """What the tests found, or at 100 % the comparison with what the stable version had failed and rejected."""
        if self._compares(step):
            return self._evidence.faults if self._evidence is not None else []
        progress, limits = self._progress, self._plan.limits
        before, samples = progress.total(STABLE), progress.samples[CANARY]
        requests = samples + progress.rejected[CANARY]
        faults = []
        for verb, bad, total, bad_before, total_before, ratio in (
            ("failed", progress.failed[CANARY], samples, before.failed, before.samples, limits.max_failure_ratio),
            ("were rejected", progress.rejected[CANARY], requests, before.rejected, before.requests, limits.max_rejected_ratio),
        ):
            if not total or not total_before:
                continue
            allowed, low = ratio * _wilson(bad_before, total_before)[1], _wilson(bad, total)[0]
            if low > allowed:
                faults.append(
                    f"{bad} of {total} requests {verb} at all the traffic, at least {100 * low:.2g} % by its interval; of the "
                    f"version before at most {100 * allowed:.2g} %"
                )
        return faults

    def _is_done(self, step: Step) -> bool:
        """Whether the step has lasted its time and seen its requests."""
        progress = self._progress
        missing = self._missing(step)
        if progress.watched >= step.seconds:
            if not missing:
                return True
            if not progress.held:
                progress.held = True
                self._event(f"Step {progress.step + 1} of {len(self._steps)}, {step}: held, for it has {missing}.")
        if progress.waited >= self._plan.deadline_seconds:
            raise _Decided(
                INCONCLUSIVE,
                f"step {progress.step + 1} ({step}) was not settled in {progress.waited:.0f} s: "
                + (missing or f"both arms could be seen for {progress.watched:.0f} s, fewer than {step.seconds:g}"),
            )
        return False

    def _missing(self, step: Step) -> str:
        """Which requests the step lacks."""
        progress, minimum = self._progress, self._plan.min_samples
        if not progress.replaces:
            return ""
        if progress.samples[CANARY] < minimum:
            return f"{progress.samples[CANARY]} of the {minimum} requests that the canary must get"
        if not self._compares(step):
            return ""
        # Half of what its share would bring it, where that is less.
        share = 1.0 if step.mirror else (WHOLE - step.percent) / step.percent
        wanted = max(1, math.floor(minimum * min(1.0, share / 2)))
        if progress.samples[STABLE] < wanted:
            return f"{progress.samples[STABLE]} of the {wanted} requests that the stable version must get to compare with"
        return ""

    # End

    def _turn_back(self, decision: str, reasons: list[str]) -> None:
        progress = self._progress
        progress.phase, progress.decision, progress.reasons = ROLLING_BACK, decision, reasons
        self._event(f"{decision}: {'; '.join(reasons)}")
        # Written first, so that whoever goes on after a kill rolls back and does not try once more; but the canary goes anyway.
        with suppress(NotAvailable):
            self._notes.write(progress)

    def _promote(self) -> None:
        progress = self._progress
        if not self._is_champion():
            state = self._target.state(self._name)
            arm = state.canary if serves(state.canary, progress.digest) else state.stable
            if arm is None or not serves(arm, progress.digest):
                self._turn_back(INCONCLUSIVE, ["somebody else took the canary away"])
                return
            if arm.failed:
                self._turn_back(FAIL, [self._failure(arm)])
                return
        progress.registry_asked = True
        # Written first: from here on, taking the canary away is not all that there is to undo.
        self._notes.write(progress)
        try:
            before = promote_model(self._name, progress.version, progress.digest)
        except (PromotionRefused, VerificationFailed, InvalidInput) as error:
            progress.registry_asked = isinstance(error, VerificationFailed)
            self._turn_back(FAIL, [f"the registry refused it: {error}"])
            return
        try:
            self._insist(self._promote_at_target)
        except _Decided as decided:
            self._turn_back(decided.decision, decided.reasons)
            return
        except TargetChanged:
            # The registry has decided; whoever took the canary away meanwhile did not know, unless it was a rollback.
            self._notes.write(progress)
            self._target.restore(self._name, progress.model)
        self._event(f"Version {progress.version} is champion" + (f" in place of version {before}." if before else "."))
        self._finish(PROMOTED)

    def _promote_at_target(self) -> None:
        try:
            self._target.promote(self._name, self._progress.digest)
        except NotAvailable as error:
            # Nobody gets the traffic of one that died since it passed.
            canary = self._target.state(self._name).canary
            if canary is not None and serves(canary, self._progress.digest) and canary.failed:
                raise _Decided(FAIL, self._failure(canary)) from error
            raise

    def _failure(self, arm: Arm) -> str:
        return f"version {self._progress.version} failed: {arm.reason or 'no reason given'}"

    def _registry_change(self, reason: str) -> RegistryChange:
        """What the registry is told of a version that failed."""
        progress = self._progress
        if progress.registry_asked and progress.replaces:
            before = progress.replaces
            return RegistryChange(registry_side.BRING_BACK, before["version"], before["digest"], progress.version, reason)
        return RegistryChange(registry_side.REJECT, progress.version, progress.digest, "", reason)

    def _roll_back(self) -> None:
        progress = self._progress
        self._take_canary_away()
        if progress.decision == FAIL:
            change = self._registry_change("; ".join(progress.reasons))
            try:
                self._event(f"Registry: {registry_side.make(self._name, change)}.")
            except NotAvailable as error:
                self._notes.add_pending(change.to_json())
                progress.reasons.append("the registry could not be told yet; the next rollout or rollback does it")
                self._event(f"Registry: pending, {error}")
        self._finish(ROLLED_BACK)

    def _take_canary_away(self) -> None:
        try:
            self._insist(self._take_own_canary_away)
        except NotAvailable as error:
            raise NotAvailable(
                f"the canary, version {self._progress.version} of {self._name!r}, must be taken away, but the target cannot be "
                f"reached ({error}): run this rollout again, or: {self._command('split', ' --end')}"
            ) from error

    def _take_own_canary_away(self) -> None:
        # Never somebody else's.
        if serves(self._target.state(self._name).canary, self._progress.digest):
            self._target.roll_back(self._name)
            self._event("The canary was taken away.")

    def _finish(self, outcome: str) -> None:
        self._progress.phase, self._progress.outcome = FINISHED, outcome
        self._notes.write(self._progress)

    def _event(self, text: str) -> None:
        self._progress.events.append({"at": round(self._now(), 3), "text": text})
        announce(text)

    def _say(self, step: Step, seen: dict[str, Increment]) -> None:
        progress = self._progress
        strongest = max(self._evidence.log_e_values.items(), key=lambda item: item[1]) if self._evidence else ("", 0.0)
        print(
            f"{step}: {progress.samples[CANARY]} canary requests in {progress.watched:.0f} s "
            f"({seen[CANARY].failed} failed since the last look; strongest evidence: {strongest[0]}, e = "
            f"{math.exp(min(strongest[1], 700)):.3g})",
            flush=True,
        )


def _share_of(canary: Arm) -> dict[str, Any]:
    return {"percent": canary.share, "mirror": canary.mirrored}


def _wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share, ``_Z`` standard deviations wide to each side."""
    centre = (count + _Z**2 / 2) / (total + _Z**2)
    half = _Z / (total + _Z**2) * math.sqrt(count * (total - count) / total + _Z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
