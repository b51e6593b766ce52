"""Books for tests: a database cloned from a template, a spool for each source, and the jobs.

books.receive(12.5, b"turn/realm/r/user/u/allocation/.../status", b"new lifetime=600")
books.run_jobs()
books.rows("sessions")
"""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from accounting.capture.spool.spool import Spool
from accounting.db import migrations
from accounting.db.engine import Engine, open_engine
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.realm_rules import RealmRule
from accounting.ingest.loader import BATCH, Loader
from accounting.reporting.reader import DatabaseReader
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup
from tests.support.servers import PostgresServer

TEMPLATE: Final = "accounting_template"
WRITER: Final = "turn_accounting_writer"
READER: Final = "turn_accounting_reader"
START: Final = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
"""The time that tests count seconds from, unless they set ``Books.start``."""
_NUMBERS: Final = itertools.count(1)
_ENGINES: Final[list[Engine]] = []
"""The first engine of this process; its compiled statements serve all others."""


def make_template(server: PostgresServer, name: str = TEMPLATE) -> None:
    """Create the migrated database that each test clones."""
    server.execute(f"CREATE DATABASE {name}")
    engine = open_engine(server.url(database=name))
    migrations.upgrade(engine)
    migrations.allow_role_logins(engine)
    engine.dispose()
    install_settable_clock(server, name)


def install_settable_clock(server: PostgresServer, name: str) -> None:
    """Make the clock of a database follow what its books capture, or what a test sets.

    It goes on from there. A database whose books have not loaded anything has the server's clock.
    """
    with psycopg.connect(server.url(database=name)) as connection:
        connection.execute(_SETTABLE_CLOCK)


_SETTABLE_CLOCK: Final = """
CREATE SCHEMA test_clock;
CREATE TABLE test_clock.clock (
    captured_until timestamptz, loaded_at timestamptz, fixed_at timestamptz, ahead interval
);
INSERT INTO test_clock.clock DEFAULT VALUES;
GRANT USAGE ON SCHEMA test_clock TO PUBLIC;
GRANT SELECT, UPDATE ON test_clock.clock TO PUBLIC;
CREATE OR REPLACE FUNCTION accounting.database_now() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        fixed_at, clock_timestamp() + ahead,
        captured_until + (clock_timestamp() - loaded_at), clock_timestamp()
    )
    FROM test_clock.clock
$$
"""


def clone_database(server: PostgresServer, name: str, template: str = TEMPLATE) -> None:
    """Clone the template; it must have no connections."""
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")


@contextmanager
def cloned_database(server: PostgresServer, template: str = TEMPLATE) -> Iterator[str]:
    """A clone of the template, dropped at exit."""
    name = f"books_{next(_NUMBERS)}"
    clone_database(server, name, template)
    yield name
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def engine_with_shared_cache(url: str) -> Engine:
    """An engine with the compiled statements of this process; compiling takes half of a job."""
    engine = open_engine(url)
    if not _ENGINES:
        with engine.connect():  # the dialect reads the server's version
            _ENGINES.append(engine)
    engine.dialect = engine.pool._dialect = _ENGINES[0].dialect
    engine._compiled_cache = _ENGINES[0]._compiled_cache
    return engine


@dataclass(slots=True)
class Books:
    """One database and the spools that are loaded into it.

    Its engine and reader connect as the writer: every test runs with the grants of the service.
    A ``shared_engine`` stays open when the books close.
    """

    server: PostgresServer
    name: str
    directory: Path
    start: datetime = START
    rule: RealmRule = field(default_factory=RealmRule)
    shared_engine: InitVar[Engine | None] = None
    engine: Engine = field(init=False)
    reader: DatabaseReader = field(init=False)
    _owns_engine: bool = field(init=False)
    _spools: dict[str, Spool] = field(init=False, default_factory=dict)
    _loaders: dict[str, Loader] = field(init=False, default_factory=dict)
    _connections: dict[str | None, psycopg.Connection[dict[str, Any]]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self, shared_engine: Engine | None) -> None:
        self.engine = shared_engine or engine_with_shared_cache(self.url(WRITER))
        self._owns_engine = shared_engine is None
        self.reader = DatabaseReader(self.url(WRITER))

    def url(self, role: str | None = None) -> str:
        return self.server.url(role, self.name)

    def spool(self, source: str = "default") -> Spool:
        """The spool of a source, created at the first call."""
        if source not in self._spools:
            self._spools[source] = Spool.open(self.directory / f"{source}.sqlite3", source)
        return self._spools[source]

    def micros_at(self, seconds: float) -> int:
        """The time so many seconds after the start, in microseconds since the epoch."""
        return to_micros(self.start + timedelta(seconds=seconds))

    def receive(
        self,
        seconds: float,
        channel: bytes,
        payload: bytes,
        *,
        source: str = "default",
        database: int = 0,
    ) -> None:
        """Receive one message, so many seconds after the start."""
        self.spool(source).append([(self.micros_at(seconds), database, channel, payload)])

    def receive_all(
        self, messages: Sequence[tuple[int, int, bytes, bytes]], *, source: str = "default"
    ) -> None:
        """Receive messages: (received at in microseconds, database, channel, payload)."""
        self.spool(source).append(messages)

    def advance_clock(self, seconds: float, *, source: str = "default") -> None:
        """Record that a source captured everything up to so many seconds after the start."""
        self.spool(source).checkpoint(self.micros_at(seconds))

    def load(self, *, source: str = "default", limit: int = BATCH) -> int:
        """Load a source's spool to its end; returns the number of messages."""
        if source not in self._loaders:
            self._loaders[source] = Loader(self.engine, self.spool(source), self.rule)
        self.follow_capture(source)
        total = 0
        while loaded := self._loaders[source].load_ahead(limit):
            total += loaded
        return total

    def follow_capture(self, source: str = "default") -> None:
        """Move the database's clock to what a source captured; :meth:`load` does so by itself."""
        state = self.spool(source).state()
        newest = max(state.captured_until or 0, state.last_received_at)
        if newest:
            # Of a test that stopped the server, or that made the database read-only.
            with suppress(psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                self.query(
                    "UPDATE test_clock.clock SET captured_until = greatest(%s,"
                    " captured_until + (clock_timestamp() - loaded_at)),"
                    " loaded_at = clock_timestamp() RETURNING captured_until",
                    [from_micros(newest)],
                )

    def set_database_clock(
        self, at: datetime | None = None, *, ahead: timedelta | None = None
    ) -> None:
        """Stop the database's clock at a time, or let it run ``ahead`` of the server's.

        Without either it follows what the books capture again.
        """
        self.query(
            "UPDATE test_clock.clock SET fixed_at = %s, ahead = %s RETURNING fixed_at", [at, ahead]
        )

    def settle(self, limit: int = 50_000) -> int:
        return settle(self.engine, limit=limit)

    def rollup(self) -> int:
        return rollup(self.engine)

    def run_jobs(self) -> None:
        """Load every spool, settle, and roll up."""
        for source in self._spools:
            self.load(source=source)
        self.settle()
        self.rollup()

    def query(
        self, query: str, parameters: Sequence[Any] | None = None, *, prepare: bool | None = None
    ) -> list[dict[str, Any]]:
        """Rows of any query, as the superuser. ``prepare``: one that is run often on these books.

        Planning a query of a view takes ten times as long as running it on a few rows.
        """
        return self._query(None, query, parameters, prepare)

    def rows(self, view: str, *columns: str, order: str = "1") -> list[dict[str, Any]]:
        """Rows of a view of ``reporting``, as its reader sees them."""
        return self._query(
            READER,
            f"SELECT {', '.join(columns) or '*'} FROM reporting.{view} ORDER BY {order}",  # noqa: S608
        )

    def _query(
        self,
        role: str | None,
        query: str,
        parameters: Sequence[Any] | None = None,
        prepare: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Query over the role's last connection, or over a new one where the server closed it."""
        connection = self._connections.pop(role, None)
        if connection is not None:
            try:
                return self._query_over(role, connection, query, parameters, prepare)
            except psycopg.OperationalError:
                connection.close()
        return self._query_over(role, self._connect(role), query, parameters, prepare)

    def _connect(self, role: str | None) -> psycopg.Connection[dict[str, Any]]:
        return psycopg.connect(
            self.url(role),
            autocommit=True,
            prepare_threshold=1_000_000,  # only what asks for it
            row_factory=dict_row,
            options="-c timezone=UTC -c datestyle=ISO",
        )

    def _query_over(
        self,
        role: str | None,
        connection: psycopg.Connection[dict[str, Any]],
        query: str,
        parameters: Sequence[Any] | None,
        prepare: bool | None,
    ) -> list[dict[str, Any]]:
        try:
            rows = connection.execute(query.encode(), parameters, prepare=prepare).fetchall()
        except psycopg.Error:
            connection.close()
            raise
        if self._connections.setdefault(role, connection) is not connection:
            connection.close()  # another thread left its connection meanwhile
        return rows

    def source_id(self, source: str = "default") -> int:
        """The number of a source in the database."""
        (row,) = self.query("SELECT source_id FROM accounting.sources WHERE source = %s", [source])
        return int(row["source_id"])

    def view_sums(self, view: str) -> dict[str, int]:
        """The sums of the eight counters over a view."""
        sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in COUNTERS)
        [row] = self._query(READER, f"SELECT {sums} FROM reporting.{view}", prepare=True)  # noqa: S608
        return {name: int(value) for name, value in row.items()}

    def assert_conserved(self) -> None:
        """Sessions = hours = days = months, for users and for realms, in all eight counters."""
        sessions = self.view_sums("sessions")
        for subject in ("user", "realm"):
            for length in ("hourly", "daily", "monthly"):
                assert self.view_sums(f"{subject}_usage_{length}") == sessions, (
                    f"{subject}_usage_{length}"
                )

    def disconnect(self) -> None:
        """Close all idle connections."""
        self._close_connections()
        self.engine.dispose()

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()
        self._close_connections()
        if self._owns_engine:
            self.engine.dispose()

    def _close_connections(self) -> None:
        self.reader.close()
        while self._connections:
            self._connections.popitem()[1].close()


@dataclass(frozen=True, slots=True)
class BooksTemplate:
    """Filled books to copy: the name of their database, and the directory of their spools."""

    name: str
    directory: Path


CopiedFrom = Callable[[Callable[[Books], object], Path], AbstractContextManager[Books]]
"""Copies what a function makes of empty books into a directory: a fixture."""


@contextmanager
def books_template(
    server: PostgresServer, directory: Path, fill: Callable[[Books], object]
) -> Iterator[BooksTemplate]:
    """A template of what ``fill`` makes of empty books."""
    with cloned_database(server) as name:
        books = Books(server, name, directory)
        fill(books)
        books.close()
        yield BooksTemplate(name, directory)


@contextmanager
def copied_books(
    server: PostgresServer, template: BooksTemplate, directory: Path
) -> Iterator[Books]:
    """A copy of filled books; their clock goes on from when they were filled."""
    shutil.copytree(template.directory, directory, dirs_exist_ok=True)
    with cloned_database(server, template.name) as name:
        books = Books(server, name, directory)
        books.query("UPDATE test_clock.clock SET loaded_at = clock_timestamp() RETURNING loaded_at")
        yield books
        books.close()


def sum_counters(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The sums of the eight counters over rows."""
    sums = dict.fromkeys(COUNTERS, 0)
    for row in rows:
        for name in COUNTERS:
            sums[name] += int(row[name])
    return sums


def channel(
    suffix: str, *, user: str = "alice", realm: str = "example.org", allocation: int = 1
) -> bytes:
    """A channel as coturn writes it."""
    prefix = f"turn/realm/{realm}" if realm else "turn"
    return f"{prefix}/user/{user}/allocation/{allocation:018d}/{suffix}".encode()


def traffic_payload(
    received_packets: int, received_bytes: int, sent_packets: int, sent_bytes: int
) -> bytes:
    """A payload of traffic as coturn writes it."""
    return (
        f"rcvp={received_packets}, rcvb={received_bytes}, sentp={sent_packets}, sentb={sent_bytes}"
    ).encode()


def status_payload(
    word: str,
    lifetime: int = 600,
    *,
    local: str | None = "192.0.2.1:3478",
    transport: str = "UDP",
) -> bytes:
    """A payload of a status as coturn writes it; without addresses as before 4.6."""
    if word == "deleted":
        return b"deleted"
    addresses = (
        f", type={transport}, local={local}, remote=198.51.100.7:50000, ssl=NONE, cipher=NONE"
        if local
        else ""
    )
    return f"{word} lifetime={lifetime}{addresses}".encode()


def expected_json(value: object) -> object:
    """A value of a view as JSON lines have it."""
    match value:
        case datetime():
            return value.isoformat()
        case bool() | int() | None:
            return value
        case str() | list():
            return value
        case _:
            try:
                return float(value)  # type: ignore[arg-type]
            except TypeError:
                return str(value)


def view_as_json(books: Books, view: str, order: str) -> list[dict[str, Any]]:
    return [
        {name: expected_json(value) for name, value in row.items()}
        for row in books.rows(view, order=order)
    ]
