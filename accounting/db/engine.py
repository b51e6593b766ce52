"""Connections to Postgres, and the errors that they raise."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from accounting.db.connection_settings import settings_statement
from accounting.errors import ConfigurationError, ConnectionLost, NotAllowed

__all__ = [
    "Engine",
    "connect",
    "lost_connections",
    "open_engine",
    "prefer_index_scans",
    "psycopg_connection",
]


def open_engine(
    url: str,
    *,
    application_name: str = "turn-accounting",
    reload_url: Callable[[], str] | None = None,
    idle_connections: int = 1,
) -> Engine:
    """An engine for a libpq URL. It connects when it is first used.

    ``idle_connections`` stay open, and each costs the server 5 MB. More are opened where they are
    used at once, and closed afterwards.

    ``reload_url`` is called when a connection is refused: another URL is tried at once, such as one
    with a new password.

    Does not use server-side prepared statements, which a pooler in transaction mode loses. Every
    transaction begins with the settings of :mod:`accounting.db.connection_settings`.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "ACCOUNTING_DATABASE_URL: not a libpq URL: expected postgresql://user@host/database"
        ) from None

    engine = create_engine(
        "postgresql+psycopg://",
        creator=_Connector(url, application_name, reload_url),
        # In BEGIN itself, so that default_transaction_isolation has no effect.
        isolation_level="READ COMMITTED",
        pool_size=idle_connections,
        max_overflow=11,
        pool_pre_ping=True,
        hide_parameters=True,  # they contain usernames, and errors are logged
    )
    event.listen(engine, "begin", _apply_settings)
    event.listen(engine, "handle_error", _close_if_broken)
    return engine


class _Connector:
    """Opens the connections of an engine."""

    def __init__(
        self, url: str, application_name: str, reload_url: Callable[[], str] | None
    ) -> None:
        self._url = url
        self._application_name = application_name
        self._reload_url = reload_url

    def __call__(self) -> psycopg.Connection:
        try:
            return connect(self._url, application_name=self._application_name)
        except psycopg.OperationalError:
            reloaded_url = self._url if self._reload_url is None else self._reload_url()
            if reloaded_url == self._url:
                raise
            self._url = reloaded_url
            return connect(self._url, application_name=self._application_name)


def connect(url: str, *, application_name: str, autocommit: bool = False) -> psycopg.Connection:
    """Connect to a libpq URL as every part of this package does. Raises psycopg.Error."""
    return psycopg.connect(
        url,
        autocommit=autocommit,
        prepare_threshold=None,
        application_name=application_name,
        client_encoding="utf8",  # SQLAlchemy reads texts before the first transaction
        connect_timeout=10,
        # Detect a dead server within seconds; the kernel's default is two hours.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=20_000,
    )


def _apply_settings(connection: Connection) -> None:
    """Apply the settings to a transaction that has just begun."""
    statement = settings_statement(psycopg_connection(connection))
    # Several statements in one message exclude parameters and server-side cursors.
    options = {"no_parameters": True, "stream_results": False}
    connection.exec_driver_sql(statement, execution_options=options)


def _close_if_broken(context: ExceptionContext) -> None:
    """Close a connection that the server ended, without a ROLLBACK.

    Behind a pooler it still looks open, and fails where psycopg was sending many rows.
    """
    error = context.original_exception
    if isinstance(error, psycopg.OperationalError):
        state = error.sqlstate
        context.is_disconnect |= state is None or state.startswith(("08", "57P"))


# While a backup is restored, the database exists before its tables do. Collectors read this table
# first; any other missing table is a bug. The quotation marks around the name in the message differ
# by lc_messages.
_FIRST_TABLE: Final = re.compile(r"\baccounting\.sources\b")


@contextmanager
def lost_connections() -> Iterator[None]:
    """Raise :class:`ConnectionLost` for every error that says the server is unavailable.

    Raises :class:`NotAllowed` for a missing privilege, which an operator must grant. Other errors
    pass unchanged.
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
        if isinstance(cause, psycopg.errors.UndefinedTable) and _FIRST_TABLE.search(str(cause)):
            raise ConnectionLost(
                f"Postgres: {str(cause).splitlines()[0]}: the database is being restored, or was "
                "never brought to this version by `turn-accounting db upgrade`"
            ) from error
        invalidated = isinstance(error, DBAPIError) and error.connection_invalidated
        if invalidated or (isinstance(cause, psycopg.Error) and _is_server_unavailable(cause)):
            raise ConnectionLost(f"Postgres: {str(cause).strip().splitlines()[0]}") from error
        raise


def _is_server_unavailable(error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True  # a standby, or a server that was set to read-only for a while
    if not isinstance(error, psycopg.OperationalError):
        return False
    # No SQLSTATE: the connection broke. 08 connection, 53 resources, 57 operator intervention,
    # 40 serialization and deadlock, 55P03 lock timeout.
    state = error.sqlstate
    return state is None or state[:2] in {"08", "53", "57", "40"} or state == "55P03"


@contextmanager
def prefer_index_scans(connection: Connection) -> Iterator[None]:
    """Make the planner join by index lookups within the block, instead of scanning whole tables.

    For statements that join temporary tables, whose size the planner does not know, to large ones:
    it would hash a table of a gigabyte for a batch of a few thousand rows.
    """
    connection.execute(_SET_PLANNER, {"value": "off"})
    yield
    connection.execute(_SET_PLANNER, {"value": "on"})


_SET_PLANNER: Final = text(
    "SELECT set_config('enable_seqscan', :value, true),"
    " set_config('enable_hashjoin', :value, true), set_config('enable_mergejoin', :value, true),"
    " set_config('jit', 'off', true)"
)


def psycopg_connection(connection: Connection) -> psycopg.Connection:
    """The underlying psycopg connection, in the same transaction: for COPY."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
