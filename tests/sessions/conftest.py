"""Books in one database for all tests of settling, emptied before each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.db.engine import Engine, open_engine
from tests.support.books import WRITER, Books, cloned_database
from tests.support.servers import PostgresServer
from tests.support.truncate import empty_database


@pytest.fixture(scope="session")
def settling_database(postgres_server: PostgresServer) -> Iterator[str]:
    with cloned_database(postgres_server) as name:
        yield name


@pytest.fixture(scope="session")
def settling_engine(postgres_server: PostgresServer, settling_database: str) -> Iterator[Engine]:
    """One engine, so that each statement is compiled once."""
    engine = open_engine(postgres_server.url(WRITER, settling_database))
    yield engine
    engine.dispose()


@pytest.fixture
def books(
    postgres_server: PostgresServer,
    settling_database: str,
    settling_engine: Engine,
    tmp_path: Path,
) -> Iterator[Books]:
    """Empty books."""
    empty_database(postgres_server, settling_database)
    made = Books(postgres_server, settling_database, tmp_path)
    made.engine = settling_engine
    yield made
    made.close(with_engine=False)
