"""A rollout as a page for people: the decision and its reasons, both versions over time, and the evidence with its boundary."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from modelyard.components.plots.charts import COLOURS, Line, line_chart
from modelyard.components.plots.page import Banner, Cell, Facts, Figures, Notes, Section, Table, render_page
from modelyard.components.rollout.evidence import TITLES
from modelyard.components.rollout.latency import quantile
from modelyard.components.rollout.record import CANARY, STABLE, Progress
from modelyard.components.serving.buckets import LATENCY_EDGES


def render_report(model_name: str, progress: Progress) -> str:
    """The rollout as one self-contained HTML page."""
    return ""


def timeline_of(model_name: str, progress: Progress) -> dict[str, Any]:
    """The rollout as JSON-ready values."""
    return {}
