"""``modelyard compile``: every pipeline and component as the YAML that a cluster, and the local runner, gets.

A module ``modelyard.pipelines.<name>`` that defines a function of its own name under ``@dsl.pipeline`` is a pipeline; what a
room's ``modelyard.components.<room>.component`` defines are components. Nothing has to be listed anywhere.
"""

import argparse
import difflib
import importlib
import os
import pkgutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelyard.components.errors import InvalidInput
from modelyard.components.storage.files import write_text
from modelyard.scripts import cli, compiled

_DIFF_LINES = 12


def compile_command(arguments: argparse.Namespace) -> int:
    # Before any component is imported: its image is fixed then.
    if arguments.registry:
        os.environ["MODELYARD_REGISTRY"] = arguments.registry
    if arguments.tag:
        os.environ["MODELYARD_TAG"] = arguments.tag
    folder = Path(arguments.output) if arguments.output else checkout_folder()
    wanted = compile_texts(sources())
    if arguments.check:
        differences = list(compare(folder, wanted))
        for difference in differences:
            print(difference)
        if differences:
            print(f"{folder}: {len(differences)} of {len(wanted)} files differ from the sources; run `modelyard compile`")
            return cli.FAILED
        print(f"{folder}: {len(wanted)} files, all as the sources say")
        return cli.OK
    written, removed = write(folder, wanted)
    print(f"{folder}: {len(wanted)} files, {written} changed, {removed} removed")
    return cli.OK


def checkout_folder() -> Path:
    """The checkout's ``compiled`` folder.

    Raises:
        InvalidInput: this installation is not a checkout.
    """
    folder = compiled.compiled_folder()
    if not (folder.parent / "setup.cfg").is_file():
        raise InvalidInput("--output", "", "this installation is not a checkout; say where to write the YAML")
    return folder


def components() -> dict[str, dict[str, Any]]:
    """KFP components by room and name, as the rooms' ``component`` modules define them."""
    from kfp.dsl.base_component import BaseComponent

    import modelyard.components

    found: dict[str, dict[str, Any]] = {}
    for room in sorted(module.name for module in pkgutil.iter_modules(modelyard.components.__path__) if module.ispkg):
        interface = Path(next(iter(modelyard.components.__path__)), room, "component.py")
        if interface.is_file():
            module = importlib.import_module(f"modelyard.components.{room}.component")
            found[room] = {name: value for name, value in sorted(vars(module).items()) if isinstance(value, BaseComponent)}
    return found


def pipelines() -> dict[str, Any]:
    """Pipeline functions by name; a module without one of its name only helps the others."""
    from kfp.dsl.base_component import BaseComponent

    import modelyard.pipelines

    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(modelyard.pipelines.__path__)):
        function = getattr(importlib.import_module(f"modelyard.pipelines.{name}"), name, None)
        if isinstance(function, BaseComponent):
            found[name] = function
    return found


def sources() -> dict[str, Any]:
    """Everything there is to compile, by its path under ``compiled``."""
    found = {f"{name}.yaml": function for name, function in pipelines().items()}
    for room in components().values():
        found |= {f"components/{name}.yaml": component for name, component in room.items()}
    return found


def compile_texts(found: dict[str, Any]) -> dict[str, str]:
    """The YAML of pipelines and components, by the same paths."""
    from kfp import compiler

    texts = {}
    with tempfile.TemporaryDirectory(prefix="modelyard-compile-") as folder:
        path = Path(folder, "package.yaml")
        for relative, source in found.items():
            compiler.Compiler().compile(source, str(path))
            texts[relative] = path.read_text(encoding="utf-8")
    return texts


def write(folder: Path, wanted: dict[str, str]) -> tuple[int, int]:
    """Makes a folder hold exactly these files, each of them whole at any moment.

    Returns:
        How many files were written because they differed, and how many left-over ones were removed.
    """
    changed = [relative for relative in wanted if _text(folder / relative) != wanted[relative]]
    for relative in changed:
        write_text(folder / relative, wanted[relative])
    left_over = _left_over(folder, wanted)
    for path in left_over:
        path.unlink()
    return len(changed), len(left_over)


def compare(folder: Path, wanted: dict[str, str]) -> Iterator[str]:
    """Says of each file that is missing, stale or left over what is wrong with it."""
    for relative, text in wanted.items():
        found = _text(folder / relative)
        if found is None:
            yield f"missing    {relative}"
        elif found != text:
            lines = difflib.unified_diff(found.splitlines(), text.splitlines(), relative, "from the sources", lineterm="", n=1)
            shown = "\n".join(f"    {line[:160]}" for line, _ in zip(lines, range(_DIFF_LINES)))
            yield f"stale      {relative}\n{shown}"
    for path in _left_over(folder, wanted):
        yield f"left over  {path.relative_to(folder)}"


def _text(path: Path) -> str | None:
    return path.read_bytes().decode() if path.is_file() else None


def _left_over(folder: Path, wanted: dict[str, str]) -> list[Path]:
    present = [*folder.glob("*.yaml"), *folder.glob("components/*.yaml")]
    return sorted(path for path in present if path.relative_to(folder).as_posix() not in wanted)
