"""What an analysis leaves behind: its report, and its content as JSON."""

import json
import os

from modelyard.components.experiments.analysis import Analysis
from modelyard.components.experiments.report import render_report
from modelyard.components.storage.files import write_text


def write_outputs(analysis: Analysis, *, report: str | os.PathLike[str], result: str | os.PathLike[str]) -> None:
    """Writes the HTML report and the JSON, each whole or not at all."""
    write_text(report, render_report(analysis))
    write_text(result, json.dumps(analysis.content(), indent=1, allow_nan=False) + "\n")
