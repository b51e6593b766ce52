"""Acquiring the lease of a source, also while the database is unavailable or read-only."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from accounting.capture.spool.spool import Spool
from accounting.db import migrations
from accounting.db.engine import Engine, open_engine
from accounting.errors import ConnectionLost, LeaseHeld
from accounting.ingest.source_lease import acquire_lease, lease_holder
from accounting.ops.lease_keeper import LeaseKeeper
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.servers import PostgresServer, wait_until


@contextmanager
def running_keeper(books: Books, engine: Engine) -> Iterator[LeaseKeeper]:
    """The lease of the spool, renewed often."""
    keeper = LeaseKeeper(engine, books.spool(), 0.2)
    with keeper.running():
        yield keeper


def execute(books: Books, statement: str) -> None:
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute(statement.encode())


def set_read_only(books: Books, *, read_only: bool) -> None:
    """Set the database's default, as an operator or a fail-over does, and cut all connections.

    The server terminates them: disposing of the pool would not close a connection in use.
    """
    setting = f"SET default_transaction_read_only = {'on' if read_only else 'off'}"
    with psycopg.connect(
        books.url(), autocommit=True, options="-c default_transaction_read_only=off"
    ) as connection:
        connection.execute(f"ALTER DATABASE {books.name} {setting}".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [books.name],
        )


def test_a_read_only_database_counts_as_a_lost_connection(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    books.load()
    books.receive(2, channel("status"), status_payload("refreshed"))
    set_read_only(books, read_only=True)
    for job in (books.load, books.settle, books.rollup):
        with pytest.raises(ConnectionLost):
            job()
    set_read_only(books, read_only=False)
    books.run_jobs()
    assert len(books.rows("sessions")) == 1


def test_the_lease_is_retried_until_the_database_is_writable(books: Books) -> None:
    set_read_only(books, read_only=True)
    with running_keeper(books, books.engine) as keeper:
        keeper.wait_for_first_answer(0.3)
        assert (keeper.other_holder, keeper.books_position) == ("", None)
        set_read_only(books, read_only=False)
        wait_until(lambda: keeper.books_position is not None)


def test_after_an_outage_an_expired_lease_is_left_to_its_holder_for_a_while(
    books: Books,
) -> None:
    """Also after a restore: what is not loaded, or not any more, is in the holder's spool."""
    engine = open_engine(books.url(), application_name="standby")
    lease_seconds = 2.0
    with Spool.open(books.directory / "standby.sqlite3", "default") as spool:
        acquire_lease(books.engine, books.spool(), lease_seconds)
        keeper = LeaseKeeper(engine, spool, lease_seconds)
        with keeper.running():
            wait_until(lambda: keeper.other_holder)
            set_read_only(books, read_only=True)
            wait_until(lambda: has_expired(books))
            set_read_only(books, read_only=False)
            # It asked, and its transaction is over.
            wait_until(lambda: standbys_statement(books).startswith("ROLLBACK"))
            acquire_lease(books.engine, books.spool(), lease_seconds)
            assert keeper.other_holder
            wait_until(lambda: not keeper.other_holder)  # the holder is gone, and says no more
    engine.dispose()


def test_a_holder_that_finds_the_lease_to_be_anothers_again_leaves_it_for_a_while(
    books: Books,
) -> None:
    """A restore by renaming takes no time: the keeper need not have seen the database away."""
    lease_seconds = 1.0
    engine = open_engine(books.url())
    with Spool.open(books.directory / "former.sqlite3", "default") as former:
        keeper = LeaseKeeper(engine, books.spool(), lease_seconds)
        with keeper.running():
            wait_until(lambda: keeper.books_position is not None)
            execute(
                books,
                "UPDATE accounting.source_leases SET holder ="  # noqa: S608
                f" '{lease_holder(former.path)}', renewed_at = renewed_at - interval '1 day',"
                " expires_at = expires_at - interval '1 day'",
            )
            wait_until(lambda: keeper.other_holder)
            wait_until(lambda: not keeper.other_holder)  # the holder is gone, and says no more
    engine.dispose()


def has_expired(books: Books) -> bool:
    (row,) = books.query(
        "SELECT expires_at < clock_timestamp() AS expired FROM accounting.source_leases"
    )
    return bool(row["expired"])


def standbys_statement(books: Books) -> str:
    """The last statement of the standby's session; '' while it has none, or works."""
    rows = books.query(
        "SELECT query FROM pg_stat_activity WHERE application_name = 'standby' AND state = 'idle'"
        " AND datname = current_database()"
    )
    return str(rows[0]["query"]) if rows else ""


def test_the_lease_waits_for_the_migration_and_capture_does_not(
    books: Books, postgres_server: PostgresServer
) -> None:
    name = f"{books.name}_bare"
    execute(books, f"CREATE DATABASE {name}")
    engine = open_engine(postgres_server.url(database=name))
    with running_keeper(books, engine) as keeper:
        keeper.wait_for_first_answer(0.3)
        assert keeper.other_holder == ""
        migrations.upgrade(engine)
        wait_until(lambda: keeper.books_position is not None)
    engine.dispose()
    execute(books, f"DROP DATABASE {name}")


def test_an_unexpected_error_of_the_lease_ends_the_collector(books: Books) -> None:
    """Otherwise it would go on without a lease, beside the collector that takes over."""
    execute(books, "ALTER TABLE accounting.source_leases RENAME holder TO gone")
    with running_keeper(books, books.engine) as keeper:
        keeper.wait_for_first_answer(20)
        with pytest.raises(ProgrammingError):
            _ = keeper.other_holder
        execute(books, "ALTER TABLE accounting.source_leases RENAME gone TO holder")


@pytest.mark.parametrize("where", ["between statements", "within its rows"])
def test_a_loader_that_hangs_in_its_transaction_does_not_prevent_a_takeover(
    books: Books, where: str
) -> None:
    """A stopped process or machine: its connection stays open."""
    books.receive(1, channel("status"), status_payload("new"))
    books.load()
    with psycopg.connect(books.url(WRITER)) as hanging, hanging.cursor() as cursor:
        cursor.execute("SELECT * FROM accounting.sources FOR UPDATE")
        if where == "within its rows":
            hanging.pgconn.send_query(b"COPY accounting.reports FROM STDIN (FORMAT binary)")
        with Spool.open(books.directory / "elsewhere.sqlite3", "default") as other:
            wait_until(lambda: can_acquire(books, other))
        with pytest.raises(psycopg.OperationalError):
            cursor.execute("SELECT 1")
        hanging.close()


def can_acquire(books: Books, spool: Spool) -> bool:
    try:
        acquire_lease(books.engine, spool, 0.3)
    except ConnectionLost:
        return False
    return True


def test_a_lease_of_a_clock_that_was_ahead_does_not_outlive_its_holder(books: Books) -> None:
    """The holder died, and then the clock of the database was set back."""
    with Spool.open(books.directory / "other.sqlite3", "default") as other:
        acquire_lease(books.engine, other, 60.0)
        with pytest.raises(LeaseHeld):
            acquire_lease(books.engine, books.spool(), 60.0)
        books.query(
            "UPDATE accounting.source_leases SET renewed_at = renewed_at + interval '32 days',"
            " expires_at = expires_at + interval '32 days' RETURNING holder"
        )
        acquire_lease(books.engine, books.spool(), 60.0)
        with pytest.raises(LeaseHeld):
            acquire_lease(books.engine, other, 60.0)


def test_a_source_shows_the_mode_that_was_asked_for_until_it_is_captured(books: Books) -> None:
    acquire_lease(books.engine, books.spool(), 5.0, mode="auto")
    assert [row["mode"] for row in books.rows("sources")] == ["auto"]
    books.receive(1, channel("status"), status_payload("new"))
    books.spool().set_mode("replication")
    books.load()
    assert [row["mode"] for row in books.rows("sources")] == ["replication"]
