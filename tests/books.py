"""Books for tests: a database cloned from one template, a spool, and the jobs by hand.

books.hear(12.5, b"turn/realm/r/user/u/allocation/.../status", b"new lifetime=600")
books.account()
books.rows("sessions")
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from accounting.capture.spool import Spool
from accounting.jobs.load import BATCH, Loader
from accounting.jobs.rollup import rollup
from accounting.jobs.settle import settle
from accounting.model.buckets import microseconds
from accounting.model.counters import COUNTERS
from accounting.model.realms import RealmRule
from accounting.store import migrations
from accounting.store.database import Engine, open_engine
from tests.servers import PostgresServer

TEMPLATE: Final = "accounting_template"
WRITER: Final = "turn_accounting_writer"
READER: Final = "turn_accounting_reader"
START: Final = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
"""When the seconds of :meth:`Books.hear` begin to count, unless a test says otherwise."""
_NUMBERS: Final = itertools.count(1)


def make_template(server: PostgresServer, name: str = TEMPLATE) -> None:
    """The database that all others are cloned from: migrated once."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    engine = open_engine(server.url(database=name))
    migrations.upgrade(engine)
    migrations.let_roles_log_in(engine)
    engine.dispose()


@contextmanager
def cloned(server: PostgresServer) -> Iterator[str]:
    """The name of a fresh clone, dropped afterwards."""
    name = f"books_{next(_NUMBERS)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
    yield name
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(slots=True)
class Books:
    """One database and the spools that are loaded into it."""

    server: PostgresServer
    name: str
    directory: Path
    start: datetime = START
    rule: RealmRule = field(default_factory=RealmRule)
    engine: Engine = field(init=False)
    _spools: dict[str, Spool] = field(init=False, default_factory=dict)
    _loaders: dict[str, Loader] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # As the role that the service has, so that its grants are proved by every test.
        self.engine = open_engine(self.url(WRITER))

    def url(self, role: str | None = None) -> str:
        return self.server.url(role, self.name)

    def spool(self, source: str = "default") -> Spool:
        """The spool of a source, made when first asked for."""
        if source not in self._spools:
            self._spools[source] = Spool.open(self.directory / f"{source}.sqlite3", source)
        return self._spools[source]

    def at(self, seconds: float) -> int:
        """Microseconds since the epoch of so many seconds after the start."""
        return microseconds(self.start + timedelta(seconds=seconds))

    def hear(
        self,
        seconds: float,
        channel: bytes,
        payload: bytes,
        *,
        source: str = "default",
        database: int = 0,
    ) -> None:
        """Receive one message, so many seconds after the start."""
        self.spool(source).append([(self.at(seconds), database, channel, payload)])

    def hear_all(
        self, messages: Sequence[tuple[int, int, bytes, bytes]], *, source: str = "default"
    ) -> None:
        """Receive messages: (received at in microseconds, database, channel, payload)."""
        self.spool(source).append(messages)

    def until(self, seconds: float, *, source: str = "default") -> None:
        """Let the clock of a source reach so many seconds after the start."""
        self.spool(source).tick(self.at(seconds))

    def load(self, *, source: str = "default", limit: int = BATCH) -> int:
        """Load a source's spool to its end."""
        if source not in self._loaders:
            self._loaders[source] = Loader(self.engine, self.spool(source), self.rule)
        total = 0
        while loaded := self._loaders[source].load(limit):
            total += loaded
        return total

    def settle(self, limit: int = 50_000) -> int:
        return settle(self.engine, limit=limit)

    def rollup(self) -> int:
        return rollup(self.engine)

    def account(self) -> None:
        """Load every spool, settle, and roll up."""
        for source in self._spools:
            self.load(source=source)
        self.settle()
        self.rollup()

    def query(self, query: str, parameters: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Rows of any query, as the superuser."""
        with psycopg.connect(self.url(), row_factory=dict_row) as connection:
            return connection.execute(query, parameters).fetchall()

    def rows(self, view: str, *columns: str, order: str = "1") -> list[dict[str, Any]]:
        """Rows of a view of ``reporting``, as its reader sees them."""
        with psycopg.connect(self.url(READER), row_factory=dict_row) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(
                f"SELECT {', '.join(columns) or '*'} FROM reporting.{view} ORDER BY {order}"  # noqa: S608
            ).fetchall()

    def sums(self, view: str) -> dict[str, int]:
        """The sums of the eight counters over a view."""
        return {name: int(value) for name, value in eight_of(self.rows(view, *COUNTERS)).items()}

    def assert_conserved(self) -> None:
        """Sessions = hours = days = months, for users and for realms, in all eight counters."""
        sessions = self.sums("sessions")
        for of in ("user", "realm"):
            for length in ("hourly", "daily", "monthly"):
                assert self.sums(f"{of}_usage_{length}") == sessions, f"{of}_usage_{length}"

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()
        self.engine.dispose()


def eight_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
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


def traffic(
    received_packets: int, received_bytes: int, sent_packets: int, sent_bytes: int
) -> bytes:
    """A payload of traffic as coturn writes it."""
    return (
        f"rcvp={received_packets}, rcvb={received_bytes}, sentp={sent_packets}, sentb={sent_bytes}"
    ).encode()


def status(word: str, lifetime: int = 600, *, local: str | None = "192.0.2.1:3478") -> bytes:
    """A payload of a status as coturn writes it; without addresses as before 4.6."""
    if word == "deleted":
        return b"deleted"
    addresses = (
        f", type=UDP, local={local}, remote=198.51.100.7:50000, ssl=NONE, cipher=NONE"
        if local
        else ""
    )
    return f"{word} lifetime={lifetime}{addresses}".encode()
