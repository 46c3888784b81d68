"""A metrics source: the counts of a served model's arms, from whatever counts requests in a cluster."""

from dataclasses import dataclass
from typing import Protocol

from modelyard.components.serving.target import ArmCounts


@dataclass(frozen=True)
class Workload:
    """One arm as a cluster runs it: what its metrics are labelled with.

    Attributes:
        model_name: the served model.
        version: its version in the registry, which the predictor labels its own metrics with.
        namespace: where it runs.
        service: name of the InferenceService.
        name: name of what runs it: a Deployment in Standard mode, a revision in Knative mode.
    """

    model_name: str
    version: str
    namespace: str
    service: str
    name: str


class MetricsSource(Protocol):
    """Counts both arms since this object first saw them; a new object counts anew, under another ``Counts.origin``."""

    def counts(self, stable: Workload | None, canary: Workload | None) -> ArmCounts:
        """The counts of both arms at a moment that is not before the call, so that what happened before it is in them.

        It returns once every replica that runs has been measured since, which takes up to the time between two measurements.

        Args:
            stable: the version in charge; None if there is none.
            canary: the version under trial; None if there is none.

        Returns:
            None for an arm that is not asked for, of which nothing is known yet, or that is not measured at the moment; what it
            does meanwhile is in the counts once it is.

        Raises:
            NotAvailable: the source cannot be reached, or does not measure.
        """
