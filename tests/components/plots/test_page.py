import pytest
from markupsafe import Markup

from modelyard.components.plots.page import Banner, Cell, Facts, Figures, Notes, Section, Table, render_page
from tests.components.evaluation.pages import assert_self_contained

EVIL = '"><script>alert(1)</script><img src=x onerror=y>'


def _page(text: str) -> str:
    blocks = [
        Table((text, "n"), [[Cell(text, text, "good"), text], [Cell(text, tone="bad", badge=True), text]], frozenset({"n"})),
        Facts([(text, text)]),
        Figures([(text, Markup("<svg></svg>"), text)]),
        Notes([text], "warn"),
    ]
    section = Section(text, blocks, intro=text)
    return render_page(text, [section], kicker=text, subtitle=text, banner=Banner(text, "bad", text, [text]))


def test_every_text_is_escaped_and_only_drawings_go_in_as_they_are():
    page = assert_self_contained(_page(EVIL))

    assert page.tags.count("svg") == 1
    assert page.texts["h1"] == [EVIL]
    assert page.texts["h2"] == [EVIL]
    assert page.texts["h3"] == [EVIL]
    assert EVIL in page.texts["dd"]
    assert EVIL in page.texts["td"]


def test_numbers_are_aligned_and_tones_reach_their_cells():
    page = assert_self_contained(_page("a"))
    classes = [value.split() for tag, name, value in page.attributes if name == "class" and tag == "td"]

    assert ["good"] in classes
    assert ["number"] in classes
    assert ["badge", "bad"] in [value.split() for value in page.values("class")]


def test_a_page_suits_a_phone_a_dark_screen_and_needs_no_banner():
    text = render_page("Title", [])

    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "banner" not in assert_self_contained(text).values("class")


@pytest.mark.parametrize("title", ["Übergröße", "模型", "a" * 300])
def test_any_title_can_be_shown(title):
    assert assert_self_contained(render_page(title, [])).texts["title"] == [title]
