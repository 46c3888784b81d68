"""The Open Inference Protocol (V2), with the extension of binary tensors: what a model takes and gives, and inference.

Rows come as one tensor for each feature, named for it, of shape [rows] or [rows, 1]; a model whose features are all numbers
also takes one tensor of shape [rows, features], whatever its name. Probabilities and decisions come back as tensors of shape
[rows]. A missing value is NaN, or null in JSON; categories are BYTES.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from modelyard.components.errors import InvalidInput
from modelyard.components.predictor.protocol import Answer, TooManyRows, read_json

if TYPE_CHECKING:
    from modelyard.components.predictor.served_model import LoadedModel

_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_INTEGERS = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
_ARRAYS = {**_FLOATS, **_INTEGERS, "BOOL": "|b1"}
_DATATYPES = (*_ARRAYS, "BYTES")
_NULL = type(None)
# What JSON must give for a datatype. Numbers of any kind do for floats: they are looked at when rows are made of them.
_JSON_TYPES: dict[str, frozenset[type]] = {
    **dict.fromkeys(_INTEGERS, frozenset((int, _NULL))),
    "BOOL": frozenset((bool, _NULL)),
    "BYTES": frozenset((str, _NULL)),
}
_OUTPUTS = {"probability": "FP64", "decision": "INT32"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input as it was sent: its values in one dimension, rows first."""

    name: str
    datatype: str
    shape: list[int]
    values: Sequence[Any] | np.ndarray


def metadata(model: "LoadedModel") -> dict[str, Any]:
    """Answers ``GET /v2/models/NAME``: the inputs are the features in the model's order."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": [
            {"name": feature.name, "datatype": "FP32" if feature.categories is None else "BYTES", "shape": [-1]}
            for feature in model.spec.features
        ],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in _OUTPUTS.items()],
    }


def infer(model: "LoadedModel", body: bytes, json_length: int | None = None) -> Answer:
    """Answers ``POST /v2/models/NAME/infer``.

    Args:
        model: the model.
        body: JSON, and the binary tensors after it.
        json_length: what the header ``Inference-Header-Content-Length`` says; None if it is not there.

    Raises:
        InvalidInput: the request is not what the model takes; the message says where.
    """
    if json_length is not None and json_length > len(body):
        remedy = f"the body has {len(body)} bytes; give the length of the JSON that it begins with"
        raise InvalidInput("Inference-Header-Content-Length", json_length, remedy)
    request = read_json(body if json_length is None else body[:json_length])
    identity = request.get("id", "")
    if type(identity) is not str or not _is_unicode(identity):
        raise InvalidInput("id", identity, "give a string, or leave it out")
    outputs = _requested_outputs(request)
    tensors = _read_tensors(request.get("inputs"), b"" if json_length is None else memoryview(body)[json_length:])
    matrix, rows = _rows(model, tensors)
    scores, decisions = model.decide(matrix)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if identity:
        answer["id"] = identity
    results = {"probability": scores, "decision": decisions}
    answer["outputs"] = [_output(name, results[name], binary) for name, binary in outputs]
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    raw = [results[name].tobytes() for name, binary in outputs if binary]
    if raw:
        return Answer(b"".join((text, *raw)), scores, decisions, rows, identity, len(text))
    return Answer(text, scores, decisions, rows, identity)


def _is_unicode(text: str) -> bool:
    """Whether it is none with half a surrogate pair, which lenient JSON may hold and no answer can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _output(name: str, values: np.ndarray, binary: bool) -> dict[str, Any]:
    described = {"name": name, "datatype": _OUTPUTS[name], "shape": [len(values)]}
    if binary:
        return {**described, "parameters": {"binary_data_size": values.nbytes}}
    return {**described, "data": values}


def _requested_outputs(request: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names of the outputs in the order asked, and whether each is to be binary."""
    all_binary = _flag(_parameters(request, "request"), "binary_data_output", "request")
    asked = request.get("outputs")
    if not asked and asked in (None, []):
        return [(name, all_binary) for name in _OUTPUTS]
    if type(asked) is not list:
        raise InvalidInput("outputs", asked, f"give a list of {', '.join(_OUTPUTS)}, or leave it out for both")
    outputs: dict[str, bool] = {}
    for position, output in enumerate(asked):
        place = f"outputs[{position}]"
        if type(output) is not dict or type(output.get("name")) is not str:
            raise InvalidInput(place, output, 'give an object with a "name"')
        name, parameters = output["name"], _parameters(output, place)
        if name not in _OUTPUTS:
            raise InvalidInput(place, name, f"the model gives {', '.join(_OUTPUTS)}; ask for those")
        if name in outputs:
            raise InvalidInput(place, name, "ask for each output once")
        for unknown in ("classification", "shared_memory_region"):
            if unknown in parameters:
                raise InvalidInput(place, unknown, "this server does not offer it; leave it out")
        outputs[name] = _flag(parameters, "binary_data", place) if "binary_data" in parameters else all_binary
    return list(outputs.items())


def _parameters(owner: dict[str, Any], place: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidInput(f"parameters of {place}", parameters, "give an object, or leave it out")
    return parameters


def _flag(parameters: dict[str, Any], name: str, place: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise InvalidInput(f"{name} of {place}", value, "give true or false")
    return value


def _read_tensors(inputs: Any, binary: memoryview | bytes) -> list[_Tensor]:
    if type(inputs) is not list or not inputs:
        raise InvalidInput("inputs", "nothing" if inputs is None else inputs, "give a list of tensors")
    tensors, names, start = [], set(), 0
    for position, given in enumerate(inputs):
        if type(given) is not dict or type(given.get("name")) is not str:
            raise InvalidInput(f"inputs[{position}]", given, "give an object with name, shape, datatype and data")
        name = given["name"]
        if name in names:
            raise InvalidInput(f"inputs[{position}]", name, "give each tensor once")
        names.add(name)
        datatype, shape = given.get("datatype"), given.get("shape")
        if type(datatype) is not str or datatype not in _DATATYPES:
            raise InvalidInput(f"datatype of input {name}", datatype, f"use one of {', '.join(_DATATYPES)}")
        if type(shape) is not list or len(shape) not in (1, 2) or set(map(type, shape)) != {int} or not _is_extent(shape):
            raise InvalidInput(f"shape of input {name}", shape, "give [rows], [rows, 1] or [rows, features]")
        parameters = _parameters(given, f"input {name}")
        if "shared_memory_region" in parameters:
            raise InvalidInput(f"input {name}", "shared_memory_region", "this server does not offer it; send the data")
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if type(size) is not int or not 0 <= size <= len(binary) - start:
                remedy = f"{len(binary) - start} bytes are left after the JSON that Inference-Header-Content-Length measures"
                raise InvalidInput(f"binary_data_size of input {name}", size, remedy)
            if "data" in given:
                raise InvalidInput(f"input {name}", "data and binary_data_size", "give one of them")
            values = _read_binary(name, datatype, math.prod(shape), memoryview(binary)[start : start + size])
            start += size
        else:
            values = _read_list(name, datatype, shape, given.get("data"))
        tensors.append(_Tensor(name, datatype, shape, values))
    if start != len(binary):
        raise InvalidInput("body", f"{len(binary) - start} bytes after the last tensor", "send what binary_data_size says")
    return tensors


def _is_extent(shape: list[int]) -> bool:
    return min(shape) >= 0 and max(shape) < 2**63


def _read_list(name: str, datatype: str, shape: list[int], data: Any) -> list[Any]:
    """Values in JSON: flat, or nested as the shape is."""
    if type(data) is not list:
        remedy = "give a list of values, or binary_data_size and Inference-Header-Content-Length"
        raise InvalidInput(f"data of input {name}", "nothing" if data is None else data, remedy)
    if len(shape) == 2 and data and type(data[0]) is list:
        if len(data) != shape[0] or any(type(row) is not list or len(row) != shape[1] for row in data):
            raise InvalidInput(f"data of input {name}", f"{len(data)} rows", f"its shape is {shape}; give rows of that length")
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise InvalidInput(f"data of input {name}", f"{len(data)} values", f"its shape {shape} asks for {math.prod(shape)}")
    types = _JSON_TYPES.get(datatype)
    if types and not types.issuperset(map(type, data)):
        position = next(position for position, value in enumerate(data) if type(value) not in types)
        raise InvalidInput(f"data of input {name}[{position}]", data[position], f"it is not {datatype}")
    if datatype in _INTEGERS:
        limits = np.iinfo(_INTEGERS[datatype])
        for position, value in enumerate(data):
            if value is not None and not limits.min <= value <= limits.max:
                raise InvalidInput(f"data of input {name}[{position}]", value, f"it does not fit {datatype}")
    return data


def _read_binary(name: str, datatype: str, count: int, raw: memoryview) -> np.ndarray | list[Any]:
    if datatype == "BYTES":
        return _read_strings(name, count, raw)
    item = np.dtype(_ARRAYS[datatype])
    if count * item.itemsize != len(raw):
        remedy = f"its shape and datatype take {count * item.itemsize} bytes"
        raise InvalidInput(f"binary_data_size of input {name}", len(raw), remedy)
    if datatype == "BOOL":
        # Any byte but 0 is true; NumPy would take others than 1 for neither.
        return np.frombuffer(raw, np.uint8) != 0
    return np.frombuffer(raw, item)


def _read_strings(name: str, count: int, raw: memoryview) -> list[Any]:
    """Strings in binary: each in UTF-8 after its length in four bytes."""
    strings: list[Any] = []
    start = 0
    while start < len(raw):
        end = start + _LENGTH.size
        if end <= len(raw):
            length = _LENGTH.unpack_from(raw, start)[0]
            start, end = end, end + length
        if end > len(raw):
            raise InvalidInput(f"input {name}[{len(strings)}]", "cut short", "send 4 bytes of length before each string")
        try:
            strings.append(str(raw[start:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInput(f"input {name}[{len(strings)}]", bytes(raw[start:end]), "send strings in UTF-8") from error
        start = end
    if len(strings) != count:
        raise InvalidInput(f"input {name}", f"{len(strings)} strings", f"its shape asks for {count}")
    return strings


def _rows(model: "LoadedModel", tensors: list[_Tensor]) -> tuple[np.ndarray, Sequence[Any] | np.ndarray]:
    reader = model.reader
    width = len(reader.names)
    first = tensors[0]
    if not math.prod(first.shape):
        raise InvalidInput(f"shape of input {first.name}", first.shape, "give at least one row")
    if first.shape[0] > model.max_rows:
        raise TooManyRows(f"input {first.name}", first.shape[0], model.max_rows)
    if len(tensors) == 1 and reader.only_numbers and first.name not in reader.names:
        if first.shape[1:] != [width]:
            names = ", ".join(reader.names)
            remedy = f"give [rows, {width}], features in this order, or one tensor for each, named for it: {names}"
            raise InvalidInput(f"shape of input {first.name}", first.shape, remedy)
        if first.datatype == "BYTES":
            raise InvalidInput(f"datatype of input {first.name}", first.datatype, "the features are numbers; use FP32")
        matrix = reader.from_matrix(first.values, first.name)
        return matrix, matrix
    given = {tensor.name: tensor for tensor in tensors}
    for feature in reader.features:
        tensor = given.pop(feature.name, None)
        if tensor is None:
            raise InvalidInput("inputs", feature.name, f"this feature is missing; give all of {', '.join(reader.names)}")
        if tensor.shape not in ([first.shape[0]], [first.shape[0], 1]):
            remedy = f"give [{first.shape[0]}] or [{first.shape[0]}, 1], as many rows as the first input"
            raise InvalidInput(f"shape of input {feature.name}", tensor.shape, remedy)
        if (tensor.datatype == "BYTES") != (feature.categories is not None):
            remedy = "it is a number; use FP32" if feature.categories is None else "it is a category; use BYTES"
            raise InvalidInput(f"datatype of input {feature.name}", tensor.datatype, remedy)
    if given:
        raise InvalidInput("inputs", next(iter(given)), f"the model has no such feature; give just {', '.join(reader.names)}")
    return reader.from_columns({tensor.name: tensor.values for tensor in tensors})
