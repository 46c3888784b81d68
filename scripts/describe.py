"""``modelyard describe``: a pipeline's parameters, or the pipelines that there are."""

import argparse
import textwrap

from modelyard.scripts import cli, compiled


def describe_command(arguments: argparse.Namespace) -> int:
    if not arguments.pipeline:
        for name in compiled.available():
            summary = compiled.read(compiled.find(name)).description.partition("\n")[0]
            print(f"{name:<14}{summary}")
        return cli.OK
    package = compiled.read(compiled.find(arguments.pipeline))
    # KFP keeps no description of a single component.
    print(": ".join(filter(None, (package.name, package.description))) + "\n\nparameters:")
    for parameter in sorted(package.parameters, key=lambda parameter: (not parameter.required, parameter.name)):
        default = "required" if parameter.required else f"default {parameter.shown_default() or 'empty'}"
        print(f"  {parameter.name}  ({compiled.KINDS.get(parameter.kind, parameter.kind)}, {default})")
        if parameter.description:
            print(textwrap.indent(textwrap.fill(parameter.description, 90), "      "))
    return cli.OK
