"""Names that the objects of a served model have in a cluster, and the annotations that say which version runs where.

| object | name |
|---|---|
| InferenceService | the model's name, or what Kubernetes takes of it |
| ConfigMap with the rollout's notes and what was served before | the InferenceService's, with ``-modelyard`` |
| predictor, in Standard mode a part of its Deployment's and Service's name | ``v``, version, ``-`` if there is room, digest |

Everything that says which version it is stands on a *predictor*, and so on its pods. KServe copies what stands on the
InferenceService itself to the pods of both arms, so there is only what stays the same for as long as the model is served.
"""

import hashlib
import re
from collections.abc import Mapping

from modelyard.components.artifacts.names import check_model_name

FIELD_MANAGER = "modelyard"

# On a predictor, and so on its pods and revisions.
MODEL_NAME = "modelyard.dev/model-name"
MODEL_VERSION = "modelyard.dev/model-version"
MODEL_DIGEST = "modelyard.dev/model-digest"
SIGNER = "modelyard.dev/signer"
RUN_ID = "modelyard.dev/run-id"
GIT_SHA = "modelyard.dev/git-sha"
MODEL_CARD = "modelyard.dev/model-card"
LAYOUT = "modelyard.dev/layout"
# Tells a revision from the others of its version; another one makes a new revision.
ATTEMPT = "modelyard.dev/attempt"

# Labels, to select by.
MODEL_LABEL = "modelyard.dev/model"
VERSION_LABEL = "modelyard.dev/version"
DIGEST_LABEL = "modelyard.dev/digest"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

STORAGE_CONTAINER = "modelyard-verified"
# Name of the ClusterServingRuntime and of its model format, and the layout of the model's folder, by the runtime's short name.
RUNTIMES = {
    "predictor": ("modelyard-predictor", "modelyard", "modelyard"),
    "triton": ("modelyard-triton", "modelyard-triton", "triton"),
}

# Of a label, of an object and of a part of a host's name between two dots.
LONGEST_LABEL = 63
# A Deployment is called fraud-v7-5f3c2a-predictor, and its pods have that with "isvc." before it as a label. In Knative mode a
# host is called fraud-predictor-models, with the namespace (Kubeflow's kubeflow-user-example-com still fits). In Standard mode
# it is fraud-v7-5f3c2a-predictor-models: what of that has room depends on the namespace, see ``predictor_name``.
_LONGEST_SERVICE = 27
_LONGEST_VERSION = 12
_DIGITS = 6
SHORTEST_PREDICTOR = 1 + _DIGITS
_SERVICE = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def service_name(model_name: str) -> str:
    """Name of a model's InferenceService: the model's own if Kubernetes takes it, else cleaned and with a short hash.

    Raises:
        InvalidInput: no model can be called so.
    """
    if _SERVICE.fullmatch(check_model_name(model_name)) and len(model_name) <= _LONGEST_SERVICE:
        return model_name
    cleaned = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    cleaned = cleaned if cleaned[0].isalpha() else f"m-{cleaned}"
    unique = hashlib.sha256(model_name.encode()).hexdigest()[:8]
    return f"{cleaned[: _LONGEST_SERVICE - 9].rstrip('-')}-{unique}"


def notes_name(service: str) -> str:
    """Name of the ConfigMap that belongs to an InferenceService."""
    return f"{service}-modelyard"


def version_label(version: str) -> str:
    """A version as Kubernetes takes it in a label or a name."""
    return re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")[:_LONGEST_VERSION].rstrip("-") or "0"


def predictor_name(version: str, digest: str, room: int = LONGEST_LABEL) -> str:
    """Name of a version's predictor in Standard mode: the same for the same version, whenever it is started.

    Args:
        version: the version.
        digest: its digest.
        room: how many characters it may have, see ``predictor_room``; without room the version's number is left out.
    """
    digits = _hexadecimal(digest)[:_DIGITS]
    name = f"v{version_label(version)}-{digits}"
    return name if len(name) <= room else f"v{digits}"


def predictor_room(service: str, namespace: str) -> int:
    """How many characters a predictor's name may have in Standard mode; below ``SHORTEST_PREDICTOR`` none fits.

    KServe makes a host of every Deployment, of its name and the namespace in one part, and refuses the service where that has
    too many characters.
    """
    return LONGEST_LABEL - len(f"{workload_name(service, '_')}-{namespace}") + 1


def digest_label(digest: str) -> str:
    """A digest as a label: its first 16 digits."""
    return _hexadecimal(digest)[:16]


def workload_name(service: str, predictor: str = "") -> str:
    """Name of what KServe makes for a predictor: a Deployment and a Service in Standard mode, a Service of Knative's else."""
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"


def identity(annotations: Mapping[str, str] | None) -> tuple[str, str, str]:
    """Model name, version and digest that annotations give; empty ones if they are not by this package."""
    found = annotations or {}
    return found.get(MODEL_NAME, ""), found.get(MODEL_VERSION, ""), found.get(MODEL_DIGEST, "")


def layout(annotations: Mapping[str, str] | None) -> str:
    """How a version is asked for scores, see ``Arm``; as the predictor is, unless annotations say otherwise."""
    return (annotations or {}).get(LAYOUT) or RUNTIMES["predictor"][2]


def _hexadecimal(digest: str) -> str:
    return digest.partition(":")[2] or digest
