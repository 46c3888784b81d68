"""The wheel holds everything: each module imports from it, in an empty folder, without the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: setuptools leaves a build folder beside the sources, whose stale content the next wheel would take in.
    source = folder / "source"
    for name in ("components", "pipelines", "scripts", "compiled"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as archive:
        archive.extractall(unpacked)
    return unpacked


def _run_from(wheel, folder, code):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    finished = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_module_imports_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    files = [path.relative_to(wheel) for path in (wheel / "modelyard").rglob("*.py")]
    modules = sorted({".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files})
    assert "modelyard.components.training.component" in modules
    code = f"""
import importlib
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(wheel)!r}), (name, module.__file__)
print(len({modules!r}))
"""
    assert int(_run_from(wheel, tmp_path, code)) == len(modules)


def test_every_python_file_of_the_tree_is_in_the_wheel(wheel):
    def python_files(root):
        return {path.relative_to(root).as_posix() for path in root.rglob("*.py")}

    for folder in ("components", "pipelines", "scripts"):
        assert python_files(wheel / "modelyard" / folder) == python_files(ROOT / folder)


def test_the_wheel_finds_its_compiled_pipelines(wheel, tmp_path):
    code = "from modelyard.scripts import compiled; print(compiled.find('release')); print(compiled.available())"
    found, available = _run_from(wheel, tmp_path, code).splitlines()
    assert found == str(wheel / "modelyard" / "compiled" / "release.yaml")
    assert available == "['promote', 'quickstart', 'release', 'rollback']"


def test_the_lock_pins_every_requirement_exactly():
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    sections = [configuration["options"]["install_requires"], *configuration["options.extras_require"].values()]
    for requirement in "\n".join(sections).splitlines():
        name = requirement.split("[")[0].split("=")[0].split(">")[0].split("<")[0].split("~")[0].lower().replace("_", "-")
        if name and name != "modelyard":
            assert name in pinned, f"{requirement} is not in requirements.lock; run ./scripts/lock"
