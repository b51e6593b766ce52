"""Servers of the API: on the sample books, which the tests only read, and on books of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_site import Site, serving
from tests.support.books import Books
from tests.support.sample_books import open_sample_books
from tests.support.servers import PostgresServer


@pytest.fixture(scope="session")
def sample_site(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory: Path = tmp_path_factory.mktemp("site")
    with open_sample_books(postgres_server, directory) as books, serving(books) as site:
        yield site


@pytest.fixture
def site(shared_books: Books) -> Iterator[Site]:
    """A server of empty books, which the test fills."""
    with serving(shared_books) as site:
        yield site


@pytest.fixture
def feed_site(books: Books) -> Iterator[Site]:
    """A server of empty books of its own: nothing removes an event from a feed."""
    with serving(books) as site:
        yield site
