"""Measures what this package does against what one would use otherwise, side by side in one run on one machine.

``modelyard benchmark`` writes the figures as JSON and as a Markdown table. Each figure is a module of its own, listed in
``registry``; it names its target and returns rows. Whatever is timed runs in a process of its own (``measuring``).
"""

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs ``modelyard benchmark`` with these arguments and returns its exit code."""
    from modelyard.scripts.benchmark.command import build_parser, run

    return run(build_parser().parse_args(words))
