"""What `doctor` asks a Postgres: its version, settings and roles, and its disk where it tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from accounting.db.engine import lost_connections
from accounting.db.migrations import current_revision
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.ops")

SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_commit")
PARTITION_DAYS_AHEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """What a probe saw.

    ``lacking``: rights that a role should have, and ``excess``: rights that it should not, each
    "role: right". ``missing_days``: of today (UTC) and DAYS_AHEAD days, those without a partition.
    ``data_directory`` where it lies on this machine and this user may know.
    """

    version: int
    encoding: str
    in_recovery: bool
    is_superuser: bool
    revision: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    data_directory: str | None = None
    missing_roles: tuple[str, ...] = ()
    missing_privileges: tuple[str, ...] = ()
    excess_privileges: tuple[str, ...] = ()
    days_without_partition: tuple[date, ...] = ()


def read_postgres_facts(engine: Engine, *, head: str) -> PostgresFacts:
    """Ask it all. Raises ConnectionLost, NotAllowed."""
    revision = current_revision(engine)
    with lost_connections(), engine.connect() as connection:
        row = connection.execute(_QUERIES.text("examine_server")).one()
        return PostgresFacts(
            version=row.version,
            encoding=row.encoding,
            in_recovery=row.in_recovery,
            is_superuser=row.is_superuser,
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
            # Of the tables nothing can be asked before they are there.
            **(
                _rights(connection, row.today) if revision == head and not row.missing_roles else {}
            ),
        )


def _rights(connection: Connection, today: date) -> dict[str, Any]:
    row = connection.execute(_QUERIES.text("examine_rights")).one()
    days = [today + timedelta(days=ahead) for ahead in range(PARTITION_DAYS_AHEAD + 1)]
    return {
        "lacking": tuple(row.lacking),
        "excess": tuple(row.excess),
        "missing_days": tuple(
            day
            for day in days
            if connection.execute(
                text("SELECT to_regclass(:name)"), {"name": f"accounting.reports_{day:%Y%m%d}"}
            ).scalar_one()
            is None
        ),
    }


def read_server_clock(engine: Engine) -> float:
    """The server's clock, Unix seconds. Raises ConnectionLost."""
    with lost_connections(), engine.connect() as connection:
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now.timestamp()
