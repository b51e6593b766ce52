"""Books for the tests of proofs: one database that each test empties, and one that each clones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.audit.verify import verify
from accounting.db.engine import Engine, open_engine
from tests.support.books import WRITER, Books, cloned_database
from tests.support.corruptions import fill_books
from tests.support.scenario_player import ScenarioPlayer
from tests.support.servers import PostgresServer


@pytest.fixture(scope="session")
def proof_database(postgres_server: PostgresServer) -> Iterator[str]:
    with cloned_database(postgres_server) as name:
        yield name


@pytest.fixture(scope="session")
def proof_engine(postgres_server: PostgresServer, proof_database: str) -> Iterator[Engine]:
    """One engine, so that each statement is compiled once."""
    engine = open_engine(postgres_server.url(WRITER, proof_database))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def ledger(
    postgres_server: PostgresServer, proof_database: str, proof_engine: Engine
) -> ScenarioPlayer:
    return ScenarioPlayer(postgres_server, proof_database, proof_engine)


@pytest.fixture(scope="session")
def right_database(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Filled, accounted and proved; nobody is connected to it."""
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
    """Books that are right, with nothing in their spool."""
    with cloned_database(postgres_server, right_database) as name:
        books = Books(postgres_server, name, tmp_path)
        yield books
        books.close()
