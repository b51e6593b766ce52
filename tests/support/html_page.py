"""An HTML page as a browser without scripts has it: elements, texts, tables and links."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final

_INLINE: Final = frozenset({"a", "b", "bdi", "code", "data", "em", "i", "span", "sup", "time"})
_VOID: Final = frozenset({"meta", "link", "input", "br", "img", "hr"})


@dataclass(slots=True)
class Element:
    """An element; ``children``: elements and texts in order."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield "" if child.tag in _INLINE else " "
                yield from child._texts()

    def all(self, *tags: str) -> Iterator["Element"]:
        """The elements below with one of these tags, in order; every one without."""
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    yield child
                yield from child.all(*tags)

    def by_class(self, name: str) -> list["Element"]:
        return [each for each in self.all() if name in each.attributes.get("class", "").split()]

    def values(self) -> list[str]:
        """The exact values of the figures and times below."""
        names = {"data": "value", "time": "datetime"}
        return [each.attributes[names[each.tag]] for each in self.all(*names)]


class HtmlPage(Element):
    """The root of a page. Raises ValueError where its tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__("")
        parser = _Parser(self)
        parser.feed(text)
        parser.close()
        if len(parser.path) != 1:
            raise ValueError(f"not closed: {[each.tag for each in parser.path[1:]]}")

    def links(self) -> list[str]:
        """What the page refers to: pages, data and assets."""
        addresses = []
        for element in self.all("a", "link", "script"):
            addresses += [element.attributes.get(name, "") for name in ("href", "src")]
        return [address for address in addresses if address and not address.startswith("#")]

    def assets(self) -> list[str]:
        """What a browser loads with the page."""
        return [
            element.attributes.get("src") or element.attributes["href"]
            for element in self.all("link", "script")
        ]

    def rows(self, caption: str) -> Sequence[Element]:
        """The rows of a table's body."""
        return list(next(self.table(caption).all("tbody")).all("tr"))

    def table(self, caption: str) -> Element:
        """The table whose caption begins so."""
        for table in self.all("table"):
            if next(table.all("caption")).text.startswith(caption):
                return table
        raise ValueError(f"no table {caption!r}")

    def figure(self, label: str) -> Element:
        """The figure with this label."""
        for figure in self.by_class("figure"):
            if next(figure.all("dt")).text == label:
                return figure
        raise ValueError(f"no figure {label!r}")


class _Parser(HTMLParser):
    def __init__(self, root: Element) -> None:
        super().__init__()
        self.path = [root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.path[-1].children.append(element)
        if tag not in _VOID:
            self.path.append(element)

    def handle_endtag(self, tag: str) -> None:
        if self.path[-1].tag != tag:
            raise ValueError(f"</{tag}> in <{self.path[-1].tag}>")
        self.path.pop()

    def handle_data(self, data: str) -> None:
        self.path[-1].children.append(data)
