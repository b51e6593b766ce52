"""Every transaction has the settings that the package relies on, through a pooler too."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import text

from accounting.billing.close_period import close_period
from accounting.db import migrations
from accounting.db.connection_settings import settings_statement
from accounting.db.engine import Engine, lost_connections, open_engine, psycopg_connection
from accounting.db.revisions import head_revision
from accounting.errors import ConnectionLost, NotYet
from accounting.feed.number_feed import number_feed
from accounting.feed.reader import CursorMove, FeedReader
from accounting.ops.doctor import Level
from accounting.ops.doctor.postgres_facts import read_postgres_facts
from accounting.ops.doctor.postgres_server import check_postgres
from accounting.reporting import view_query
from tests.support.books import (
    READER,
    WRITER,
    Books,
    channel,
    cloned_database,
    install_settable_clock,
    status_payload,
)
from tests.support.command import turn_accounting
from tests.support.pgbouncer import run_pgbouncer
from tests.support.postgres_settings import SettingValue, awkward_settings, set_for_database
from tests.support.servers import PostgresServer
from tests.support.settings_probe import run_and_read

AWKWARD: Final = (
    SettingValue("DateStyle", "German, DMY"),
    SettingValue("IntervalStyle", "sql_standard"),
    SettingValue("TimeZone", "Asia/Kolkata"),
    SettingValue("client_encoding", "LATIN1"),
    SettingValue("default_transaction_isolation", "serializable"),
    SettingValue("search_path", "hostile, pg_catalog"),
    SettingValue("standard_conforming_strings", "off"),
    SettingValue("statement_timeout", "200ms"),
)


def set_for_books(books: Books, settings: Sequence[SettingValue]) -> None:
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        accepted = set_for_database(connection, books.name, settings)
    assert accepted == list(settings)
    books.disconnect()


def applied_settings(engine: Engine) -> dict[str, str]:
    """The settings in force in a transaction, of those that the package applies."""
    with engine.begin() as connection:
        statement = settings_statement(psycopg_connection(connection))
        assert len(setting_names(statement)) > 20
        return {
            name: connection.execute(
                text("SELECT current_setting(:name)"), {"name": name}
            ).scalar_one()
            for name in [*setting_names(statement), "transaction_isolation"]
        }


def setting_names(statement: str) -> list[str]:
    return re.findall(r"^SET LOCAL (\w+) =", statement, re.MULTILINE)


def test_a_transaction_has_its_settings_whatever_the_database_has(books: Books) -> None:
    expected = applied_settings(books.engine)
    with psycopg.connect(books.url()) as connection:
        awkward = [
            values[0]
            for values in awkward_settings(connection)
            if values and values[0].name != "quote_all_identifiers"  # shows a path in other letters
        ]
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        set_for_database(connection, books.name, awkward)
    engine = open_engine(books.url(WRITER))
    try:
        assert applied_settings(engine) == expected
        with engine.connect() as connection:
            repeatable = connection.execution_options(isolation_level="REPEATABLE READ")
            assert repeatable.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert applied_settings(engine) == expected
    finally:
        engine.dispose()


def test_a_transaction_can_lock_before_its_snapshot(books: Books) -> None:
    """SET takes no snapshot: what another commits before the lock is granted is visible."""
    with books.engine.connect() as pooled:
        connection = pooled.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("LOCK TABLE accounting.job_runs IN ACCESS SHARE MODE"))
        with psycopg.connect(books.url()) as other:
            other.execute("INSERT INTO accounting.job_runs (job) VALUES ('test')")
        assert connection.scalar(text("SELECT count(*) FROM accounting.job_runs")) == 1


def test_settings_of_a_login_and_of_the_environment_change_nothing(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = applied_settings(books.engine)
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        for name, value in AWKWARD:
            if name == "search_path":
                continue
            connection.execute(
                SQL("ALTER ROLE {} IN DATABASE {} SET {} TO {}").format(
                    Identifier(WRITER), Identifier(books.name), Identifier(name), value
                )
            )
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=7s")
    monkeypatch.setenv("PGTZ", "Asia/Kolkata")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    engine = open_engine(books.url(WRITER))
    try:
        assert applied_settings(engine) == expected
    finally:
        engine.dispose()


def test_a_reader_of_the_feed_has_the_same_settings(books: Books) -> None:
    set_for_books(books, AWKWARD)
    for seconds, user in ((1, "alice"), (3, "\u042f\u0432\u0430")):
        books.receive(seconds, channel("status", user=user), status_payload("new"))
        books.receive(seconds + 1, channel("status", user=user), b"deleted")
    books.run_jobs()
    number_feed(books.engine)
    with FeedReader(books.url(READER)) as reader:
        assert reader.cursor("invoicer") == 0
        _, events, history = reader.read(0, 10)
        assert history is not None
        assert [event.payload["started_at"] for event in events] == [
            "2026-11-02T12:00:01.000000+00:00",
            "2026-11-02T12:00:03.000000+00:00",
        ]
        assert all(event.created_at.tzinfo is not None for event in events)
        assert reader.advance("invoicer", CursorMove(0, 2, 2, history), "worker")


def test_a_database_is_migrated_whatever_it_has_set(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with empty_database(postgres_server, "ENCODING 'UTF8'") as name:
        with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
            accepted = set_for_database(connection, name, AWKWARD)
        assert accepted == list(AWKWARD)
        engine = open_engine(postgres_server.url(database=name))
        try:
            migrations.upgrade(engine)
            with engine.begin() as connection:
                migrations.check_metadata(connection)
        finally:
            engine.dispose()
        install_settable_clock(postgres_server, name)
        books = Books(postgres_server, name, tmp_path)
        run_and_read(books)
        books.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_in_utf8_is_refused(
    postgres_server: PostgresServer, encoding: str
) -> None:
    with empty_database(postgres_server, f"ENCODING '{encoding}'") as name:
        ran = turn_accounting("db", "upgrade", database_url=postgres_server.url(database=name))
    assert ran.code == 1
    assert ran.error_line == (
        f"the database '{name}' has the encoding {encoding}, which can't store all usernames: "
        "make another one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
    )


@contextmanager
def empty_database(server: PostgresServer, options: str) -> Iterator[str]:
    name = "without_schema"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} {options} LOCALE_PROVIDER libc LOCALE 'C'"
            " TEMPLATE template0".encode()
        )
    try:
        yield name
    finally:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_every_trigger_fires_where_a_database_turns_triggers_off(books: Books) -> None:
    triggers = books.query(
        "SELECT tgname, tgenabled = 'A' AS is_always_enabled FROM pg_trigger"
        " WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE 'accounting.%'"
    )
    assert len(triggers) > 10
    assert [row["tgname"] for row in triggers if not row["is_always_enabled"]] == []


def test_a_partition_has_its_borders_whatever_its_caller_has_set(books: Books) -> None:
    """In the SQL style India's time is IST, which reads as Israel's."""
    with psycopg.connect(
        books.url(WRITER), options="-c datestyle=SQL,DMY -c timezone=Asia/Kolkata"
    ) as connection:
        connection.execute("SELECT accounting.ensure_report_partition('2026-12-03')")
    (row,) = books.query(
        "SELECT pg_get_expr(relpartbound, oid) AS bound FROM pg_class"
        " WHERE oid = 'accounting.reports_20261203'::regclass"
    )
    assert row["bound"] == (
        "FOR VALUES FROM ('2026-12-03 00:00:00+00') TO ('2026-12-04 00:00:00+00')"
    )


def test_what_a_period_waits_for_reads_the_same_whatever_the_caller_has_set(books: Books) -> None:
    books.start = datetime(2026, 10, 20, 12, tzinfo=UTC)
    books.receive(1, channel("status"), status_payload("new"))
    books.advance_clock(50 * 86_400)
    books.run_jobs()
    with pytest.raises(NotYet):
        close_period(books.engine, "example.org", date(2026, 11, 1))
    texts = []
    for options in ("-c datestyle=ISO", "-c datestyle=German"):
        with psycopg.connect(books.url(READER), options=options) as connection:
            query = "SELECT waits_for FROM reporting.periods ORDER BY period"
            texts.append(connection.execute(query).fetchall())
    assert texts[0] == texts[1]
    assert ("period 2026-10-01",) in texts[0]


def test_a_database_set_to_only_read_can_be_read_and_doctor_says_so(books: Books) -> None:
    books.receive(1, channel("status"), status_payload("new"))
    books.run_jobs()
    set_for_books(books, [SettingValue("default_transaction_read_only", "on")])
    assert len(books.reader.read_rows(view_query.view("sessions"))) == 1
    with pytest.raises(ConnectionLost):
        books.settle()
    head = head_revision()
    facts = read_postgres_facts(books.engine, head=head)
    findings = check_postgres(facts, head=head, disk_free_bytes=None)
    assert [finding.level for finding in findings if finding.check == "writable"] == [Level.ERROR]


def test_a_missing_table_is_known_in_every_language() -> None:
    """lc_messages translates the message and its quotation marks."""
    with pytest.raises(ConnectionLost), lost_connections():
        raise psycopg.errors.UndefinedTable(
            "Relation \u00bbaccounting.sources\u00ab existiert nicht"
        )
    with pytest.raises(psycopg.errors.UndefinedTable), lost_connections():
        raise psycopg.errors.UndefinedTable('relation "accounting.source_leases" does not exist')


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedTable('relation "accounting.realm_rules" does not exist'),
        psycopg.InternalError("received 2 results from command 'SAVEPOINT \"_pg3_1\"'"),
    ],
)
def test_a_loader_that_starts_while_the_database_is_restored_tries_again(
    error: psycopg.Error,
) -> None:
    """Found by `make chaos`: both were logged with a traceback."""
    with pytest.raises(ConnectionLost), lost_connections():
        raise error


def test_an_internal_error_of_postgres_is_no_lost_connection() -> None:
    with pytest.raises(psycopg.errors.InternalError_), lost_connections():
        raise psycopg.errors.InternalError_("tuple concurrently updated")


@pytest.mark.needs_pgbouncer
def test_the_books_are_the_same_through_a_pooler_which_keeps_no_setting(
    books: Books, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """A setting that one client leaves on a connection would be the next client's."""
    with cloned_database(postgres_server) as name:
        (tmp_path / "direct").mkdir()
        direct = Books(postgres_server, name, tmp_path / "direct")
        expected = run_and_read(direct)
        direct.close()
    set_for_books(books, AWKWARD)
    with run_pgbouncer(postgres_server, pool_size=6) as pooler:
        other = psycopg.connect(pooler.url(READER, books.name), autocommit=True)
        names = setting_names(settings_statement(other))
        query = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)"
        before = other.execute(query, [names]).fetchall()
        pooled = Books(pooler, books.name, tmp_path)
        outputs = run_and_read(pooled)
        pooled.close()
        assert {name for name in expected if outputs[name] != expected[name]} == set()
        assert other.execute(query, [names]).fetchall() == before
        other.close()


@pytest.mark.needs_pgbouncer
def test_a_server_that_ends_behind_a_pooler_while_rows_are_sent_is_one_lost_connection(
    books: Books, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by `make chaos`: a rollback failed too, which the pool logged with a traceback."""
    rows = [{"number": number} for number in range(5)]
    ends = text("SELECT pg_terminate_backend(pg_backend_pid()) WHERE :number = 3")
    with run_pgbouncer(postgres_server, pool_size=2) as pooler:
        engine = open_engine(pooler.url(WRITER, books.name))
        for _ in range(5):
            with pytest.raises(ConnectionLost), lost_connections(), engine.begin() as connection:
                connection.execute(ends, rows)
        engine.dispose()
    assert [
        record.message for record in caplog.records if record.name.startswith("sqlalchemy")
    ] == []
