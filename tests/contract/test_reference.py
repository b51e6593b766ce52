"""docs/reference is what the code says of itself: commands, settings, views, metrics, routes."""

import re

import pytest

from accounting.feed.outbox import EVENT_TYPES
from tests.support.books import Books
from tests.support.reference import DIRECTORY, PAGES, page_text


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_the_code_says(books: Books, page: str) -> None:
    """When it fails: `make reference`."""
    assert (DIRECTORY / page).read_text() == page_text(page, books)


def test_the_billing_worker_has_every_event_of_the_feed() -> None:
    page = (DIRECTORY.parent / "billing-worker.md").read_text()
    cells = re.findall(r"^\| ((?:`[a-z]+\.[a-z]+`(?:, )?)+) \|", page, re.MULTILINE)
    assert sorted(re.findall(r"[a-z]+\.[a-z]+", " ".join(cells))) == sorted(EVENT_TYPES)
