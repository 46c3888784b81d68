import os
import subprocess
import sys

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_config
from kfp.pipeline_spec import pipeline_spec_pb2

from modelyard.scripts import compile_all
from tests.scripts.tiny_pipelines import ALL, say

WANTED = {"speech.yaml": "a: 1\n", "components/say.yaml": "b: 2\n"}


def test_compiling_gives_what_the_compiler_writes(packages):
    texts = compile_all.compile_texts({"speech.yaml": ALL["speech"], "components/say.yaml": say})
    assert texts["speech.yaml"] == (packages / "speech.yaml").read_text()
    assert "name: say" in texts["components/say.yaml"]


def test_what_was_written_compares_equal_and_is_not_written_again(tmp_path):
    assert compile_all.write(tmp_path, WANTED) == (2, 0)
    assert list(compile_all.compare(tmp_path, WANTED)) == []
    before = (tmp_path / "speech.yaml").stat()
    assert compile_all.write(tmp_path, WANTED) == (0, 0)
    assert (tmp_path / "speech.yaml").stat() == before


def test_missing_stale_and_left_over_files_are_told_apart(tmp_path):
    compile_all.write(tmp_path, {**WANTED, "components/gone.yaml": "c: 3\n"})
    (tmp_path / "components" / "say.yaml").unlink()
    (tmp_path / "speech.yaml").write_text("a: 0\n")
    stale, missing, left_over = compile_all.compare(tmp_path, WANTED)
    assert stale.startswith("stale      speech.yaml")
    assert "-a: 0" in stale
    assert "+a: 1" in stale
    assert missing == "missing    components/say.yaml"
    assert left_over == "left over  components/gone.yaml"


def test_a_line_end_of_another_kind_is_a_difference(tmp_path):
    compile_all.write(tmp_path, WANTED)
    (tmp_path / "speech.yaml").write_bytes(b"a: 1\r\n")
    assert len(list(compile_all.compare(tmp_path, WANTED))) == 1


def test_left_over_files_are_removed_and_others_are_not(tmp_path):
    compile_all.write(tmp_path, {**WANTED, "old.yaml": ""})
    (tmp_path / "__init__.py").write_text("")
    assert compile_all.write(tmp_path, WANTED) == (0, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__init__.py", "components", "speech.yaml"]


def compile_elsewhere(folder, *arguments, **environment):
    folder.mkdir(exist_ok=True)
    finished = subprocess.run(
        [sys.executable, "-m", "modelyard.scripts.cli", "compile", "--output", folder / "compiled", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return finished, {path.name: path.read_text() for path in (folder / "compiled").rglob("*.yaml")}


def test_everything_compiles_to_the_same_bytes_under_any_hash_seed_for_the_registry_asked_for(tmp_path):
    images = ("--registry", "registry.example.com/ml/", "--tag", "2026-07")
    first, texts = compile_elsewhere(tmp_path / "first", *images, PYTHONHASHSEED="1")
    second, same = compile_elsewhere(tmp_path / "second", *images, PYTHONHASHSEED="2")
    assert first.returncode == second.returncode == 0, first.stderr
    assert texts == same
    found = {line.split()[-1] for text in texts.values() for line in text.splitlines() if " image: " in line}
    assert found
    assert all(image.startswith("registry.example.com/ml/") and image.endswith(":2026-07") for image in found)
    # Pods that a step itself starts run the same.
    executors = next(yaml.safe_load_all(texts["release.yaml"]))["deploymentSpec"]["executors"]
    told = [executor["container"]["env"] for name, executor in executors.items() if "train-distributed" in name]
    wanted = [
        {"name": "MODELYARD_REGISTRY", "value": "registry.example.com/ml/"},
        {"name": "MODELYARD_TAG", "value": "2026-07"},
    ]
    assert told == [wanted, wanted]
    checked, _ = compile_elsewhere(tmp_path / "first", "--check")
    assert checked.returncode == 1
    assert "stale" in checked.stdout


@pytest.fixture(scope="module")
def everything():
    return compile_all.compile_texts(compile_all.sources())


def test_the_checkouts_compiled_files_are_what_the_sources_say(everything):
    assert list(compile_all.compare(compile_all.checkout_folder(), everything)) == []


def test_every_compiled_document_is_valid_for_the_server(everything):
    platforms = 0
    for text in everything.values():
        specification, *platform = yaml.safe_load_all(text)
        json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
        for document in platform:
            json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
            for executor in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
                json_format.ParseDict(executor, kubernetes_config.KubernetesExecutorConfig())
                platforms += 1
    assert platforms


def test_no_step_installs_anything_when_it_starts(everything):
    assert not [name for name, text in everything.items() if "pip install" in text or "pip3 install" in text]
