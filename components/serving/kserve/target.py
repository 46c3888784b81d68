"""The serving target of a cluster: a KServe InferenceService, in Standard or in Knative mode."""

from modelyard.components.serving.kserve.placement import Placement


class KServeTarget:
    """Serves models as InferenceServices; see ``ServingTarget`` for the verbs."""

    mirrors = False


def open_kserve_target(placement: Placement) -> KServeTarget:
    """The target in the cluster that this process runs in, or that the kubeconfig names."""
    raise NotImplementedError
