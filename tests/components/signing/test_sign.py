import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.artifacts.digest import model_digest
from modelyard.components.errors import InvalidInput
from modelyard.components.signing.sign import sign_model
from modelyard.components.signing.verification import verify_model
from tests.support.signed_models import attestations


@pytest.fixture
def model(home, _models, tmp_path) -> Path:
    return Path(shutil.copytree(_models[0].directory.parent / "model", tmp_path / "model"))


def test_a_model_that_passed_is_signed_with_its_papers(model, tmp_path):
    papers = attestations(tmp_path / "papers", model)
    made = sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud", run_id="abc")
    assert made.model_digest == model_digest(model) == model_digest(tmp_path / "signed")
    assert (made.run_id, made.method) == ("abc", "key")
    assert verify_model(tmp_path / "signed", model_name="fraud", digest=made.model_digest) == made
    for name, given in {"model_card.md": "card", "model_card.html": "card_html", "bom.cdx.json": "bom"}.items():
        assert (tmp_path / "signed" / "card" / name).read_bytes() == papers[given].read_bytes()
    assert (tmp_path / "signed" / "card" / "evaluation.json").read_bytes() == papers["evaluation"].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"decision": "fail"}, "decision = 'fail'"),
        ({"decision": "inconclusive"}, "decision = 'inconclusive'"),
        ({"decision": ""}, "only a model that passed"),
        ({"model_digest": "blake3:" + "0" * 64}, "another model than this one"),
        ({"model_name": "credit"}, "another model than 'fraud'"),
    ],
)
def test_a_model_that_did_not_pass_is_not_signed(model, tmp_path, entries, message):
    papers = attestations(tmp_path / "papers", model, **entries)
    with pytest.raises(InvalidInput, match=message):
        sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "papers"]


def test_a_model_that_changed_after_its_evaluation_is_not_signed(model, tmp_path):
    papers = attestations(tmp_path / "papers", model)
    (model / "added.json").write_text("{}")
    with pytest.raises(InvalidInput, match="another model than this one"):
        sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")
    assert not (tmp_path / "signed").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"decision": "pass"}'])
def test_an_evaluation_that_is_none_is_refused(model, tmp_path, text):
    papers = attestations(tmp_path / "papers", model)
    papers["evaluation"].write_text(text)
    with pytest.raises(InvalidInput, match="evaluate_model"):
        sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")


def test_papers_that_lie_in_the_model_already_are_replaced(model, tmp_path):
    papers = attestations(tmp_path / "papers", model)
    sign_model(model, **papers, signed_model=tmp_path / "once", model_name="fraud")
    sign_model(tmp_path / "once", **papers, signed_model=tmp_path / "twice", model_name="fraud", run_id="second")
    assert verify_model(tmp_path / "twice").run_id == "second"


@pytest.mark.parametrize("target", ["model.ubj", "/etc/passwd", "nowhere"])
def test_a_link_in_the_model_is_refused_and_not_followed(model, tmp_path, target):
    papers = attestations(tmp_path / "papers", model)
    (model / "link").symlink_to(target)
    with pytest.raises(InvalidInput, match="regular files"):
        sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")
    assert not (tmp_path / "signed").exists()


def test_nothing_is_overwritten(model, tmp_path):
    papers = attestations(tmp_path / "papers", model)
    (tmp_path / "signed").mkdir()
    (tmp_path / "signed" / "kept").write_text("x")
    with pytest.raises(FileExistsError):
        sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")
    assert [path.name for path in (tmp_path / "signed").iterdir()] == ["kept"]


def test_a_signing_that_was_killed_at_any_moment_leaves_nothing_that_looks_signed(model, tmp_path):
    papers = attestations(tmp_path / "papers", model)
    code = (
        "import sys, json; from modelyard.components.signing.sign import sign_model\n"
        "import model_signing.signing\n"
        "print('ready', flush=True)\n"
        "sign_model(sys.argv[1], **json.loads(sys.argv[2]), signed_model=sys.argv[3], model_name='fraud')\n"
    )
    arguments = [str(model), json.dumps({name: str(path) for name, path in papers.items()}), str(tmp_path / "signed")]

    for delay in (0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.02, 0.03, 0.05, 0.2):
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=os.environ.copy())
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
        if (tmp_path / "signed").exists():
            verify_model(tmp_path / "signed", model_name="fraud")
            shutil.rmtree(tmp_path / "signed")

    sign_model(model, **papers, signed_model=tmp_path / "signed", model_name="fraud")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial-")] == []
