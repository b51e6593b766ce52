"""Connections to Postgres. Owns how to connect; opens nothing at import."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from accounting.errors import ConfigurationError, ConnectionLost, NotAllowed

__all__ = [
    "Engine",
    "lost_connections",
    "open_engine",
    "prefer_index_scans",
    "psycopg_connection",
]


def open_engine(url: str, *, application_name: str = "turn-accounting") -> Engine:
    """An engine for a libpq URL. Connects when first used, never now.

    Without server-side prepared statements, which poolers in transaction mode do not carry over.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "ACCOUNTING_DATABASE_URL: not a libpq URL: expected postgresql://user@host/database"
        ) from None

    def connect() -> psycopg.Connection:
        return psycopg.connect(
            url,
            prepare_threshold=None,
            application_name=application_name,
            connect_timeout=10,
            # A half-dead server is noticed in seconds, not in the kernel's two hours.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,
        )

    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=8,  # a connection for each job that may run now: making one costs a new process
        max_overflow=4,
        pool_pre_ping=True,
        hide_parameters=True,  # they hold usernames, and errors are logged
    )


# While a backup is being restored the database is there and its tables are not, yet. This is the
# one that collectors ask for first; any other that is missing is an error of its own.
_FIRST_TABLE = '"accounting.sources"'


@contextmanager
def lost_connections() -> Iterator[None]:
    """Turn every form of "the server is away" into :class:`ConnectionLost`.

    And a missing right, which is the operator's to mend, into :class:`NotAllowed`; nothing else.
    """
    try:
        yield
    except (psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, psycopg.errors.InsufficientPrivilege):
            raise NotAllowed(
                f"Postgres: {str(cause).splitlines()[0]}: expected a user with the role "
                "turn_accounting_writer, or turn_accounting_reader to read"
            ) from error
        if isinstance(cause, psycopg.errors.UndefinedTable) and _FIRST_TABLE in str(cause):
            raise ConnectionLost(
                f"Postgres: {str(cause).splitlines()[0]}: the database is being restored, or was "
                "never brought to this version by `turn-accounting db upgrade`"
            ) from error
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if lost or (isinstance(cause, psycopg.Error) and _is_about_server(cause)):
            raise ConnectionLost(f"Postgres: {str(cause).strip().splitlines()[0]}") from error
        raise


def _is_about_server(error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True  # a standby, or one that somebody lets only read for now
    if not isinstance(error, psycopg.OperationalError):
        return False
    # No SQLSTATE: the connection broke. 08 connection, 53 resources, 57 operator intervention,
    # 40 serialization and deadlock, 55P03 lock timeout.
    state = error.sqlstate
    return state is None or state[:2] in {"08", "53", "57", "40"} or state == "55P03"


@contextmanager
def prefer_index_scans(connection: Connection) -> Iterator[None]:
    """Within it the planner follows indexes and scans no table to join it.

    For statements that go from scratch tables, whose size it can't know, to tables of which only
    those rows are wanted: it would hash a table of a gigabyte for a batch of a few thousand rows.
    """
    connection.execute(text(_SET.format("off")))
    yield
    connection.execute(text(_SET.format("on")))


_SET: Final = (
    "SELECT set_config('enable_seqscan', '{0}', true), set_config('enable_hashjoin', '{0}', true),"
    " set_config('enable_mergejoin', '{0}', true), set_config('jit', 'off', true)"
)


def psycopg_connection(connection: Connection) -> psycopg.Connection:
    """The psycopg connection below, within the same transaction: for COPY."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
