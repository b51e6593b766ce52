"""The facts of a Postgres that ``doctor`` checks: version, settings, roles, data directory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from accounting.db.engine import lost_connections
from accounting.db.migrations import current_revision
from accounting.db.queries import Queries
from accounting.ops.doctor.clock import DatabaseClock

_QUERIES: Final = Queries("accounting.ops")

SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_commit")
PARTITION_DAYS_AHEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The user of the database URL, and the roles whose rights it has."""

    name: str
    is_superuser: bool = False
    is_owner: bool = False
    is_writer: bool = True
    is_reader: bool = False

    @property
    def sees_tables(self) -> bool:
        """Whether it may read the private tables, by which most is checked."""
        return self.is_superuser or self.is_owner or self.is_writer


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """The facts of a server and its database.

    ``missing_privileges`` and ``excess_privileges``: those that a role should have and doesn't, and
    the reverse, each as "role: privilege". ``days_without_partition``: of today (UTC) and the next
    PARTITION_DAYS_AHEAD days. ``read_only``: transactions can't write. ``data_directory``: where it
    is on this machine, and the user may read that setting.
    """

    version: int
    encoding: str
    in_recovery: bool
    login: Login
    revision: str | None
    read_only: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    data_directory: str | None = None
    missing_roles: tuple[str, ...] = ()
    missing_privileges: tuple[str, ...] = ()
    excess_privileges: tuple[str, ...] = ()
    days_without_partition: tuple[date, ...] = ()


def read_postgres_facts(engine: Engine, *, head: str) -> PostgresFacts:
    """Read the facts. Raises ConnectionLost, NotAllowed."""
    with lost_connections(), engine.connect() as connection:
        login = Login(**connection.execute(_QUERIES.text("login")).mappings().one())
    revision = current_revision(engine) if login.sees_tables else None
    with lost_connections(), engine.connect() as connection:
        row = connection.execute(_QUERIES.text("server_facts")).one()
        facts = PostgresFacts(
            version=row.version,
            encoding=row.encoding,
            in_recovery=row.in_recovery,
            read_only=row.read_only,
            login=login,
            revision=revision,
            settings={
                name: connection.execute(
                    text("SELECT current_setting(:name)"), {"name": name}
                ).scalar_one()
                for name in SETTINGS
            },
            size_bytes=row.size_bytes,
            data_directory=row.data_directory,
            missing_roles=tuple(row.missing_roles),
        )
        if revision != head or facts.missing_roles:
            return facts  # the privileges of missing tables or roles can't be queried
        privileges = connection.execute(_QUERIES.text("role_privileges")).one()
        return replace(
            facts,
            missing_privileges=tuple(privileges.missing_privileges),
            excess_privileges=tuple(privileges.excess_privileges),
            days_without_partition=tuple(_days_without_partition(connection, row.today)),
        )


def _days_without_partition(connection: Connection, today: date) -> Iterator[date]:
    for days_ahead in range(PARTITION_DAYS_AHEAD + 1):
        day = today + timedelta(days=days_ahead)
        table = f"accounting.reports_{day:%Y%m%d}"
        query = text("SELECT to_regclass(:table)")
        if connection.execute(query, {"table": table}).scalar_one() is None:
            yield day


def read_server_clock(engine: Engine) -> float:
    """The server's clock, Unix seconds. Raises ConnectionLost."""
    with lost_connections(), engine.connect() as connection:
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now.timestamp()


def read_database_clock(engine: Engine) -> DatabaseClock:
    """The clock of a database that has this version's schema. Raises ConnectionLost, NotAllowed."""
    with lost_connections(), engine.connect() as connection:
        row = connection.execute(_QUERIES.text("database_clock")).one()
        return DatabaseClock(now=row.now, newest_row_at=row.newest_row_at)
