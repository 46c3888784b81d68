"""Reads a report as a browser would."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Texts by tag, all attributes, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use", "rect", "stop"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self._open:
            self.texts.setdefault(self._open[-1], []).append(data.strip())

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


def assert_self_contained(text: str) -> Page:
    """No script, nothing loaded, identifiers unique and all references answered within the page."""
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    assert "http" not in text
    assert "@import" not in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    for reference in page.values("href") + page.values("xlink:href"):
        assert reference.startswith("#")
        assert reference[1:] in identifiers
    return page
