import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.components.plots.charts import (
    COLOURS,
    Line,
    Span,
    forest_chart,
    line_chart,
    reliability_chart,
    share_histogram,
    thin,
)

X = np.linspace(0, 1, 50)


def _all_charts(label: str = "Model") -> list[str]:
    line = Line(label, X, X**2, mark=(0.5, 0.25))
    bins = (np.array([0.1, 0.9]), np.array([0.2, 0.8]), np.array([[0.1, 0.3], [0.6, 1.0]]))
    return [
        line_chart([line, Line("Other", X, X, "second", dashed=True)], x_label="x", y_label="y", name="lines", diagonal=True),
        reliability_chart([(label, "first", *bins)], name="calibration"),
        share_histogram([(label, "muted", X), ("None", "bad", np.empty(0))], x_label=label, name="scores"),
        forest_chart([Span(label, 0.1, 0.0, 0.2, "good")], x_label="difference", name="forest", margin=-0.02, zero=True),
    ]


def test_equal_data_gives_equal_drawings():
    assert _all_charts() == _all_charts()


@pytest.mark.parametrize("drawing", _all_charts())
def test_a_drawing_scales_keeps_text_and_takes_its_colours_from_the_page(drawing):
    assert drawing.startswith("<svg viewBox=")
    assert "<text" in drawing
    assert "http" not in drawing
    assert "<metadata" not in drawing
    bare = re.sub(r"var\(--[a-z]+, #[0-9a-f]{6}\)", "", drawing)
    assert not [colour for colour in COLOURS.values() if colour in bare]
    assert "font-family" not in drawing


def test_labels_from_users_stay_text():
    for drawing in _all_charts('<b>"$x_1$" & co</b>'):
        assert "<b>" not in drawing
    assert "$x_1$" in _all_charts("$x_1$")[0]


def test_drawings_of_one_page_have_identifiers_of_their_own():
    first, second = (
        set(re.findall(r'id="([^"]+)"', line_chart([Line("a", X, X)], x_label="x", y_label="y", name=name)))
        for name in ("one", "two")
    )
    assert first
    assert not first & second


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 500), elements=st.floats(0, 1)), st.integers(2, 40))
def test_thinning_keeps_both_ends_the_order_and_the_limit(steps, limit):
    x = np.cumsum(steps)
    kept = thin(x, x**2, limit)

    assert len(kept) <= max(limit, 2)
    assert kept[0] == 0
    assert kept[-1] == len(x) - 1
    assert (np.diff(kept) > 0).all()


def test_thinning_keeps_the_shape_where_points_crowd():
    x = np.concatenate([np.zeros(5000), np.linspace(0, 1, 10)])
    y = np.concatenate([np.linspace(0, 1, 5000), np.ones(10)])
    kept = thin(x, y, 100)

    assert np.abs(np.diff(y[kept])).max() < 0.05


def test_importing_the_module_does_not_load_matplotlib():
    import subprocess
    import sys

    code = "import sys, modelyard.components.plots.charts; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
