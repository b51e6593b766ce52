"""Books in one database for all tests of settling, emptied before each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.books import Books, cloned
from tests.servers import PostgresServer
from tests.settling.emptied import empty


@pytest.fixture(scope="session")
def settling_database(postgres_server: PostgresServer) -> Iterator[str]:
    with cloned(postgres_server) as name:
        yield name


@pytest.fixture
def books(
    postgres_server: PostgresServer, settling_database: str, tmp_path: Path
) -> Iterator[Books]:
    """Empty books."""
    empty(postgres_server, settling_database)
    made = Books(postgres_server, settling_database, tmp_path)
    yield made
    made.close()
