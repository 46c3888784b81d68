"""Checks a release's parameters at once, instead of an hour later in the step that would trip over them.

The KFP UI and recurring runs check types, nothing more, so this is the first step of the release pipeline.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelyard.components import settings
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.storage import uris
from modelyard.components.training.devices import DEVICES

TRAINERS = ("xgboost", "torch", "xgboost-distributed", "torch-distributed")
_UNEXPANDED = re.compile(r"\[\[.*?\]\]|\{\{.*?\}\}")


def training_branch(trainer: str, device: str) -> str:
    """Which training step runs: the trainer's name, with ``-gpu`` when the step itself must be given a GPU.

    Raises:
        InvalidInput: either is not one of ``TRAINERS`` and ``DEVICES``.
    """
    for field, value, allowed in (("trainer", trainer, TRAINERS), ("device", device, DEVICES)):
        if value not in allowed:
            raise InvalidInput(field, value, f"choose one of {', '.join(allowed)}")
    return f"{trainer}-gpu" if device == "cuda" and not trainer.endswith("-distributed") else trainer


def check_release_request(request: dict[str, Any]) -> str:
    """Checks what can be checked without reading data, and returns the training branch.

    Args:
        request: the release's parameters by name.

    Raises:
        InvalidInput: a parameter is missing, malformed or contradicts another.
    """
    from modelyard.components.evaluation.gates import parse_gates
    from modelyard.components.features.fetching import parse_moment
    from modelyard.components.rollout.plan import WITHOUT_TRAFFIC, parse_plan
    from modelyard.components.serving.kserve.placement import parse_placement
    from modelyard.components.serving.kserve.target import open_kserve_target
    from modelyard.components.signing.signature import METHODS
    from modelyard.components.training.distributed.placement import MOST_NODES, parse_node_placement

    check_model_name(request["model_name"])
    for field in ("feature_repo_uri", "entity_rows_uri", "feature_service", "label", "timestamp_column"):
        if not request[field].strip():
            raise InvalidInput(field, request[field], "it must be given")
    for field in ("data_start", "data_end"):
        if _UNEXPANDED.search(request[field]):
            raise InvalidInput(
                field,
                request[field],
                "only recurring runs fill in this placeholder; give a date such as 2018-07-25 in a single run",
            )
    start, end = (parse_moment(field, request[field]) for field in ("data_start", "data_end"))
    if start is not None and end is not None and start >= end:
        raise InvalidInput("data_end", request["data_end"], f"it must be after data_start, {request['data_start']}")
    for field in ("test_days", "validation_days", "gap_days"):
        if not 0 <= request[field] < math.inf:
            raise InvalidInput(field, request[field], "give a number of days, zero or more")
    for field in ("test_fraction", "validation_fraction"):
        if not 0 < request[field] < 1:
            raise InvalidInput(field, request[field], "give a share between 0 and 1")
    for field in ("false_negative_cost", "false_positive_cost"):
        if not 0 < request[field] < math.inf:
            raise InvalidInput(field, request[field], "give a cost above zero")
    if request["signing_method"] not in METHODS:
        raise InvalidInput("signing_method", request["signing_method"], f"choose one of {', '.join(METHODS)}")
    if not 1 <= request["nodes"] <= MOST_NODES:
        raise InvalidInput("nodes", request["nodes"], f"give a number of nodes from 1 to {MOST_NODES}")
    with _called("cluster", "node_placement"):
        parse_node_placement(request["node_placement"])
    parse_gates(request["gates"])
    targets = ("kserve", "local", *WITHOUT_TRAFFIC)
    if request["target"] not in targets:
        raise InvalidInput("target", request["target"], f"choose one of {', '.join(targets)}")
    if request["target"] == "local" and settings.in_cluster():
        raise InvalidInput(
            "target", "local", "nothing that a pod serves outlives it: in a cluster choose kserve, registry or none"
        )
    placement = parse_placement(request["serving"])
    if request["target"] == "kserve":
        _check_store()
        open_kserve_target(placement, watched=True).check(request["model_name"])
        if request["shadow_seconds"]:
            raise InvalidInput("shadow_seconds", request["shadow_seconds"], "KServe cannot copy traffic; give 0")
    try:
        parse_plan(
            steps=request["rollout_steps"],
            bake_seconds=request["bake_seconds"],
            min_samples=request["min_samples"],
            look_seconds=request["look_seconds"],
            deadline_seconds=request["deadline_seconds"],
            shadow_seconds=request["shadow_seconds"],
            limits=request["rollout_limits"],
        )
    except InvalidInput as error:
        if error.field in request and error.field != "limits":
            raise
        # The rollout calls them steps and limits; a release has other limits, for the model's card.
        raise InvalidInput(f"rollout_{error.field}", error.value, error.remedy) from error
    return training_branch(request["trainer"], request["device"])


@contextmanager
def _called(field: str, name: str) -> Iterator[None]:
    """Names a field as the release calls it, where a step calls it otherwise."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(error.field.replace(field, name, 1), error.value, error.remedy) from error


def _check_store() -> None:
    """A pod can fetch a model from an object store only."""
    store = settings.model_store()
    if uris.local_path(store) is not None:
        remedy = f"released models are kept in {store}, where no pod finds them: set MODELYARD_MODEL_STORE to s3:// or gs://"
        raise InvalidInput("target", "kserve", remedy)
