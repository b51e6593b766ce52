"""Books that an older version kept go on where they stood when their database is upgraded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.sql import SQL, Identifier
from sqlalchemy import text

from accounting.audit.verify import verify
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.db.schema import metadata
from tests.support.books import Books
from tests.support.coturn_messages import Teller, account
from tests.support.servers import PostgresServer

HOUR: Final = 3600
MIGRATIONS: Final = Path(__file__).parents[2] / "migrations"
BEFORE: Final = "0012"
"""The last revision at which all hours of sessions, and whole days and months, stood in tables."""
STOOD_IN: Final = {
    "session_hours": "session_usage",
    "user_days": "user_usage_daily",
    "user_months": "user_usage_monthly",
}
"""What shows now what those tables held then."""
COLUMNS: Final = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'accounting'::regnamespace AND c.relkind IN ('r', 'p')
    AND NOT c.relispartition AND c.relname NOT IN ('alembic_version', 'feed', 'feed_outbox')
GROUP BY c.relname
"""


@pytest.fixture
def older(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of the older version."""
    name = "books_before"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    engine = open_engine(postgres_server.url(database=name))
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA accounting AUTHORIZATION turn_accounting_owner"))
        connection.execute(text("CREATE SCHEMA reporting AUTHORIZATION turn_accounting_owner"))
        connection.execute(text("SET LOCAL ROLE turn_accounting_owner"))
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes.update(connection=connection, metadata=metadata)
        command.upgrade(config, BEFORE)
    engine.dispose()
    yield name
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def take_back(books: Books, older: str) -> None:
    """Copy the books into a database of the older version, as that version had them."""
    days = books.query("SELECT DISTINCT received_at::date AS day FROM accounting.reports")
    shown = {table: view for view, table in STOOD_IN.items()}
    with (
        psycopg.connect(books.url()) as now,
        psycopg.connect(books.server.url(database=older)) as then,
    ):
        for row in days:
            then.execute("SELECT accounting.ensure_report_partition(%s)", [row["day"]])
        for table, names in then.execute(COLUMNS).fetchall():
            columns = SQL(", ").join(map(Identifier, names))
            then.execute(SQL("DELETE FROM accounting.{}").format(Identifier(table)))
            told = SQL("COPY (SELECT {} FROM accounting.{}) TO STDOUT").format(
                columns, Identifier(str(shown.get(table, table)))
            )
            taken = SQL("COPY accounting.{} ({}) FROM STDIN").format(Identifier(table), columns)
            with now.cursor().copy(told) as source, then.cursor().copy(taken) as target:
                for piece in source:
                    target.write(piece)


def test_books_of_an_older_version_go_on_with_marks_waiting_and_sessions_alive(
    books: Books, older: str
) -> None:
    alice, bob = Teller(books), Teller(books, user="bob", allocation=2)
    eve = Teller(books, user="eve", allocation=3)
    gone = Teller(books, user="carol", allocation=4)
    gone.new(0)
    bob.new(0, 4 * HOUR)
    eve.interim(5, 1, 7, 0, 0)  # nothing vouches for her yet
    gone.interim(10, 1, 10, 0, 0)
    account(books, 20)
    gone.interim(2000, 1, 20, 0, 0)  # in limbo: carol seems to have expired
    alice.new(HOUR + 1, 4 * HOUR)
    alice.interim(HOUR + 5, 1, 100, 0, 0)
    bob.interim(HOUR + 6, 1, 200, 0, 0)
    books.until(HOUR + 7)
    books.load()
    books.settle()
    take_back(books, older)
    books.close()

    engine = open_engine(books.server.url(database=older))
    migrations.upgrade(engine)
    engine.dispose()
    books = Books(books.server, older, books.directory)
    alice.books = bob.books = eve.books = gone.books = books
    try:
        waiting = books.query("SELECT count(*) AS marks FROM accounting.touched_hours")
        assert waiting[0]["marks"] > 0
        account(books, HOUR + 8)
        gone.refreshed(HOUR + 9)  # carol lived, and all of it was hers
        eve.refreshed(HOUR + 9)
        alice.interim(HOUR + 10, 1, 1000, 0, 0)
        account(books, HOUR + 11)
        alice.interim(2 * HOUR + 1, 1, 2000, 0, 0)
        bob.close(2 * HOUR + 2, (2, 250, 0, 0), (0, 0, 0, 0))
        account(books, 2 * HOUR + 3)
        months = books.rows("user_usage_monthly", "user_id", "received_bytes")
        used = {row["user_id"]: row["received_bytes"] for row in months}
        assert used == {"alice": 3100, "bob": 250, "carol": 30, "eve": 7}
        assert books.rows("unattributed_usage") == []
        assert list(verify(books.engine)) == []
    finally:
        books.close()
