"""Names and tags of versions, written by many at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.exceptions import MlflowException

from modelyard.components.registry import versions
from modelyard.components.tracking.connection import client


def test_an_alias_that_several_set_at_the_same_moment_is_set(home):
    registry = client()
    registry.create_registered_model("fraud")
    registry.create_model_version("fraud", "/nowhere")
    for turn in range(8):
        alias = f"alias-{turn}"
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _, alias=alias: versions.set_alias(registry, "fraud", alias, "1"), range(4)))
        assert versions.aliases(registry, "fraud")[alias] == "1"


def test_a_version_that_is_not_there_is_told_at_once(home):
    with pytest.raises(MlflowException):
        versions.set_tag(client(), "fraud", "7", "previous", "true")
