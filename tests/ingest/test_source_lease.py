"""A collector asks for its turn, whatever the database is like just now."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from accounting.capture.spool.spool import Spool
from accounting.db import migrations
from accounting.db.engine import Engine, open_engine
from accounting.errors import ConnectionLost
from accounting.ingest.source_lease import acquire_lease
from accounting.ops.lease_keeper import LeaseKeeper
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.servers import PostgresServer, wait_until


@contextmanager
def turn_kept(books: Books, engine: Engine) -> Iterator[LeaseKeeper]:
    """The turn of the books' collector, asked for often."""
    turn = LeaseKeeper(engine, books.spool(), 0.2)
    with turn.running():
        yield turn


def execute(books: Books, statement: str) -> None:
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute(statement.encode())


def let_only_read(books: Books, *, is_so: bool) -> None:
    """As an operator or a switch-over does; held by every new connection, and all are new then.

    Cut by the server: a pool that is disposed of here never closes what a thread has of it.
    """
    setting = f"SET default_transaction_read_only = {'on' if is_so else 'off'}"
    with psycopg.connect(
        books.url(), autocommit=True, options="-c default_transaction_read_only=off"
    ) as connection:
        connection.execute(f"ALTER DATABASE {books.name} {setting}".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [books.name],
        )


def test_a_database_that_only_reads_for_a_while_counts_as_away(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    books.load()
    books.receive(2, channel("status"), status_payload("refreshed"))
    let_only_read(books, is_so=True)
    for job in (books.load, books.settle, books.rollup):
        with pytest.raises(ConnectionLost):
            job()
    let_only_read(books, is_so=False)
    books.run_jobs()
    assert len(books.rows("sessions")) == 1


def test_a_turn_is_asked_for_until_the_database_can_tell(books: Books) -> None:
    let_only_read(books, is_so=True)
    with turn_kept(books, books.engine) as turn:
        turn.wait_for_first_answer(0.3)
        assert (turn.other_holder, turn.books_position) == ("", None)
        let_only_read(books, is_so=False)
        wait_until(lambda: turn.books_position is not None)


def test_a_turn_waits_for_a_migration_and_capture_does_not(
    books: Books, postgres_server: PostgresServer
) -> None:
    name = f"{books.name}_bare"
    execute(books, f"CREATE DATABASE {name}")
    engine = open_engine(postgres_server.url(database=name))
    with turn_kept(books, engine) as turn:
        turn.wait_for_first_answer(0.3)
        assert turn.other_holder == ""
        migrations.upgrade(engine)
        wait_until(lambda: turn.books_position is not None)
    engine.dispose()
    execute(books, f"DROP DATABASE {name}")


def test_what_ends_the_asking_ends_the_collector(books: Books) -> None:
    """It would go on without a turn, beside the one that takes over."""
    execute(books, "ALTER TABLE accounting.source_leases RENAME holder TO gone")
    with turn_kept(books, books.engine) as turn:
        turn.wait_for_first_answer(20)
        with pytest.raises(ProgrammingError):
            _ = turn.other_holder
        execute(books, "ALTER TABLE accounting.source_leases RENAME gone TO holder")


@pytest.mark.parametrize("where", ["between statements", "within its rows"])
def test_a_loader_that_hangs_in_its_transaction_keeps_nobody_from_taking_over(
    books: Books, where: str
) -> None:
    """As one does that is stopped, with its machine or alone: its connection lives on."""
    books.receive(1, channel("status"), status_payload("new"))
    books.load()
    with psycopg.connect(books.url(WRITER)) as hanging, hanging.cursor() as cursor:
        cursor.execute("SELECT * FROM accounting.sources FOR UPDATE")
        if where == "within its rows":
            hanging.pgconn.send_query(b"COPY accounting.reports FROM STDIN (FORMAT binary)")
        with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
            wait_until(lambda: takes_turn(books, other))
        with pytest.raises(psycopg.OperationalError):
            cursor.execute("SELECT 1")
        hanging.close()


def takes_turn(books: Books, spool: Spool) -> bool:
    try:
        acquire_lease(books.engine, spool, 0.3)
    except ConnectionLost:
        return False
    return True
