"""The metrics sources by name, as the environment of a step gives them.

| variable | means |
|---|---|
| ``MODELYARD_METRICS_SOURCE`` | who counts: ``predictor`` (default), ``knative``, ``istio``, ``triton`` (default for Triton) |

Where the counts are kept is said by the variables that ``prometheus`` lists.
"""

import os
from collections.abc import Callable

from modelyard.components.errors import InvalidInput
from modelyard.components.serving.metrics.istio import IstioVocabulary
from modelyard.components.serving.metrics.knative import KnativeVocabulary
from modelyard.components.serving.metrics.predictor import PredictorVocabulary
from modelyard.components.serving.metrics.prometheus import URL_VARIABLE, Prometheus
from modelyard.components.serving.metrics.prometheus_source import PrometheusSource
from modelyard.components.serving.metrics.source import MetricsSource
from modelyard.components.serving.metrics.triton import TritonVocabulary
from modelyard.components.serving.metrics.vocabulary import Vocabulary

SOURCE_VARIABLE = "MODELYARD_METRICS_SOURCE"

_VOCABULARIES: dict[str, Callable[[], Vocabulary]] = {
    "predictor": PredictorVocabulary,
    "knative": KnativeVocabulary,
    "istio": IstioVocabulary,
    "triton": TritonVocabulary,
}


def open_source(name: str = "predictor") -> MetricsSource:
    """The metrics source of this name, or the one that ``MODELYARD_METRICS_SOURCE`` names.

    Args:
        name: ``predictor``, ``knative``, ``istio`` or ``triton``; used where the environment says nothing.

    Raises:
        InvalidInput: there is no such source, or no Prometheus is named. Whether it can be reached is not looked at.
    """
    field = SOURCE_VARIABLE if os.environ.get(SOURCE_VARIABLE) else "metrics source"
    name = os.environ.get(SOURCE_VARIABLE) or name
    if name not in _VOCABULARIES:
        raise InvalidInput(field, name, f"choose from {', '.join(_VOCABULARIES)}")
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise InvalidInput(URL_VARIABLE, url, "set it to the base URL of the Prometheus that scrapes what is served")
    return PrometheusSource(Prometheus(url), _VOCABULARIES[name]())
