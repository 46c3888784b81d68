import os
import shutil

import pytest

from modelyard.components.artifacts.digest import file_digest, model_digest, payload_digest
from modelyard.components.errors import InvalidInput


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "extra").mkdir(parents=True)
    (folder / "model.ubj").write_bytes(b"trees")
    (folder / "extra" / "note").write_bytes(b"")
    return folder


def test_a_file_is_named_by_blake3_of_its_bytes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty") == "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_model_is_named_by_what_was_trained_wherever_it_lies_and_whoever_signed_it(model, tmp_path):
    digest = model_digest(model)
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "card").mkdir()
    for name in ("card/model_card.md", "provenance.json", "model.sig"):
        (tmp_path / "copy" / name).write_text("signed")
    assert model_digest(tmp_path / "copy") == digest
    files = [path for path in model.rglob("*") if path.is_file()]
    assert payload_digest({path.relative_to(model).as_posix(): file_digest(path) for path in files}) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.ubj").write_bytes(b"treez"),
        lambda folder: (folder / "extra" / "note").unlink(),
        lambda folder: (folder / "model.ubj").rename(folder / "model2.ubj"),
        lambda folder: (folder / "extra" / "card").write_bytes(b"not the attestation"),
        lambda folder: (folder / ".git").write_bytes(b"hidden"),
    ],
)
def test_any_change_of_the_payload_is_another_model(model, change):
    digest = model_digest(model)
    change(model)
    assert model_digest(model) != digest


def test_what_is_no_regular_file_is_no_part_of_a_model(model):
    (model / "link").symlink_to("model.ubj")
    with pytest.raises(InvalidInput, match="link"):
        model_digest(model)
    (model / "link").unlink()
    os.mkfifo(model / "pipe")
    with pytest.raises(InvalidInput, match="pipe"):
        model_digest(model)


def test_an_empty_folder_or_none_is_no_model(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidInput, match="model directory"):
            model_digest(folder)
