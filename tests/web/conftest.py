"""The sample books, made once per worker; the tests of this directory only read them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.books import Books
from tests.support.sample_books import open_sample_books
from tests.support.servers import PostgresServer


@pytest.fixture(scope="session")
def sample_books(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    """Read only, but for tokens."""
    directory: Path = tmp_path_factory.mktemp("sample")
    with open_sample_books(postgres_server, directory) as books:
        yield books
