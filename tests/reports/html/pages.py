"""What tests of reports share: committed results, their sections, and a page as the elements of its HTML, in order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Source
from patchmerger.reports.parts.section import Section

RESULTS = Path(__file__).parents[3] / "results"

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Element:
    """An element, with its attributes, the text in it, and the elements in it."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, spaces as one."""
        return " ".join(" ".join([*self.texts, *(child.text for child in self.children)]).split())

    def find(self, tag: str, **attributes: str) -> list[Element]:
        """The elements in it by tag and attributes; ``class_`` is one of its classes."""
        found = []
        for child in self.children:
            given = {**child.attributes}
            classes = (given.get("class") or "").split()
            wanted = dict(attributes)
            fits = wanted.pop("class_", None) in (None, *classes)
            if child.tag == tag and fits and all(given.get(k.replace("_", "-")) == v for k, v in wanted.items()):
                found.append(child)
            found += child.find(tag, **attributes)
        return found


class Page(HTMLParser):
    """A page, which must be well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("page")
        self.stack = [self.root]
        self.feed(text)
        self.close()
        assert [element.tag for element in self.stack] == ["page"]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_endtag(self, tag):
        assert self.stack.pop().tag == tag

    def handle_data(self, data):
        self.stack[-1].texts.append(data)

    def find(self, tag, **attributes):
        """See :class:`Element`."""
        return self.root.find(tag, **attributes)

    @property
    def charts(self) -> dict[str, dict]:
        """The charts, as the page's script reads them."""
        scripts = self.find("script", id="charts")
        return json.loads(scripts[0].texts[0]) if scripts else {}


def results_of(name: str) -> dict[str, Any]:
    """Committed results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def section(results: dict[str, Any]) -> Section:
    """The section of results in a report."""
    found = section_of(Source(Path("runs/it"), results))
    assert found is not None
    return found
