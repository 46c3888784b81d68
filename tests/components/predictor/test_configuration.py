import pytest

from modelyard.components.errors import InvalidInput
from modelyard.components.predictor.configuration import Configuration


def test_nothing_has_to_be_configured():
    assert Configuration.from_environment() == Configuration("unversioned", "", None, "", 10 * 2**20, 50_000)


def test_what_the_environment_says_is_taken(monkeypatch):
    monkeypatch.setenv("MODEL_VERSION", "12")
    monkeypatch.setenv("MODEL_DIGEST", "blake3:ab")
    monkeypatch.setenv("MODEL_THRESHOLD", "0")
    monkeypatch.setenv("MODELYARD_PREDICTION_LOG", "s3://bucket/log")
    monkeypatch.setenv("MODELYARD_MAX_REQUEST_BYTES", "1000")
    monkeypatch.setenv("MODELYARD_MAX_REQUEST_ROWS", "20")
    assert Configuration.from_environment() == Configuration("12", "blake3:ab", 0.0, "s3://bucket/log", 1000, 20)


@pytest.mark.parametrize("threshold", ["-0.1", "1.01", "nan", "inf", "half", " "])
def test_a_threshold_is_a_probability(monkeypatch, threshold):
    monkeypatch.setenv("MODEL_THRESHOLD", threshold)
    with pytest.raises(InvalidInput, match="MODEL_THRESHOLD"):
        Configuration.from_environment()


@pytest.mark.parametrize("size", ["0", "-1", "1e6", "10 MiB", "٣"])
@pytest.mark.parametrize("variable", ["MODELYARD_MAX_REQUEST_BYTES", "MODELYARD_MAX_REQUEST_ROWS"])
def test_a_limit_is_a_number(monkeypatch, variable, size):
    monkeypatch.setenv(variable, size)
    with pytest.raises(InvalidInput, match=variable):
        Configuration.from_environment()


@pytest.mark.parametrize("version", ["1\r\nx: y", "ü", "a/b"])
def test_a_version_can_stand_in_a_header(monkeypatch, version):
    monkeypatch.setenv("MODEL_VERSION", version)
    with pytest.raises(InvalidInput, match="MODEL_VERSION"):
        Configuration.from_environment()
