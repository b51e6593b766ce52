"""Books that the audit finds correct, cloned for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.audit.verify import verify
from tests.support.books import Books, cloned_database
from tests.support.corruptions import fill_books
from tests.support.servers import PostgresServer


@pytest.fixture(scope="session")
def right_database(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A template database with verified books."""
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path_factory.mktemp("right"))
        fill_books(books)
        assert list(verify(books.engine)) == []
        books.close()
        yield name


@pytest.fixture
def right_books(
    postgres_server: PostgresServer, right_database: str, tmp_path: Path
) -> Iterator[Books]:
    """Verified books with an empty spool."""
    with cloned_database(postgres_server, right_database) as name:
        books = Books(postgres_server, name, tmp_path)
        yield books
        books.close()
