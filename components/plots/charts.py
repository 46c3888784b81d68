"""Charts as inline SVG, drawn by Matplotlib and coloured by the page.

Text stays text (it can be selected, and takes the page's font), colours become the page's CSS variables, so that one drawing
suits a light and a dark screen, and equal data gives equal bytes: no date, no random identifier.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Each colour stands for a variable of the page; the value is what a viewer without variables sees.
COLOURS = {
    "ink": "#1b2330",
    "muted": "#697386",
    "grid": "#e3e7ee",
    "first": "#2f6fed",
    "second": "#e08a1e",
    "good": "#1f9d61",
    "bad": "#d64545",
    "warn": "#b7791f",
}
_WIDTH, _HEIGHT = 5.2, 3.5
_MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve. ``mark`` is a point to emphasise, with its label."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = "first"
    step: bool = False
    dashed: bool = False
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class Span:
    """One interval of a forest plot, coloured by its tone (``good``, ``bad``, ``warn``, ``muted`` or a series' colour)."""

    label: str
    value: float
    low: float
    high: float
    tone: str = "first"


def thin(x: np.ndarray, y: np.ndarray, limit: int = _MAX_POINTS) -> np.ndarray:
    """Positions of at most ``limit`` points that keep a curve's shape: evenly spaced along it, both ends included."""
    if len(x) <= limit:
        return np.arange(len(x))
    steps = np.abs(np.diff(x)) / (np.ptp(x) or 1.0) + np.abs(np.diff(y)) / (np.ptp(y) or 1.0)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    chosen = np.searchsorted(along, np.linspace(0, along[-1], limit))
    chosen[0], chosen[-1] = 0, len(x) - 1
    return np.unique(chosen)


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    name: str,
    x_range: tuple[float, float] | None = (0.0, 1.0),
    y_range: tuple[float, float] | None = (0.0, 1.0),
    diagonal: bool = False,
) -> Markup:
    """Curves over common axes.

    Args:
        lines: the curves, drawn in order.
        x_label: what is on the horizontal axis.
        y_label: what is on the vertical axis.
        name: unique on the page; used in identifiers and read out by screen readers.
        x_range: fixed limits, or None to fit the data.
        y_range: fixed limits, or None to fit the data.
        diagonal: draw the line from (0, 0) to (1, 1) for reference.
    """
    with _axes(name) as (axes, done):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
        for line in lines:
            kept = thin(line.x, line.y)
            axes.plot(
                line.x[kept],
                line.y[kept],
                color=COLOURS[line.colour],
                drawstyle="steps-post" if line.step else "default",
                linestyle=(0, (4, 2)) if line.dashed else "-",
                label=line.label,
            )
            # A curve of one point would not be seen.
            if mark := line.mark or ((line.x[0], line.y[0]) if len(line.x) == 1 else None):
                axes.plot(*mark, marker="o", markersize=6, color=COLOURS[line.colour], markeredgewidth=0)
        _limits(axes, x_range, y_range)
        axes.set(xlabel=x_label, ylabel=y_label)
        _legend(axes, len(lines))
    return done[0]


def reliability_chart(series: Sequence[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]], *, name: str) -> Markup:
    """Observed frequency against mean score.

    Args:
        series: for each model its label, its colour, and arrays of one length: mean score, frequency, and the frequency's
            interval, shape (bins, 2).
        name: unique on the page.
    """
    with _axes(name) as (axes, done):
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 3)))
        for label, colour, score, frequency, bounds in series:
            axes.vlines(score, bounds[:, 0], bounds[:, 1], color=COLOURS[colour], linewidth=1.1, alpha=0.55)
            axes.plot(score, frequency, color=COLOURS[colour], marker="o", markersize=4, markeredgewidth=0, label=label)
        _limits(axes, (0, 1), (0, 1))
        axes.set(xlabel="Mean score", ylabel="Share of positives")
        _legend(axes, len(series))
    return done[0]


def share_histogram(groups: Sequence[tuple[str, str, np.ndarray]], *, x_label: str, name: str, bins: int = 40) -> Markup:
    """Distributions on [0, 1], each as shares of its own group, on a logarithmic scale.

    Args:
        groups: label, colour and values of each group.
        x_label: what is on the horizontal axis.
        name: unique on the page.
        bins: number of equal bins.
    """
    edges = np.linspace(0, 1, bins + 1)
    with _axes(name) as (axes, done):
        for label, colour, values in groups:
            if len(values):
                shares = np.histogram(values, edges)[0] / len(values)
                axes.stairs(shares, edges, color=COLOURS[colour], fill=True, alpha=0.18, linewidth=0)
                axes.stairs(shares, edges, color=COLOURS[colour], linewidth=1.4, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.yaxis.set_minor_formatter(lambda share, _: "")
        _limits(axes, (0, 1), None)
        axes.set(xlabel=x_label, ylabel="Share of the group")
        _legend(axes, len(groups))
    return done[0]


def forest_chart(spans: Sequence[Span], *, x_label: str, name: str, margin: float | None = None, zero: bool = False) -> Markup:
    """Intervals under one another.

    Args:
        spans: the intervals, the first on top.
        x_label: what is on the horizontal axis.
        name: unique on the page.
        margin: position of a bound to draw, such as a gate's.
        zero: draw a line at 0.
    """
    with _axes(name, height=0.75 + 0.3 * len(spans)) as (axes, done):
        if zero:
            axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        if margin is not None:
            axes.axvline(margin, color=COLOURS["bad"], linewidth=1.2, linestyle=(0, (4, 2)))
            axes.annotate(
                f"margin {margin + 0:g}",
                (margin, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=COLOURS["bad"],
            )
        for row, span in enumerate(spans):
            axes.plot([span.low, span.high], [row, row], color=COLOURS[span.tone], linewidth=3, solid_capstyle="round")
            axes.plot(span.value, row, marker="o", markersize=7, color=COLOURS[span.tone], markeredgewidth=0)
        axes.set_yticks(range(len(spans)), [span.label for span in spans])
        axes.set_ylim(len(spans) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
    return done[0]


def _limits(axes: "Axes", x_range: tuple[float, float] | None, y_range: tuple[float, float] | None) -> None:
    for setter, bounds in ((axes.set_xlim, x_range), (axes.set_ylim, y_range)):
        if bounds is not None:
            # A curve along the edge keeps its full width.
            slack = 0.012 * (bounds[1] - bounds[0])
            setter(bounds[0] - slack, bounds[1] + slack)


def _legend(axes: "Axes", entries: int) -> None:
    if entries:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2, handlelength=1.4)


@contextmanager
def _axes(name: str, height: float = _HEIGHT) -> Iterator[tuple["Axes", list[Markup]]]:
    """Yields axes to draw on and a list that holds the finished SVG afterwards."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        done: list[Markup] = []
        yield axes, done
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        done.append(_inline(buffer.getvalue(), name))


def _style(name: str) -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": COLOURS["grid"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelsize": 9,
        "grid.color": COLOURS["grid"],
        "grid.linewidth": 0.7,
        "xtick.color": COLOURS["grid"],
        "ytick.color": COLOURS["grid"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.labelcolor": COLOURS["ink"],
        "lines.linewidth": 1.8,
        "text.color": COLOURS["ink"],
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
    }


def _inline(svg: str, name: str) -> Markup:
    """The drawing as an element of a page: no prolog, no metadata, identifiers of its own, colours from the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    label = Markup.escape(name)
    body = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}">', body, count=1)
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for variable, colour in COLOURS.items():
        body = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: var(--{variable}, {colour})", body)
    body = re.sub(r"font-family: [^;\"]*(; )?|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    return Markup(body)  # noqa: S704 - Matplotlib has escaped every text in it
