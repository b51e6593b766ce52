"""Sample books with tokens of each kind, and a server that asks for a log-in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from accounting.web.access.tokens import create_token
from tests.support.access_site import SetClock, Site
from tests.support.books import WRITER, Books
from tests.support.sample_books import open_sample_books
from tests.support.servers import PostgresServer
from tests.support.web_server import WebServer, serving

SCOPES: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "realm": {"realm": "example.org"},
    "user": {"realm": "example.org", "user": "alice"},
}


@pytest.fixture(scope="session")
def access_books(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    """Read only, but for tokens."""
    directory: Path = tmp_path_factory.mktemp("access")
    with open_sample_books(postgres_server, directory) as books:
        yield books


@pytest.fixture(scope="session")
def site(access_books: Books) -> Iterator[Site]:
    """The login is the writer's, which could do more than the server may."""
    tokens = {
        kind: create_token(access_books.engine, days=90, **scope)[0]
        for kind, scope in SCOPES.items()
    }
    clock = SetClock()
    with serving(access_books.url(WRITER), log_in=True, now=clock) as web:
        yield Site(books=access_books, web=web, tokens=tokens, clock=clock)


@pytest.fixture(scope="session")
def open_web(access_books: Books) -> Iterator[WebServer]:
    """A server on loopback that asks for no log-in."""
    with serving(access_books.url(WRITER)) as web:
        yield web
