import json
from datetime import UTC, datetime

import numpy as np

from modelyard.components.predictions.reader import read_predictions
from modelyard.components.predictor.logged import LoggedPredictions
from modelyard.components.predictor.protocol import Answer
from tests.components.predictor.processes import wait_until


def test_what_was_answered_is_in_the_log_when_the_predictor_has_ended(models, digest, start, load, tmp_path):
    folder = tmp_path / "log"
    predictor = start(models["mixed"], MODELYARD_PREDICTION_LOG=str(folder), MODEL_VERSION="4").wait_for("ready")
    rows = [{"amount": 1.5, "country": "US", "hour": 3}, {"amount": None, "country": "XX", "hour": 4}]
    before = datetime.now(UTC)
    first = predictor.predict(rows, **{"X-Request-Id": "one", "X-Modelyard-Key": "customer-9"})
    second = predictor.predict([[2, None, 5]])
    assert predictor.predict([["a", None, 5]]).status == 400
    inputs = [
        {"name": "country", "shape": [1], "datatype": "BYTES", "data": ["DE"]},
        {"name": "hour", "shape": [1], "datatype": "INT32", "data": [7]},
        {"name": "amount", "shape": [1], "datatype": "FP32", "data": [0.5]},
    ]
    body = json.dumps({"id": "three", "inputs": inputs}).encode()
    third = predictor.request("POST", "/v2/models/fraud/infer", body, {"Content-Type": "application/json"})
    assert predictor.stop() == 0

    log = read_predictions(str(folder), "fraud").sort("time", "row")
    assert log["request_id"].to_list() == ["one", "one", second.headers["x-request-id"], "three"]
    assert log["key"].to_list() == ["customer-9", "customer-9", "", ""]
    assert log["row"].to_list() == [0, 1, 0, 0]
    assert set(log["version"]) == {"4"}
    assert set(log["digest"]) == {digest(models["mixed"])}
    given = [entry["probability"] for reply in (first, second) for entry in reply.json["predictions"]]
    assert log["score"].to_list() == [*given, third.json["outputs"][0]["data"][0]]
    assert log["decision"].to_list() == [int(score >= 0.5) for score in log["score"]]
    assert log["features"].to_list() == [
        {"amount": 1.5, "country": "US", "hour": 3.0}, {"amount": None, "country": "XX", "hour": 4.0},
        {"amount": 2.0, "country": None, "hour": 5.0}, {"amount": 0.5, "country": "DE", "hour": 7.0},
    ]  # fmt: skip
    assert before <= log["time"].min() <= log["time"].max() <= datetime.now(UTC)


def test_a_log_that_cannot_be_written_costs_no_answer_and_is_counted(models, start, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    predictor = start(models["first"], MODELYARD_PREDICTION_LOG=str(blocked), MODELYARD_PREDICTION_LOG_SECONDS="0.1").wait_for(
        "ready"
    )
    for _ in range(3):
        assert predictor.predict([[1, 2]] * 40_000).status == 200
    wait_until(lambda: predictor.metrics()["modelyard_prediction_log_rows_total", "dropped"] > 0, "dropped rows")
    assert predictor.metrics()["modelyard_prediction_log_rows_total", "written"] == 0
    wait_until(lambda: "prediction log" in predictor.output, "a word about it")
    assert predictor.stop() == 0


def test_each_model_that_a_process_has_loaded_is_logged_as_itself(load, tmp_path):
    logged = LoggedPredictions(str(tmp_path))
    answer = Answer(b"", np.array([0.25]), np.array([0], np.int32), np.array([[1, 2]], np.float32))
    for number, name in enumerate(("first", "second")):
        logged.append(load(name).loaded, f"{number}".encode(), b"", 1_700_000_000_000_000_000 + number, answer)
    logged.close()
    assert logged.rows() == (2, 0)
    log = read_predictions(str(tmp_path), "fraud").sort("request_id")
    assert log["digest"].to_list() == [load(name).loaded.digest for name in ("first", "second")]


def test_without_a_destination_nothing_is_logged(load):
    logged = LoggedPredictions("")
    assert logged.open(load("first").loaded) is None
    assert logged.rows() == (0, 0)
    logged.close()
