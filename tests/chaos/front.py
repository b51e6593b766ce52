"""The front of a deployment: a Postgres and a scheduler of its own, and the wire to its cell."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import psycopg
from psycopg.rows import dict_row

from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.domain.realm_rules import RealmRule
from accounting.embedded import DATABASE
from accounting.front import join
from accounting.identities.realm_rules import set_rule
from tests.chaos.allocations import REALMS
from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.machine import POSTGRES, SETTINGS, Machine, connect_postgres
from tests.support.books import WRITER
from tests.support.faulty_libc import POSTGRES_NAME, FaultyMachine
from tests.support.servers import ADDRESS, PostgresServer

CELL: Final = "north"
WITHOUT_TLS: Final = "sslmode=disable&gssencmode=disable"
FORWARDS: Final = b"INSERT INTO accounting.feed_outbox"
"""In a transaction of the front that forwards events."""
COMMIT_IN_CELL: Final = b"COMMIT TRANSACTION\0"
"""How Postgres commits on a foreign server."""
SOON: Final = timedelta(seconds=60)


@dataclass(slots=True)
class Front:
    """The database of the front, its scheduler, and the wire to the cell."""

    postgres: PostgresServer
    cell_wire: FaultyProxy
    scheduler: Machine

    def query(self, query: str, values: tuple[object, ...] = ()) -> list[dict[str, Any]]:
        """Rows, as the superuser, without a proxy before the front."""
        with psycopg.connect(self.postgres.url(), row_factory=dict_row) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(query, values).fetchall()

    def ask_to_read_cell(self) -> None:
        """As :meth:`read_cell_now`, without waiting for Postgres, which may be stopped."""
        threading.Thread(target=self.read_cell_now, daemon=True).start()

    def read_cell_now(self) -> None:
        """Let the next run read the cell, also if it was away and is left alone for a while."""
        with suppress(psycopg.Error), psycopg.connect(self.postgres.url()) as connection:
            connection.execute("UPDATE accounting.cells SET feed_retry_at = NULL")


@contextmanager
def running_front(directory: Path, cell: PostgresServer, library: Path | None) -> Iterator[Front]:
    """A front that a database without usage has joined. Its scheduler is not started."""
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(settings=POSTGRES))
        wire = stack.enter_context(
            FaultyProxy(lambda: connect_postgres(cell), commit=COMMIT_IN_CELL, writes=b"")
        )
        let_periods_end_soon(cell)
        engine = open_engine(postgres.url())
        stack.callback(engine.dispose)
        migrations.upgrade(engine)
        migrations.allow_role_logins(engine)
        join.make_front(engine)
        for user in ("postgres", WRITER):  # the owner gives the cell the key, once
            url = f"postgresql://{user}@{ADDRESS}:{wire.port}/{DATABASE}?{WITHOUT_TLS}"
            join.join_cell(engine, CELL, url, None)
        database = stack.enter_context(
            FaultyProxy(lambda: connect_postgres(postgres), writes=FORWARDS)
        )
        faulty = FaultyMachine(directory / "machine") if library is not None else None
        host = ADDRESS if faulty is None else POSTGRES_NAME
        settings = {
            **SETTINGS,
            "ACCOUNTING_DATABASE_URL": (
                f"postgresql://{WRITER}@{host}:{database.port}/{DATABASE}?{WITHOUT_TLS}"
            ),
        }
        if faulty is not None and library is not None:
            settings |= faulty.environment(library)
        scheduler = Machine("front", "schedule", directory, settings, database, faulty=faulty)
        yield Front(postgres, wire, scheduler)


def let_periods_end_soon(cell: PostgresServer) -> None:
    """Give each realm a time zone in which a billing period ends within an hour."""
    now = datetime.now(UTC) + SOON
    zone, midnight = min(
        ((name, next_midnight(now, name)) for name in sorted(available_timezones())),
        key=lambda entry: entry[1],
    )
    engine = open_engine(cell.url())
    try:
        for realm in REALMS:
            changes = {"time_zone": zone, "anchor_day": midnight.astimezone(ZoneInfo(zone)).day}
            set_rule(engine, realm.decode(), changes, default=RealmRule(), holds_from=None)
    finally:
        engine.dispose()


def next_midnight(now: datetime, zone: str) -> datetime:
    local = now.astimezone(ZoneInfo(zone))
    return datetime(local.year, local.month, local.day, tzinfo=local.tzinfo) + timedelta(days=1)
