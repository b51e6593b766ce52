"""The locks of the jobs: only the writer reaches them, and their holder is always known."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from accounting.billing.adjust import adjust
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.db.locks import find_holder, lock, require_lock, try_lock
from accounting.db.revisions import head_revision
from accounting.errors import LockHeld
from accounting.identities.erase import erase
from accounting.identities.realm_rules import set_rule
from accounting.ops.registry import JOBS
from accounting.sources.rename import rename_source
from accounting.sources.retire import reopen_source, retire_source
from accounting.sources.source_queries import lock_source
from tests.support.books import WRITER, Books, channel, status_payload, traffic_payload
from tests.support.command import turn_accounting
from tests.support.readers_locks import hold_readers_locks, views
from tests.support.servers import PostgresServer

ROOT: Final = Path(__file__).parents[2]
STRANGER: Final = "reports_reader"


@pytest.fixture
def stranger(postgres_server: PostgresServer, books: Books) -> Iterator[psycopg.Connection]:
    """A login with the role of the reader and nothing else, in an open transaction."""
    role = sql.Identifier(STRANGER)
    with psycopg.connect(postgres_server.url(), autocommit=True) as superuser:
        superuser.execute(
            sql.SQL("CREATE ROLE {} LOGIN IN ROLE turn_accounting_reader").format(role)
        )
        try:
            with psycopg.connect(books.url(STRANGER)) as connection:
                yield connection
        finally:
            superuser.execute(sql.SQL("DROP ROLE {}").format(role))


def receive_session(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(1, channel("traffic"), traffic_payload(1, 2, 3, 4))
    books.receive(2, channel("status"), status_payload("deleted"))
    books.advance_clock(5_000)


def test_a_reader_that_locks_all_it_can_stops_no_job(
    books: Books, stranger: psycopg.Connection
) -> None:
    receive_session(books)
    hold_readers_locks(stranger)
    assert books.load() == 3
    done = {name: job.run(books.engine) for name, job in JOBS.items()}
    assert (done["settle"], done["rollup"], done["partitions"], done["feed"]) == (0, 1, 7, 2)
    assert books.rows("user_usage_monthly", "received_bytes") == [{"received_bytes": 2}]
    assert turn_accounting("db", "upgrade", database_url=books.url()).code == 0


@pytest.mark.parametrize("mode", ["ROW SHARE", "SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"])
def test_a_reader_can_lock_views_only_for_reading(stranger: psycopg.Connection, mode: str) -> None:
    statement = sql.SQL("LOCK TABLE {} IN " + mode + " MODE")
    for view in views(stranger):
        with pytest.raises(InsufficientPrivilege), stranger.transaction():
            stranger.execute(statement.format(view))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT name FROM accounting.locks FOR UPDATE",
        "SELECT name FROM accounting.locks FOR KEY SHARE",
        "LOCK TABLE accounting.locks IN ACCESS SHARE MODE",
        "SELECT realm FROM reporting.sessions FOR UPDATE",
        "SELECT realm FROM reporting.sessions FOR KEY SHARE",
    ],
)
def test_a_reader_locks_no_row(stranger: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        stranger.execute(statement.encode())
    # A view of joins can't be locked by row at all.
    assert raised.value.sqlstate in {"42501", "0A000"}


def test_no_statement_takes_an_advisory_lock() -> None:
    """Any login can take the same one."""
    calls = re.compile(r"pg_(try_)?advisory_\w+\(")
    paths = [
        path
        for directory in ("accounting", "migrations", "benchmarks")
        for path in (ROOT / directory).rglob("*")
        if path.suffix in {".py", ".sql"}
    ]
    assert ROOT / "accounting" / "db" / "locks.py" in paths
    assert [str(path) for path in paths if calls.search(path.read_text())] == []


def test_one_session_has_a_lock_until_its_transaction_ends(books: Books) -> None:
    name = "rollup"
    with books.engine.connect() as one, books.engine.connect() as other:
        assert try_lock(one, name)
        one.commit()
        assert try_lock(one, name)
        assert try_lock(one, name)
        assert not try_lock(other, name)
        assert try_lock(other, "gaps")
        one.rollback()
        assert try_lock(other, name)
        with pytest.raises(KeyError):
            try_lock(one, "rolup")


def test_a_lock_leaves_no_dead_row(books: Books) -> None:
    before = books.query("SELECT ctid, name FROM accounting.locks ORDER BY name")
    for _ in range(3):
        with books.engine.begin() as connection:
            lock(connection, "rollup")
    assert books.query("SELECT ctid, name FROM accounting.locks ORDER BY name") == before


def test_a_lock_that_is_held_names_its_holder(books: Books) -> None:
    engine = open_engine(books.url(WRITER), application_name="the other scheduler")
    try:
        with engine.connect() as holder, books.engine.connect() as waiting:
            assert find_holder(waiting, "rollup") is None
            lock(holder, "rollup")
            found = find_holder(waiting, "rollup")
            assert found is not None
            pid = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            assert found[:3] == (pid, WRITER, "the other scheduler")
            expected = (
                rf"^the lock 'rollup' is held for \d+ s by the database session {pid} "
                rf"\(role {WRITER}, application 'the other scheduler'\)$"
            )
            with pytest.raises(LockHeld, match=expected):
                require_lock(waiting, "rollup")
            with pytest.raises(LockHeld, match=expected):
                lock(waiting, "rollup", wait_seconds=0.1)
            waiting.rollback()
            result = turn_accounting("job", "run", "rollup", database_url=books.url(WRITER))
            assert (result.code, result.out) == (3, "")
            assert re.search(r"job rollup can't run now: the lock 'rollup' is held", result.err)
            assert str(pid) in result.err
    finally:
        engine.dispose()


def test_a_login_that_may_not_see_the_holder_still_gets_its_name(
    postgres_server: PostgresServer, books: Books
) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as superuser:
        superuser.execute("CREATE ROLE other_service LOGIN IN ROLE turn_accounting_writer")
        try:
            engine = open_engine(books.url("other_service"))
            with books.engine.connect() as holder, engine.connect() as waiting:
                lock(holder, "rollup")
                found = find_holder(waiting, "rollup")
            engine.dispose()
        finally:
            superuser.execute("DROP ROLE other_service")
    assert found is not None
    assert (found.role, found.application) == (WRITER, "turn-accounting")


def test_a_holder_that_hangs_loses_its_session_and_the_lock(books: Books) -> None:
    with books.engine.connect() as hung, books.engine.connect() as other:
        assert try_lock(hung, "rollup", max_idle_seconds=0.05)
        lock(other, "rollup")
        hung.invalidate()


def test_adjusting_waits_for_the_roll_up(books: Books) -> None:
    """Both start at the same instants: their intervals are multiples of one another."""
    with books.engine.connect() as rollup:
        assert try_lock(rollup, "rollup", max_idle_seconds=0.05)
        assert adjust(books.engine) == 0
        rollup.invalidate()


def test_commands_that_wait_for_a_hung_loader_name_its_session(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.db.locks.MAX_WAIT_SECONDS", 0.05)
    books.receive(0, channel("status"), status_payload("new"))
    books.run_jobs()
    engine = books.engine
    with engine.connect() as hung:
        lock_source(hung, "default", "subscribe")
        pid = hung.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        commands: tuple[Callable[[], object], ...] = (
            lambda: erase(engine, "example.org", "alice"),
            lambda: set_rule(
                engine, "example.org", {"anchor_day": 9}, default=books.rule, holds_from=None
            ),
            lambda: rename_source(engine, "default", "other"),
            lambda: reopen_source(engine, "default"),
            lambda: retire_source(engine, "default"),
        )
        for command in commands:
            with pytest.raises(
                LockHeld, match=rf"^a source is held for \d+ s by .* session {pid} "
            ):
                command()
    assert [row["retired_at"] for row in books.rows("sources")] == [None]


def test_a_settling_source_does_not_stop_the_others(books: Books) -> None:
    for source in ("default", "other"):
        books.receive(0, channel("status"), status_payload("new"), source=source)
        books.load(source=source)
        books.receive(1, channel("status"), status_payload("refreshed"), source=source)
    name = f"settle.{books.source_id()}"
    with books.engine.begin() as connection:
        lock(connection, name)
        assert books.load(source="other") == 1
        with pytest.raises(LockHeld, match=name):
            books.settle()
    assert books.load() == 1
    assert len(books.rows("sessions")) == 2


def test_two_first_upgrades_at_once_both_succeed(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as superuser:
        superuser.execute("CREATE DATABASE upgraded_twice")
        try:

            def upgrade() -> str:
                engine = open_engine(postgres_server.url(database="upgraded_twice"))
                try:
                    return migrations.upgrade(engine)
                finally:
                    engine.dispose()

            with ThreadPoolExecutor() as threads:
                upgrades = [threads.submit(upgrade) for _ in range(3)]
                revisions = {one.result(timeout=60) for one in upgrades}
        finally:
            superuser.execute("DROP DATABASE upgraded_twice WITH (FORCE)")
    assert revisions == {head_revision()}
