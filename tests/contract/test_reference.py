"""docs/reference is what the code says of itself: commands, settings, views, metrics, routes."""

import re
import tomllib
from typing import Final

import pytest

from accounting.feed.outbox import EVENT_TYPES
from accounting.ops.doctor.postgres_server import MIN_VERSION
from accounting.ops.doctor.redis_server import MIN_VERSIONS
from tests.support.books import Books
from tests.support.reference import DIRECTORY, PAGES, page_text

PROJECT: Final = tomllib.loads((DIRECTORY.parents[1] / "pyproject.toml").read_text())["project"]
OLDEST_PYTHON: Final = PROJECT["requires-python"].removeprefix(">=").split(".")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_the_code_says(books: Books, page: str) -> None:
    """When it fails: `make reference`."""
    assert (DIRECTORY / page).read_text() == page_text(page, books)


def test_the_page_of_support_has_the_versions_that_are_needed() -> None:
    page = (DIRECTORY / "support.md").read_text()
    needed = {**MIN_VERSIONS, "PostgreSQL": (MIN_VERSION // 10_000,), "Python": OLDEST_PYTHON}
    for server, version in needed.items():
        assert f"\n| {server} | {'.'.join(map(str, version))} or newer" in page, server


def test_the_billing_worker_has_every_event_of_the_feed() -> None:
    page = (DIRECTORY.parent / "billing-worker.md").read_text()
    cells = re.findall(r"^\| ((?:`[a-z]+\.[a-z]+`(?:, )?)+) \|", page, re.MULTILINE)
    assert sorted(re.findall(r"[a-z]+\.[a-z]+", " ".join(cells))) == sorted(EVENT_TYPES)
