"""Books in one database for all tests of proofs; each test begins with them empty."""

from collections.abc import Iterator

import pytest

from accounting.store.database import Engine, open_engine
from tests.books import WRITER, cloned
from tests.servers import PostgresServer
from tests.settling.ledger import Ledger


@pytest.fixture(scope="session")
def proof_database(postgres_server: PostgresServer) -> Iterator[str]:
    with cloned(postgres_server) as name:
        yield name


@pytest.fixture(scope="session")
def proof_engine(postgres_server: PostgresServer, proof_database: str) -> Iterator[Engine]:
    """One engine, so that each statement is compiled once."""
    engine = open_engine(postgres_server.url(WRITER, proof_database))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def ledger(postgres_server: PostgresServer, proof_database: str, proof_engine: Engine) -> Ledger:
    return Ledger(postgres_server, proof_database, proof_engine)
