"""``modelyard docs``: one page for each component and pipeline, from its interface and docstring.

The page lies beside the source: ``components/<room>/<component>.md``, ``pipelines/<pipeline>.md``. What a page needs and the
docstring does not say is an error, so that nothing undocumented is released.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

import docstring_parser

from modelyard.components.errors import InvalidInput, ModelyardError
from modelyard.components.storage.files import write_text
from modelyard.scripts import cli, compile_all, compiled

_MARK = "<!-- `modelyard docs` writes this page from the source; change the docstring there. -->"
_TYPES = {
    "String": "text",
    "Integer": "whole number",
    "Float": "number",
    "Double": "number",
    "Boolean": "true or false",
    "List": "list",
    "Dict": "object",
}


class Undocumented(ModelyardError):
    """A component or pipeline says less, or more, than it has."""


def docs_command(arguments: argparse.Namespace) -> int:
    root = compile_all.checkout_folder().parent
    wanted = pages(compile_all.components(), compile_all.pipelines())
    stale = [relative for relative, text in wanted.items() if _text(root / relative) != text]
    left_over = [path for path in _written_pages(root) if path.relative_to(root).as_posix() not in wanted]
    if arguments.check:
        for relative in stale:
            print(f"{'stale' if (root / relative).exists() else 'missing':<11}{relative}")
        for path in left_over:
            print(f"left over  {path.relative_to(root)}")
        if stale or left_over:
            print(f"{root}: {len(stale) + len(left_over)} pages differ from the sources; run `modelyard docs`")
            return cli.FAILED
        print(f"{root}: {len(wanted)} pages, all as the sources say")
        return cli.OK
    for relative in stale:
        write_text(root / relative, wanted[relative])
    for path in left_over:
        path.unlink()
    print(f"{root}: {len(wanted)} pages, {len(stale)} changed, {len(left_over)} removed")
    return cli.OK


def pages(components: dict[str, dict[str, Any]], pipelines: dict[str, Any]) -> dict[str, str]:
    """Every page's text by its path in the checkout.

    Raises:
        Undocumented: lists every input, parameter and output that its docstring does not describe, and the other way round.
    """
    faults = []
    texts = {}
    for room, found in components.items():
        for name, component in found.items():
            faults += undocumented(name, component)
            texts[f"components/{room}/{name}.md"] = component_page(room, name, component)
    for name, pipeline in pipelines.items():
        faults += undocumented(name, pipeline)
        texts[f"pipelines/{name}.md"] = pipeline_page(name, pipeline)
    if faults:
        raise Undocumented("the docstrings are incomplete:\n  " + "\n  ".join(faults))
    return texts


def undocumented(name: str, component: Any) -> list[str]:
    """What a docstring leaves out, and what it describes that is not there."""
    document = _docstring(component)
    specification = component.component_spec
    of_inputs, of_outputs = _descriptions(component)
    sides = ((specification.inputs or {}, of_inputs), (specification.outputs or {}, of_outputs))
    faults = [] if document.short_description else [f"{name}: it lacks a summary"]
    for present, described in sides:
        faults += [f"{name}: {entry} is not described" for entry in present if not described.get(entry)]
    for present, described in sides:
        faults += [f"{name}: {entry} is described, but it does not exist" for entry in described if entry not in present]
    return faults


def component_page(room: str, name: str, component: Any) -> str:
    """The Markdown page of a component."""
    specification = component.component_spec
    inputs, outputs = specification.inputs or {}, specification.outputs or {}
    artifacts = {key: value for key, value in inputs.items() if _is_artifact(value.type)}
    parameters = {key: value for key, value in inputs.items() if key not in artifacts}
    image = specification.implementation.container.image.rpartition(":")[0]
    of_inputs, of_outputs = _descriptions(component)
    arguments = ", ".join(f"{key}=…" for key, value in inputs.items() if not value.optional)
    sections = [
        _heading(name, component),
        f"Image `{image}`, interface in [component.py](component.py), compiled to "
        f"[{name}.yaml](../../compiled/components/{name}.yaml).",
        _section("Inputs", _artifact_table(artifacts, of_inputs)),
        _section("Parameters", _parameter_table(parameters, of_inputs)),
        _section("Outputs", _output_table(outputs, of_outputs)),
        "## Use\n\nIn a pipeline, where this package is installed:\n\n"
        f"```python\nfrom modelyard.components.{room}.component import {name}\n\ntask = {name}({arguments})\n```\n\n"
        "Anywhere else, from the compiled file (`load_component_from_url` takes the address of the same file):\n\n"
        f'```python\nfrom kfp import components\n\n{name} = components.load_component_from_file("{name}.yaml")\n```',
    ]
    if not artifacts:
        required = " ".join(f"-p {key}=…" for key, value in parameters.items() if not value.optional)
        sections.append(
            "By itself, on this machine:\n\n"
            f"```console\n$ {f'modelyard run compiled/components/{name}.yaml {required}'.strip()}\n```"
        )
    return _page(sections)


def pipeline_page(name: str, pipeline: Any) -> str:
    """The Markdown page of a pipeline."""
    specification = pipeline.component_spec
    inputs, outputs = specification.inputs or {}, specification.outputs or {}
    of_inputs, of_outputs = _descriptions(pipeline)
    required = " ".join(f"-p {key}=…" for key, value in inputs.items() if not value.optional)
    steps = ", ".join(f"`{step}`" for step in _steps(pipeline))
    return _page(
        [
            _heading(name, pipeline),
            f"Source in [{name}.py]({name}.py), compiled to [{name}.yaml](../compiled/{name}.yaml). Its steps: {steps}.",
            _section("Parameters", _parameter_table(inputs, of_inputs)),
            _section("Outputs", _output_table(outputs, of_outputs)),
            "## Use\n\n```console\n"
            f"$ {f'modelyard run {name} {required}'.strip()}\n"
            f"$ {f'modelyard submit {name} --host URL {required}'.strip()}\n```",
        ]
    )


def _heading(name: str, component: Any) -> str:
    document = _docstring(component)
    parts = [document.short_description or "", document.long_description or ""]
    return "\n\n".join([f"# {name}", *(part for part in parts if part)])


def _page(sections: list[str]) -> str:
    return "\n\n".join([_MARK, *(section for section in sections if section)]) + "\n"


def _section(title: str, table: str) -> str:
    return f"## {title}\n\n{table}" if table else ""


def _artifact_table(entries: dict[str, Any], described: dict[str, str]) -> str:
    rows = [[f"`{name}`", _type(entry.type), described.get(name, "")] for name, entry in entries.items()]
    return _table(["artifact", "type", "what it is"], rows)


def _parameter_table(entries: dict[str, Any], described: dict[str, str]) -> str:
    rows = []
    for name, entry in sorted(entries.items(), key=lambda item: item[1].optional):
        shown = compiled.Parameter(name, "", not entry.optional, entry.default, "").shown_default()
        default = f"`{shown}`" if shown else ("empty" if entry.optional else "required")
        rows.append([f"`{name}`", _type(entry.type), default, described.get(name, "")])
    return _table(["parameter", "type", "default", "what it is"], rows)


def _output_table(entries: dict[str, Any], described: dict[str, str]) -> str:
    rows = [[f"`{name}`", _type(entry.type), described.get(name, "")] for name, entry in entries.items()]
    return _table(["output", "type", "what it is"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [heads, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def _type(name: str) -> str:
    return name.partition("@")[0].removeprefix("system.") if _is_artifact(name) else _TYPES.get(name, name)


def _is_artifact(name: str) -> bool:
    return "@" in name


def _docstring(component: Any) -> docstring_parser.Docstring:
    return docstring_parser.parse(_text_of_docstring(component), style=docstring_parser.DocstringStyle.GOOGLE)


def _text_of_docstring(component: Any) -> str:
    function = getattr(component, "python_func", None) or getattr(component, "pipeline_func", None)
    if function is None:
        raise InvalidInput("component", component.name, "it must be made from a Python function")
    return (inspect.getdoc(function) or "").replace("``", "`")


def _descriptions(component: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Descriptions by name of the inputs and of the outputs, each on one line. An output may be called as an input is."""
    document = _docstring(component)
    outputs = component.component_spec.outputs or {}
    if list(outputs) == ["Output"]:
        # What a function returns without a name is described as a whole.
        returned = {"Output": document.returns.description if document.returns else None}
    else:
        # The parser knows lists of names under Args alone; KFP reads outputs in the same way.
        listed = _text_of_docstring(component).partition("\nReturns:\n")[2]
        returned = {
            entry.arg_name: entry.description for entry in docstring_parser.parse(f"Outputs.\n\nArgs:\n{listed}").params
        }
    given = {entry.arg_name: entry.description for entry in document.params}
    return _on_one_line(given), _on_one_line(returned)


def _on_one_line(descriptions: dict[str, str | None]) -> dict[str, str]:
    return {name: " ".join((text or "").split()) for name, text in descriptions.items()}


def _steps(pipeline: Any) -> list[str]:
    from google.protobuf import json_format

    # Sorted: a protobuf map has no order of its own.
    return sorted(compiled.component_names(json_format.MessageToDict(pipeline.pipeline_spec)))


def _written_pages(root: Path) -> list[Path]:
    found = sorted([*root.glob("components/*/*.md"), *root.glob("pipelines/*.md")])
    return [path for path in found if path.read_text(encoding="utf-8").startswith(_MARK)]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
