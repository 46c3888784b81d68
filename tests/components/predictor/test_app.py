import asyncio
import dataclasses
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.components.predictions.reader import read_predictions
from modelyard.components.predictor.served_model import LoadedModel
from tests.components.predictor.processes import call

V1 = "/v1/models/fraud:predict"
V2 = "/v2/models/fraud/infer"
JSON = {"Content-Type": "application/json"}
NAMES = ("amount", "night")

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "x"]), inner, max_size=3),
    max_leaves=6,
)
valid_number = st.none() | st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
spoilt = st.sampled_from(["1.5", 1e39, -1e300, 10**400, math.inf, [], {}, [1.0], "", "NaN"])


def _expected(load, table, name="first"):
    matrix = np.array([[math.nan if value is None else value for value in row] for row in table], np.float32)
    return load(name).loaded.scorer.score_matrix(matrix)


def _is_refused(reply, *statuses):
    assert reply.status in (statuses or (400,)), reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-model-version"] == "7"
    assert reply.headers["x-request-id"]
    assert list(reply.json) == ["error"]
    assert len(reply.json["error"]) > 20


@settings(deadline=None)
@given(st.lists(st.tuples(valid_number, valid_number), min_size=1, max_size=30), st.booleans())
def test_rows_are_answered_by_v1_as_the_model_scores_them(make_app, load, table, as_objects):
    instances = [dict(zip(NAMES, row)) if as_objects else row for row in table]
    reply = call(make_app(), "POST", V1, json.dumps({"instances": instances}).encode(), JSON)
    expected = _expected(load, table)
    assert reply.status == 200
    assert reply.json["predictions"] == [{"probability": score, "decision": int(score >= 0.5)} for score in expected]


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_v1_answers_rows_and_refuses_everything_else(make_app, load, data):
    app = make_app()
    content = data.draw(
        st.fixed_dictionaries({"instances": st.lists(st.lists(valid_number | spoilt, min_size=2, max_size=2), max_size=3)})
        | st.fixed_dictionaries({"instances": junk})
        | junk
    )
    body = json.dumps(content).encode()
    reply = call(app, "POST", V1, body, JSON, pieces=data.draw(st.integers(1, 3)))
    if reply.status == 200:
        assert len(reply.json["predictions"]) == len(content["instances"])
        assert all(0 <= entry["probability"] <= 1 for entry in reply.json["predictions"])
    else:
        _is_refused(reply)


@settings(deadline=None)
@given(
    st.lists(st.lists(valid_number, min_size=2, max_size=2), min_size=1, max_size=4),
    spoilt.filter(lambda bad: bad != 10**400),
    st.data(),
)
def test_one_bad_value_among_good_rows_is_refused_and_named(make_app, table, bad, data):
    row, column = data.draw(st.integers(0, len(table) - 1)), data.draw(st.integers(0, 1))
    table[row][column] = bad
    reply = call(make_app(), "POST", V1, json.dumps({"instances": table}).encode(), JSON)
    _is_refused(reply)
    assert reply.json["error"].startswith(f"instances[{row}].{NAMES[column]} = ")


def _tensor(**entries):
    return {"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **entries}


tensor = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["rows", *NAMES, ""]) | junk,
        "shape": st.sampled_from([[1, 2], [1], [2], [1, 1], [0, 2], [-1, 2], [1, 2, 1], [10**12, 2], [True, 2], [1.0, 2]])
        | junk,
        "datatype": st.sampled_from(["FP32", "FP64", "INT8", "INT64", "UINT8", "BOOL", "BYTES", "FP16", "fp32"]) | junk,
        "data": st.sampled_from([[1, 2], [[1, 2]], [1.5, None], [True, False], ["a", "b"], [300, -1], [[1], [2]], [], [1]])
        | junk,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.sampled_from([0, 8, 7, -1, 2**40]) | junk}) | junk,
    },
)
outputs = (
    st.lists(st.fixed_dictionaries({"name": st.sampled_from(["probability", "decision", "score"])}) | junk, max_size=3) | junk
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(tensor, max_size=3) | junk},
        optional={"id": st.text(max_size=4) | junk, "outputs": outputs, "parameters": junk},
    )
    | junk,
    st.binary(max_size=20),
    st.none() | st.sampled_from(["0", "5", "-1", "x", "99999", "9" * 30, "right"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_v2_answers_tensors_and_refuses_everything_else(make_app, content, binary, length):
    text = json.dumps(content).encode()
    headers = JSON if length is None else {**JSON, "Inference-Header-Content-Length": length.replace("right", str(len(text)))}
    reply = call(make_app(), "POST", V2, text + (b"" if length is None else binary), headers)
    if reply.status != 200:
        _is_refused(reply)


@settings(deadline=None)
@given(st.sampled_from([V1, V2]), st.binary(max_size=60), st.sampled_from(["", "{", '{"instances": [[1, 2]]}', "[" * 5000]))
def test_bytes_that_are_not_json_are_refused(make_app, path, rest, beginning):
    reply = call(make_app(), "POST", path, beginning.encode() + b"\x00\xff" + rest, JSON)
    _is_refused(reply)


@settings(deadline=None)
@given(st.lists(st.tuples(valid_number, valid_number), min_size=1, max_size=20), st.sampled_from(["FP32", "FP64"]), st.data())
def test_tensors_are_answered_alike_in_json_in_binary_and_by_feature(make_app, load, table, datatype, data):
    app = make_app()
    kind = {"FP32": np.float32, "FP64": np.float64}[datatype]
    matrix = np.array([[math.nan if value is None else value for value in row] for row in table], kind)
    shape = list(matrix.shape)
    nested = data.draw(st.booleans())
    flat = [value for row in table for value in row]
    requests = [
        ({"inputs": [_tensor(shape=shape, datatype=datatype, data=table if nested else flat)]}, b""),
        (
            {"inputs": [_tensor(shape=shape, datatype=datatype, data=None, parameters={"binary_data_size": matrix.nbytes})]},
            matrix.tobytes(),
        ),
        (
            {
                "inputs": [
                    _tensor(name=name, shape=[len(table)], datatype=datatype, data=[row[position] for row in table])
                    for position, name in enumerate(NAMES)
                ]
            },
            b"",
        ),
        (
            {
                "inputs": [
                    _tensor(
                        name=name,
                        shape=[len(table), 1],
                        datatype=datatype,
                        parameters={"binary_data_size": matrix[:, position].nbytes},
                    )
                    for position, name in reversed(list(enumerate(NAMES)))
                ]
            },
            matrix[:, ::-1].T.tobytes(),
        ),
    ]
    expected = _expected(load, table)
    for content, binary in requests:
        for entry in content["inputs"]:
            if "parameters" in entry:
                del entry["data"]
        text = json.dumps(content).encode()
        headers = {**JSON, "Inference-Header-Content-Length": str(len(text))} if binary else JSON
        reply = call(app, "POST", V2, text + binary, headers)
        assert reply.status == 200, reply
        probability, decision = reply.json["outputs"]
        assert (probability["name"], probability["datatype"], probability["shape"]) == ("probability", "FP64", [len(table)])
        assert probability["data"] == expected.tolist()
        assert (decision["name"], decision["datatype"]) == ("decision", "INT32")
        assert decision["data"] == (expected >= 0.5).astype(int).tolist()


def _nested(depth, opening="[", closing="]"):
    return opening * depth + closing * depth


_PLACES_V1 = ["%s", '{"instances": %s}', '{"instances": [%s]}', '{"instances": [[1, %s]]}', '{"instances": [{"amount": %s}]}',
    '{"instances": [{"amount": 1, "night": %s}]}', '{"instances": [[1, 2]], "parameters": %s}']  # fmt: skip
_SOUND = '"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]'
_PLACES_V2 = [
    "%s", *(f'{{"{name}": %s, {_SOUND}}}' for name in ("id", "parameters", "outputs", "x")), f'{{"outputs": [%s], {_SOUND}}}',
    f'{{"outputs": [{{"name": "decision", "parameters": %s}}], {_SOUND}}}', f'{{"outputs": [{{"name": %s}}], {_SOUND}}}',
    f'{{"parameters": {{"binary_data_output": %s}}, {_SOUND}}}', '{"inputs": %s}', '{"inputs": [%s]}',
    *(_SOUND.join("{}").replace(f'"{name}": {value}', f'"{name}": %s') for name, value in (
        ("name", '"rows"'), ("shape", "[1, 2]"), ("datatype", '"FP32"'), ("data", "[1, 2]"))),
    '{"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [1, %s]}]}',
    '{"inputs": [{"name": "rows", "shape": [1, %s], "datatype": "FP32", "data": [1, 2]}]}',
    '{"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "parameters": %s}]}',
    '{"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": %s}}]}',
]  # fmt: skip


_TOO_DEEP = [
    *map(_nested, (600, 1000, 1020, 100_000)),
    "[" * 1000 + "NaN" + "]" * 1000,
    _nested(1000, '{"a":', "}").replace(":}", ":1}"),
    _nested(340, '[{"name":', "}]").replace(":}", ":NaN}"),
]


@pytest.mark.parametrize(("path", "place"), [*((V1, place) for place in _PLACES_V1), *((V2, place) for place in _PLACES_V2)])
def test_no_depth_of_nesting_anywhere_is_a_failure_of_ours(make_app, path, place):
    app = make_app(max_request_bytes=10**6)
    for nested in _TOO_DEEP:
        reply = call(app, "POST", path, (place % nested).encode(), JSON)
        if reply.status == 200:
            # What nobody looks at.
            assert '"x"' in place or '"parameters"' in place
        else:
            _is_refused(reply)
            assert len(reply.body) < 1000


@pytest.mark.parametrize("body", [
    r'{"id": "\ud800", "inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 2]}]}',
    '{"inputs": [{"name": "rows", "shape": [1%s, 1%s], "datatype": "FP32", "data": [NaN, 2]}]}' % (("0" * 4000,) * 2),
    '{"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "INT64", "data": [NaN, 1%s]}]}' % ("0" * 4000),
    '{"instances": [[NaN, 1%s]]}' % ("0" * 4000),
    '{"instances": [[NaN, 1%s]]}' % ("0" * 5000),
])  # fmt: skip
def test_what_only_lenient_json_holds_is_refused(make_app, body):
    for path in (V1, V2):
        _is_refused(call(make_app(), "POST", path, body.encode(), JSON))


def test_outputs_come_as_asked(make_app, load):
    content = {
        "id": "seven",
        "inputs": [_tensor()],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "decision"}, {"name": "probability", "parameters": {"binary_data": False}}],
    }
    reply = call(make_app(), "POST", V2, json.dumps(content).encode(), JSON)
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    answer = json.loads(reply.body[:length])
    (score,) = _expected(load, [[1, 2]])
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "fraud", "7")
    assert answer["outputs"] == [
        {"name": "decision", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "probability", "datatype": "FP64", "shape": [1], "data": [score]},
    ]
    assert struct.unpack("<i", reply.body[length:]) == (int(score >= 0.5),)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"shape": [1, 3], "data": [1, 2, 3]}, "[rows, 2], features in this order"),
        ({"shape": [2, 2]}, "its shape [2, 2] asks for 4"),
        ({"shape": [0, 2], "data": []}, "at least one row"),
        ({"shape": [10**12, 2]}, "asks for 2000000000000"),
        ({"datatype": "FP31"}, "use one of FP16, FP32"),
        ({"datatype": "BYTES", "data": ["a", "b"]}, "the features are numbers"),
        ({"datatype": "INT32", "data": [1, 2.5]}, "it is not INT32"),
        ({"datatype": "INT8", "data": [1, 128]}, "it does not fit INT8"),
        ({"data": [1, "2"]}, "input rows[0].night = '2': give a finite number"),
        ({"data": [1, 1e39]}, "input rows[0].night = 1e+39: give a finite number"),
        ({"data": None}, "binary_data_size and Inference-Header-Content-Length"),
        ({"name": "amount"}, "shape of input amount"),
        ({"name": "amount", "shape": [1], "data": [1]}, "inputs = 'night': this feature is missing"),
        ({"name": "amount", "shape": [1], "data": [1], "datatype": "BYTES"}, "it is not BYTES"),
        ({"parameters": {"binary_data_size": 8}}, "0 bytes are left"),
        ({"parameters": {"shared_memory_region": "x"}}, "does not offer it"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(make_app, entries, told):
    reply = call(make_app(), "POST", V2, json.dumps({"inputs": [_tensor(**entries)]}).encode(), JSON)
    _is_refused(reply)
    assert told in reply.json["error"]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([], "give a list of tensors"),
        ([_tensor(), _tensor()], "give each tensor once"),
        ([_tensor(name="amount", shape=[2]), _tensor(name="night", shape=[1], data=[1])], "as many rows as the first"),
        ([_tensor(name=name, shape=[2]) for name in (*NAMES, "day")], "the model has no such feature"),
    ],
)
def test_what_is_wrong_with_tensors_together_is_named(make_app, inputs, told):
    reply = call(make_app(), "POST", V2, json.dumps({"inputs": inputs}).encode(), JSON)
    _is_refused(reply)
    assert told in reply.json["error"]


@settings(deadline=None)
@given(
    st.binary(max_size=40),
    st.integers(0, 40),
    st.sampled_from(["FP32", "FP64", "BYTES", "BOOL", "INT16"]),
    st.sampled_from([[1], [2], [1, 1]]),
)
def test_binary_tensors_are_taken_whole_or_refused(make_app, binary, size, datatype, shape):
    given_tensor = {"name": "country", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    rest = [_tensor(name=name, shape=[shape[0]], data=[1] * shape[0]) for name in ("amount", "hour")]
    text = json.dumps({"inputs": [given_tensor, *rest]}).encode()
    reply = call(make_app("mixed"), "POST", V2, text + binary, {**JSON, "Inference-Header-Content-Length": str(len(text))})
    if reply.status == 200:
        assert datatype == "BYTES"
        assert size == len(binary)
    else:
        _is_refused(reply)


@pytest.mark.parametrize("country", ["DE", "US", "XX", None])
def test_a_category_is_answered_alike_by_every_form(make_app, load, country):
    app = make_app("mixed")
    code = {"DE": 0, "US": 2}.get(country, math.nan)
    (score,) = _expected(load, [[1.5, code, 3]], "mixed")
    row = {"amount": 1.5, "country": country, "hour": 3}
    for instance in (row, list(row.values())):
        reply = call(app, "POST", V1, json.dumps({"instances": [instance]}).encode(), JSON)
        assert reply.json["predictions"][0]["probability"] == score
    inputs = [
        {"name": "country", "shape": [1], "datatype": "BYTES", "data": [country]},
        {"name": "hour", "shape": [1, 1], "datatype": "UINT8", "data": [[3]]},
        {"name": "amount", "shape": [1], "datatype": "FP64", "data": [1.5]},
    ]
    reply = call(app, "POST", V2, json.dumps({"inputs": inputs}).encode(), JSON)
    assert reply.json["outputs"][0]["data"] == [score]


def test_what_python_writes_for_a_missing_number_is_taken(make_app, load):
    reply = call(make_app(), "POST", V1, b'{"instances": [[NaN, 2]]}', JSON)
    assert reply.json["predictions"][0]["probability"] == _expected(load, [[None, 2]])[0]
    _is_refused(call(make_app(), "POST", V1, b'{"instances": [[Infinity, 2]]}', JSON))
    _is_refused(call(make_app(), "POST", V1, b'{"instances": [[NaN, ' + b"[" * 50_000, JSON))


def test_the_last_of_two_values_of_one_name_counts(make_app, load):
    reply = call(make_app(), "POST", V1, b'{"instances": [{"amount": 9, "night": 2, "amount": 1}]}', JSON)
    assert reply.json["predictions"][0]["probability"] == _expected(load, [[1, 2]])[0]


BODY = b'{"instances": [[1, 2]]}'


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_body_over_the_limit_is_refused_and_one_at_it_is_taken(make_app, pieces):
    app = make_app(max_request_bytes=1000)
    assert call(app, "POST", V1, BODY.ljust(1000), JSON, pieces=pieces).status == 200
    _is_refused(call(app, "POST", V1, BODY.ljust(1001), JSON, pieces=pieces), 413)
    _is_refused(call(app, "POST", V1, b"", {**JSON, "Content-Length": "1001"}), 413)


def test_more_rows_than_are_answered_at_once_are_refused(make_app, load, monkeypatch):
    app, limit = make_app(), 500
    monkeypatch.setattr(load("first"), "loaded", dataclasses.replace(load("first").loaded, max_rows=limit))
    for rows, status in ((limit, 200), (limit + 1, 413)):
        table = json.dumps({"instances": [[1, 2]] * rows}).encode()
        inputs = [{"name": name, "shape": [rows], "datatype": "INT8", "data": [1] * rows} for name in NAMES]
        for path, body in ((V1, table), (V2, json.dumps({"inputs": inputs}).encode())):
            reply = call(app, "POST", path, body, JSON)
            assert reply.status == status
            if status == 413:
                assert f"up to {limit} rows in a request (MODELYARD_MAX_REQUEST_ROWS)" in reply.json["error"]


def test_large_bodies_wait_in_bounded_number_and_small_ones_are_answered_meanwhile(make_app):
    app = make_app(max_request_bytes=300_000)

    async def ask(last, size=299_000):
        messages = [{"type": "http.request", "body": b" " * size, "more_body": True}]
        sent = []

        async def receive():
            if messages:
                return messages.pop()
            await last.wait()
            return {"type": "http.request", "body": BODY, "more_body": False}

        async def send(message):
            sent.append(message)

        await app({"type": "http", "method": "POST", "path": V1, "headers": []}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def ask_all():
        last = asyncio.Event()
        held = [asyncio.create_task(ask(last)) for _ in range(8)]
        await asyncio.sleep(0)
        status, headers = await ask(last)
        assert (status, headers[b"retry-after"]) == (429, b"1")
        at_once = asyncio.Event()
        at_once.set()
        assert (await ask(at_once, size=1))[0] == 200
        last.set()
        assert [status for status, _ in await asyncio.gather(*held)] == [200] * 8
        assert (await ask(at_once))[0] == 200

    asyncio.run(ask_all())


def test_a_check_is_answered_and_leaves_no_trace(make_app, tmp_path):
    app = make_app(log_folder=str(tmp_path))
    before = call(app, "GET", "/metrics").body.decode()
    plain = call(make_app(), "POST", V1, BODY, JSON)
    reply = call(app, "POST", V1, BODY, {**JSON, "X-Modelyard-Check": "golden rows"})
    assert (reply.status, reply.body) == (200, plain.body)
    assert call(app, "POST", V1, b"{", {**JSON, "X-Modelyard-Check": ""}).status == 400
    assert _ours(call(app, "GET", "/metrics").body.decode()) == _ours(before)
    assert app._log.rows() == (0, 0)
    assert app._log._logs == {}


def _ours(text):
    return [line for line in text.splitlines() if line.startswith("modelyard_")]


@pytest.mark.parametrize(("host", "mirrored"), [
    ("127.0.0.1-shadow:8080", True), ("fraud.example-shadow", True), ("127.0.0.1:8080", False), ("a-shadow.example", False),
])  # fmt: skip
def test_the_log_says_which_requests_were_copies(make_app, tmp_path, host, mirrored):
    app = make_app(log_folder=str(tmp_path))
    assert call(app, "POST", V1, b'{"instances": [[1, 2], [3, 4]]}', {**JSON, "Host": host}).status == 200
    app._log.close()
    assert read_predictions(str(tmp_path), "fraud")["mirrored"].to_list() == [mirrored] * 2


@pytest.mark.parametrize(("key", "status"), [
    ("", 200), ("customer 9", 200), ("k" * 256, 200), ("k" * 257, 400), ("k" * 60_000, 400), ("a\tb", 400), ("a\x00", 400),
    ("\xe9", 400),
])  # fmt: skip
def test_a_key_is_short_and_printable(make_app, key, status):
    reply = call(make_app(), "POST", V1, BODY, {**JSON, "X-Modelyard-Key": key})
    assert reply.status == status
    if status != 200:
        _is_refused(reply)
        assert "x-modelyard-key" in reply.json["error"]


@pytest.mark.parametrize("name", ["a\rb", "a\nSet-Cookie: b", "a b", "a\x00", "\xe9", "x" * 257])
def test_no_header_is_made_of_a_name_that_is_none(make_app, name):
    reply = call(make_app(), "POST", V1, BODY, {**JSON, "X-Request-Id": name})
    assert reply.headers["x-request-id"].replace("-", "").isalnum()


def test_a_reload_is_not_offered_to_strangers(make_app):
    path = "/v2/repository/models/fraud/load"
    assert call(make_app(), "POST", path).status == 200
    reply = call(make_app(offers_reload=False), "POST", path)
    _is_refused(reply, 403)
    assert "SIGHUP" in reply.json["error"]


def slowly(decide, clock):
    def decide_slowly(self, matrix):
        clock[0] += 7
        return decide(self, matrix)

    return decide_slowly


def test_the_time_of_a_request_is_ours_and_not_that_of_a_slow_client(make_app, monkeypatch):
    app, clock = make_app(), [0.0]
    monkeypatch.setattr("modelyard.components.predictor.app.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(LoadedModel, "decide", slowly(LoadedModel.decide, clock))

    async def ask():
        parts = [b'{"instances": ', b"[[1, 2]]}"]

        async def receive():
            clock[0] += 100
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            clock[0] += 100

        await app({"type": "http", "method": "POST", "path": V1, "headers": []}, receive, send)

    asyncio.run(ask())
    text = call(app, "GET", "/metrics").body.decode()
    (seconds,) = (float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelyard_request_seconds_sum"))
    assert seconds == 7


def test_a_large_body_is_answered_like_a_small_one(make_app, load):
    table = [[position / 7, 1] for position in range(30_000)]
    body = json.dumps({"instances": table}).encode()
    reply = call(make_app(max_request_bytes=10_000_000), "POST", V1, body, JSON)
    assert [entry["probability"] for entry in reply.json["predictions"]] == _expected(load, table).tolist()


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", None])
def test_json_is_taken_whatever_its_type_looks_like(make_app, kind):
    assert call(make_app(), "POST", V1, BODY, {} if kind is None else {"Content-Type": kind}).status == 200


@pytest.mark.parametrize("headers", [
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "\xff"},
    {**JSON, "Content-Encoding": "gzip"},
])  # fmt: skip
@pytest.mark.parametrize("path", [V1, V2])
def test_another_type_of_content_is_refused(make_app, path, headers):
    _is_refused(call(make_app(), "POST", path, BODY, headers), 415)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", [V1, V2, "/v2/models/fraud/versions/7/infer", "/v2/repository/models/fraud/load"])
def test_only_post_asks_for_an_answer(make_app, path, method):
    reply = call(make_app(), method, path, BODY, JSON)
    _is_refused(reply, 405)
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models/spam:predict", "/v2/models/spam/infer", "/v2/models/fraud/versions/8/infer"])
def test_another_model_or_version_is_not_found(make_app, path):
    reply = call(make_app(), "POST", path, BODY, JSON)
    _is_refused(reply, 404)
    assert "'spam'" in reply.json["error"] or "'8'" in reply.json["error"]


@settings(deadline=None)
@given(st.text(max_size=20).map(lambda rest: "/" + rest), st.sampled_from(["GET", "POST", "HEAD", "PUT"]))
def test_an_unknown_path_is_not_found(make_app, path, method):
    if path not in ("/v2", "/v2/", "/metrics"):
        _is_refused(call(make_app(), method, path), 404)


def test_what_is_served_can_be_asked(make_app, load):
    app = make_app("mixed")
    assert call(app, "GET", "/v1/models").json == {"models": ["fraud"]}
    assert call(app, "GET", "/v1/models/fraud").json == {"name": "fraud", "ready": True}
    assert call(app, "GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    assert call(app, "GET", "/v2/health/live").status == 200
    assert call(app, "GET", "/v2/health/ready").status == 200
    assert call(app, "GET", "/v2/models/fraud/versions/7/ready").status == 200
    metadata = call(app, "GET", "/v2/models/fraud").json
    assert metadata == call(app, "GET", "/v2/models/fraud/versions/7").json
    assert metadata["platform"] == "xgboost"
    assert [(entry["name"], entry["datatype"]) for entry in metadata["inputs"]] == [
        ("amount", "FP32"), ("country", "BYTES"), ("hour", "FP32"),
    ]  # fmt: skip


def test_a_predictor_that_drains_is_not_ready_still_answers_and_asks_to_connect_anew(make_app):
    app = make_app()
    app.draining = True
    assert call(app, "GET", "/v2/health/ready").status == 503
    assert call(app, "GET", "/v2/models/fraud/ready").status == 503
    assert call(app, "GET", "/v2/health/live").status == 200
    reply = call(app, "POST", V1, BODY, JSON)
    assert reply.status == 200
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("header", "own", "called"),
    [
        ("from-proxy", "", "from-proxy"),
        ("from-proxy", "mine", "from-proxy"),
        ("", "mine", "mine"),
        ("", "a\r\nb: c", None),
        ("", "ü", None),
        ("x" * 300, "", None),
        ("", "", None),
    ],
)
def test_a_request_keeps_its_name_unless_it_would_not_do_in_a_header(make_app, header, own, called):
    headers = {**JSON, "X-Request-Id": header} if header else JSON
    reply = call(make_app(), "POST", V2, json.dumps({"id": own, "inputs": [_tensor()]}).encode(), headers)
    assert reply.status == 200
    assert reply.json.get("id", "") == own
    if called is None:
        assert reply.headers["x-request-id"].replace("-", "").isalnum()
        assert reply.headers["x-request-id"] != call(make_app(), "POST", V1, BODY, JSON).headers["x-request-id"]
    else:
        assert reply.headers["x-request-id"] == called


def test_a_failure_of_ours_is_answered_counted_and_logged(make_app, monkeypatch, caplog):
    def fail(self, matrix):
        raise RuntimeError("out of order")

    app = make_app()
    monkeypatch.setattr(LoadedModel, "decide", fail)
    reply = call(app, "POST", V1, BODY, JSON)
    assert reply.status == 500
    assert reply.json == {"error": "the server failed (RuntimeError); its log says why"}
    assert "out of order" in caplog.text
    assert 'status="500",version="7"} 1.0' in call(app, "GET", "/metrics").body.decode()


def test_a_client_that_goes_away_is_neither_answered_nor_counted(make_app):
    app, sent = make_app(), []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": V1, "headers": []}, receive, send))
    assert sent == []
    text = call(app, "GET", "/metrics").body.decode()
    assert 'modelyard_requests_in_flight{model="fraud",version="7"} 0.0' in text
    assert "modelyard_requests_total{" not in text
