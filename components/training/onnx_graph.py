"""Writes the network of ``tabular_network`` as ONNX, node by node: small, readable, and the same bytes every time.

::

    features ─┬─ numbers ── standardise, impute, clip ─┐
              ├─ missing? ─────────────────────────────┼─ concatenate ─ layers ─ sigmoid ─ score
              └─ categories ── embed ──────────────────┘
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from modelyard.components.training.tabular_network import Preparation

# Old enough for every ONNX Runtime in use, and has all that is needed here.
_OPSET = 17
_IR_VERSION = 8


class _Graph:
    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: "np.ndarray | np.generic") -> str:
        self.constants.append(self._numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def add(self, operation: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(self._helper.make_node(operation, list(inputs), [output], name=output, **attributes))
        return output


def write_network(
    path: Path, preparation: "Preparation", weights: dict[str, np.ndarray], hidden_layers: int, clip: float
) -> None:
    """Writes the model: from ``features``, float32 (rows, features) with NaN for missing, to ``score``, float32 (rows,).

    Args:
        path: file to write.
        preparation: what comes before the first layer.
        weights: the module's state by name.
        hidden_layers: number of hidden layers.
        clip: bound of standardised numbers.
    """
    from onnx import TensorProto, checker, helper

    graph = _Graph()
    parts = []
    if preparation.numbers:
        numbers = graph.add(
            "Gather", "numbers", "features", graph.constant("number_columns", np.array(preparation.numbers, np.int64)), axis=1
        )
        missing = graph.add("IsNaN", "missing", numbers)
        centred = graph.add("Sub", "centred", numbers, graph.constant("means", preparation.means))
        scaled = graph.add("Div", "scaled", centred, graph.constant("scales", preparation.scales))
        imputed = graph.add("Where", "imputed", missing, graph.constant("zero", np.float32(0)), scaled)
        low, high = graph.constant("low", np.float32(-clip)), graph.constant("high", np.float32(clip))
        parts.append(graph.add("Clip", "clipped", imputed, low, high))
        if preparation.indicated:
            columns = graph.constant("indicated_columns", np.array(preparation.indicated, np.int64))
            indicated = graph.add("Gather", "indicated", missing, columns, axis=1)
            parts.append(graph.add("Cast", "indicators", indicated, to=TensorProto.FLOAT))
    if preparation.categories:
        unknown, one = graph.constant("unknown", np.float32(-1)), graph.constant("one", np.int64(1))
    for number, (position, _) in enumerate(preparation.categories):
        column = graph.constant(f"category_column_{number}", np.array(position, np.int64))
        codes = graph.add("Gather", f"codes_{number}", "features", column, axis=1)
        known = graph.add("Where", f"known_{number}", graph.add("IsNaN", f"unseen_{number}", codes), unknown, codes)
        index = graph.add("Add", f"index_{number}", graph.add("Cast", f"whole_{number}", known, to=TensorProto.INT64), one)
        table = graph.constant(f"table_{number}", weights[f"tables.{number}.weight"])
        parts.append(graph.add("Gather", f"embedded_{number}", table, index, axis=0))
    value = graph.add("Concat", "prepared", *parts, axis=1)
    for number in range(hidden_layers):
        # Each hidden layer is a linear one, an activation and a dropout.
        name = f"layers.{3 * number}"
        weight, bias = _linear(graph, name, weights)
        value = graph.add("Relu", f"hidden_{number}", graph.add("Gemm", f"linear_{number}", value, weight, bias, transB=1))
    weight, bias = _linear(graph, "out", weights)
    logits = graph.add("Gemm", "logits", value, weight, bias, transB=1)
    flat = graph.add("Reshape", "flat", logits, graph.constant("shape", np.array([-1], np.int64)))
    graph.add("Sigmoid", "score", flat)
    features = 1 + max([*preparation.numbers, *(position for position, _ in preparation.categories)])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tabular_network",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", features])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
            graph.constants,
        ),
        producer_name="modelyard",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _linear(graph: _Graph, name: str, weights: dict[str, np.ndarray]) -> tuple[str, str]:
    return (
        graph.constant(f"{name}.weight", weights[f"{name}.weight"]),
        graph.constant(f"{name}.bias", weights[f"{name}.bias"]),
    )
