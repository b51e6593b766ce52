"""Every page and anchor of the documentation that a file of this project cites exists.

An anchor is an ``<a id="...">`` or a heading. Pages are cited by their path from the root of the
project anywhere, and by relative links in Markdown files.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
GENERATED: Final = {"__pycache__", "build", "dist"}
HIDDEN_SOURCES: Final = {".ci"}

# A dot after an anchor ends a sentence and does not belong to the anchor.
_ANCHOR: Final = r"(?:#(?P<anchor>[\w-]+(?:\.[\w-]+)*))?"
CITATION: Final = re.compile(r"(?<![\w/.-])(?P<page>docs/[\w-]+(?:/[\w-]+)*\.md)" + _ANCHOR)
LINK: Final = re.compile(r"\]\((?!\w+:)(?P<page>[^()\s#]*)" + _ANCHOR + r"\)")
EXPLICIT_ANCHOR: Final = re.compile(r'<a id="([^"]+)">')
HEADING: Final = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Split so that this file does not match.
UNAVAILABLE: Final = re.compile(r"\b(?:COT" + r"URN|DES" + r"IGN)\b")


class Reference(NamedTuple):
    """A page of the documentation that a file cites; ``anchor`` is None for the whole page."""

    cited_in: str
    page: Path
    anchor: str | None


def text_files() -> list[Path]:
    """Return the files of the project that can be read as text."""
    return [path for path in _files_below(ROOT) if _text(path) is not None]


def _files_below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name in GENERATED or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            if not path.name.startswith(".") or path.name in HIDDEN_SOURCES:
                yield from _files_below(path)
        elif not path.name.startswith(".") and path.is_file():
            yield path


@cache
def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # recordings of arbitrary bytes
        return None


def references() -> Iterator[Reference]:
    for path in text_files():
        text = _text(path) or ""
        cited_in = str(path.relative_to(ROOT))
        for match in CITATION.finditer(text):
            yield Reference(cited_in, ROOT / match["page"], match["anchor"])
        if path.suffix == ".md":
            for match in LINK.finditer(FENCED.sub("", text)):
                page = (path.parent / match["page"]).resolve() if match["page"] else path
                yield Reference(cited_in, page, match["anchor"])


def heading_slug(heading: str) -> str:
    """Return the anchor that GitHub and GitLab give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    slugs = {heading_slug(heading) for heading in HEADING.findall(text)}
    return frozenset(slugs.union(EXPLICIT_ANCHOR.findall(text)))


def test_every_cited_page_and_anchor_exists() -> None:
    missing = [
        f"{cited_in}: {page.relative_to(ROOT)}{'' if anchor is None else f'#{anchor}'}"
        for cited_in, page, anchor in references()
        if not page.exists() or (anchor is not None and anchor not in anchors(page))
    ]
    assert missing == []


def test_the_patterns_find_citations() -> None:
    """Otherwise the test above would pass when the patterns match nothing."""
    found = {(page.name, anchor) for _, page, anchor in references()}
    assert {
        ("coturn.md", "ids-restart"),
        ("session-rules.md", "user-id"),
        ("operations.md", None),
    } <= found


def test_an_explicit_anchor_is_unique_in_its_page() -> None:
    for page in ROOT.glob("docs/**/*.md"):
        counts = Counter(EXPLICIT_ANCHOR.findall(page.read_text(encoding="utf-8")))
        assert [anchor for anchor, count in counts.items() if count > 1] == [], page


@pytest.mark.parametrize(
    ("text", "page", "anchor"),
    [
        ("(docs/coturn.md#ids-restart).", "docs/coturn.md", "ids-restart"),
        ("see docs/coturn.md#peer-sentb-4.11.", "docs/coturn.md", "peer-sentb-4.11"),
        ("in docs/session-rules.md.", "docs/session-rules.md", None),
    ],
)
def test_a_full_stop_after_a_citation_is_not_part_of_it(
    text: str, page: str, anchor: str | None
) -> None:
    match = CITATION.search(text)
    assert match is not None
    assert (match["page"], match["anchor"]) == (page, anchor)


def test_no_file_cites_a_document_that_is_not_in_the_project() -> None:
    citing = [
        str(path.relative_to(ROOT))
        for path in text_files()
        if UNAVAILABLE.search(_text(path) or "")
    ]
    assert citing == []
