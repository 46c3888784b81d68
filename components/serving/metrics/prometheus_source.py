"""The counts of both arms from a Prometheus, in whichever vocabulary."""

import itertools
import secrets
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelyard.components.errors import NotAvailable
from modelyard.components.serving.metrics.counting import CANARY, STABLE, ArmCount, Target, scrapes, target_of
from modelyard.components.serving.metrics.prometheus import Prometheus, Series
from modelyard.components.serving.metrics.source import Workload
from modelyard.components.serving.metrics.vocabulary import Vocabulary, exactly, selector
from modelyard.components.serving.target import ArmCounts, Counts

_POLL_SECONDS = 0.5
# How long Prometheus itself takes a series that got no more samples, and no word that it ended, for one that goes on.
_LOOKBACK_SECONDS = 300
# A Prometheus that was restarted has to find again what runs, and does not know what went meanwhile: what is this many times
# later than usual is gone.
_LATE = 3
_LEAST_PATIENCE_SECONDS = 30.0
# A scrape is stamped when it begins and kept when it is done.
_OVERLAP_SECONDS = 120
# An arm that runs no replica now did so within this time, or is not known.
_HISTORY = "24h"


@dataclass
class _Arm:
    """One arm, as it is counted.

    Attributes:
        count: what it has done.
        taken: up to when Prometheus was asked for its samples; its clock.
    """

    count: ArmCount
    taken: float


class PrometheusSource:
    """Counts what a Prometheus has scraped; see ``MetricsSource`` and ``counting``.

    An arm without a replica that is measured counts as known, with what it had done, if none of its replicas is scraped any
    more: it was scaled to zero. If some are and do not answer, nothing is said of it.

    A replica that is measured too late, beside one that is in time, is not waited for. What it did meanwhile is in a later
    look, perhaps at another share: its requests come with what became of them, so no arm looks better or worse than it was,
    and to leave them out would hide what failed while nothing could be measured.

    Args:
        prometheus: where the samples are.
        vocabulary: what they are called.
        clock: seconds that only grow.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        vocabulary: Vocabulary,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._prometheus, self._vocabulary, self._clock, self._sleep = prometheus, vocabulary, clock, sleep
        self._origin = secrets.token_hex(8)
        self._arms: dict[tuple[str, Workload], _Arm] = {}

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        """The counts of both arms, measured since the call; see ``MetricsSource``."""
        asked = self._prometheus.now()
        workloads = {role: workload for role, workload in ((STABLE, stable), (CANARY, canary)) if workload is not None}
        measured = self._await_measured(workloads, asked)
        found = {role: self._counts(role, workload, asked, measured[role]) for role, workload in workloads.items()}
        return ArmCounts(found.get(STABLE), found.get(CANARY))

    def _await_measured(self, workloads: dict[str, Workload], asked: float) -> dict[str, bool | None]:
        """Waits until what runs has been measured since ``asked``; returns of each arm whether it was, None if nothing runs."""
        began = self._clock()
        while True:
            latest = {role: self._latest(workload) for role, workload in workloads.items()}
            late = {target for times in latest.values() for target, at in times.items() if at <= asked}
            if not late or self._clock() - began > self._patience(workloads.values(), late, began):
                break
            self._sleep(_POLL_SECONDS)
        seen = {role: any(at > asked for at in times.values()) if times else None for role, times in latest.items()}
        if late and not any(seen.values()):
            raise NotAvailable(
                f"{self._prometheus.address} has measured nothing for {self._clock() - began:.0f} s of what runs: "
                + ", ".join(sorted("/".join(filter(None, target)) for target in late))
            )
        return seen

    def _latest(self, workload: Workload) -> dict[Target, float]:
        """When each replica that runs was measured last."""
        found = self._prometheus.ask(f"timestamp({self._vocabulary.presence(workload)})")
        times: dict[Target, float] = {}
        for series in found:
            target = target_of(series.labels)
            times[target] = max([times.get(target, 0.0), *(value for _, value in series.samples)])
        return times

    def _patience(self, workloads: Iterable[Workload], late: set[Target], began: float) -> float:
        """Seconds after which a replica that is not measured is gone."""
        if self._clock() - began <= _LEAST_PATIENCE_SECONDS:
            return _LEAST_PATIENCE_SECONDS
        usual = [
            _usual_pause(series)
            for workload in workloads
            for series in self._prometheus.ask(f"{self._vocabulary.presence(workload)}[{_LOOKBACK_SECONDS}s]")
            if target_of(series.labels) in late
        ]
        return min(_LOOKBACK_SECONDS, max([_LEAST_PATIENCE_SECONDS, *(_LATE * pause for pause in usual)]))

    def _counts(self, role: str, workload: Workload, asked: float, measured: bool | None) -> Counts | None:
        arm = self._arms.get((role, workload))
        if measured is False:
            return None
        if measured is None and not self._is_at_rest(workload, arm.count.targets if arm else set()):
            return None
        if arm is None:
            count = ArmCount(asked, apart=self._vocabulary.apart, dated=self._vocabulary.dated)
            arm = self._arms[role, workload] = _Arm(count, asked)
        now = self._prometheus.now()
        window = max(1, round(now - arm.taken)) + _OVERLAP_SECONDS
        samples = self._prometheus.ask(f"{self._vocabulary.everything(workload)}[{window}s]")
        arm.count.take(scrapes(samples, lambda labels: self._vocabulary.meaning(workload, labels), self._vocabulary.seconds))
        arm.taken = now
        return arm.count.counts(role, self._origin)

    def _is_at_rest(self, workload: Workload, counted: set[Target]) -> bool:
        """Whether an arm without a replica that is measured runs none, as far as Prometheus can know."""
        history = self._prometheus.ask(f"last_over_time({self._vocabulary.presence(workload)}[{_HISTORY}])")
        earlier = {target_of(series.labels) for series in history}
        # A Prometheus that lost its samples has not found yet what runs.
        if not earlier or not counted <= earlier:
            return False
        instances = "|".join(sorted({exactly(instance) for _, _, _, instance in earlier}))
        down = self._prometheus.ask(f"{selector(['up'], instance=instances)} == 0")
        return not any(target_of(series.labels) in earlier for series in down)


def _usual_pause(series: Series) -> float:
    """Seconds between two samples, as a rule; the longest there may be if there is but one."""
    pauses = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(series.samples)]
    return statistics.median(pauses) if pauses else _LOOKBACK_SECONDS
