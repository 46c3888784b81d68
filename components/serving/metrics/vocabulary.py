"""What each kind of metrics calls the things that a rollout counts; one file each, and a new source is one more."""

import json
import re
from collections.abc import Iterable
from typing import Protocol

from modelyard.components.serving.metrics.prometheus import Labels
from modelyard.components.serving.metrics.source import Workload


class Vocabulary(Protocol):
    """One kind of metrics.

    Attributes:
        seconds: what latencies are counted in.
        apart: whether single counters may begin anew while their replica goes on.
        dated: whether every scrape says since when its replica counts.
    """

    seconds: float
    apart: bool
    dated: bool

    def presence(self, workload: Workload) -> str:
        """Selector of series that every replica exposes that counts for ``workload``, from its start."""

    def everything(self, workload: Workload) -> str:
        """Selector of all series that are counted, those of ``presence`` among them."""

    def meaning(self, workload: Workload, labels: Labels) -> str:
        """What a series of ``everything`` says, a word of ``counting``; empty if nothing that is counted."""


def selector(names: Iterable[str], **matchers: str) -> str:
    """PromQL that selects series.

    Args:
        names: of the metrics.
        matchers: by label, a regular expression for its whole value.
    """
    wanted = {"__name__": "|".join(names), **matchers}
    return (
        "{" + ",".join(f"{label}=~{json.dumps(expression, ensure_ascii=False)}" for label, expression in wanted.items()) + "}"
    )


def exactly(value: str) -> str:
    """The regular expression of one value."""
    return re.escape(value)


def pods_of(workload: Workload) -> str:
    """The regular expression of the names of a workload's pods; those of a Knative revision are its Deployment's."""
    return rf"{re.escape(workload.name)}(-deployment)?-[a-z0-9]+(-[a-z0-9]+)?"
