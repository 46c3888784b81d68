from typing import NamedTuple

import pytest

from modelyard.components.interface import component
from modelyard.scripts import compile_all, documentation
from tests.scripts.tiny_pipelines import ALL, say


@component("train")
def careless(known: str, forgotten: str, choice: str = "a|b") -> NamedTuple("Outputs", [("said", str), ("unsaid", int)]):
    """Leaves things out.

    Args:
        known: A text.
        choice: One of two
            words.
        invented: Not there.

    Returns:
        said: A text.
    """
    return (known, 0)


@component("train")
def renamed(version: str) -> NamedTuple("Outputs", [("version", str)]):
    """Gives back another one.

    Args:
        version: The one before.

    Returns:
        version: The one after.
    """
    return (version,)


def test_an_output_that_is_called_as_an_input_is_described_for_itself():
    assert documentation.undocumented("renamed", renamed) == []
    page = documentation.component_page("speaking", "renamed", renamed)
    assert "| `version` | text | required | The one before. |" in page
    assert "| `version` | text | The one after. |" in page


def test_a_components_page_says_everything_a_user_needs():
    page = documentation.component_page("speaking", "say", say)
    assert "# say\n\nSays a text.\n" in page
    assert "Image `ghcr.io/modelyard/train`" in page
    assert "| `text` | text | required | What to say. |" in page
    assert "| `count` | whole number | `1` | How often. |" in page
    assert "| `note` | Artifact | The text as a file. |" in page
    assert "| `words` | whole number | How many words that was. |" in page
    assert "from modelyard.components.speaking.component import say\n\ntask = say(text=…)" in page
    assert "$ modelyard run compiled/components/say.yaml -p text=…" in page
    # Outputs are no inputs.
    assert "## Inputs" not in page


def test_a_pipelines_page_lists_its_parameters_and_steps():
    page = documentation.pipeline_page("speech", ALL["speech"])
    assert "Its steps: `say`." in page
    assert '| `options` | object | `{"volume": 3}` | An object. |' in page
    assert "| `place_uri` | text | empty | A path. |" in page
    assert "| `Output` | text | What was said. |" in page
    assert "$ modelyard run speech -p text=…" in page


def test_what_a_docstring_leaves_out_or_invents_is_named():
    assert documentation.undocumented("careless", careless) == [
        "careless: forgotten is not described",
        "careless: unsaid is not described",
        "careless: invented is described, but it does not exist",
    ]
    with pytest.raises(documentation.Undocumented, match="careless: forgotten is not described"):
        documentation.pages({"speaking": {"careless": careless}}, {})


def test_a_description_of_several_lines_or_with_a_bar_stays_in_its_cell():
    page = documentation.component_page("speaking", "careless", careless)
    assert "| `choice` | text | `a\\|b` | One of two words. |" in page


def test_a_component_without_a_summary_is_named():
    @component("train")
    def silent():
        pass

    assert documentation.undocumented("silent", silent) == ["silent: it lacks a summary"]


def test_the_checkouts_pages_are_what_the_sources_say():
    root = compile_all.checkout_folder().parent
    wanted = documentation.pages(compile_all.components(), compile_all.pipelines())
    assert {name for name, text in wanted.items() if documentation._text(root / name) != text} == set()
    assert {path.relative_to(root).as_posix() for path in documentation._written_pages(root)} == set(wanted)
