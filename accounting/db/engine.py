"""Engines of SQLAlchemy, and the psycopg connections below them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext

from accounting.db.connection import CONNECT_SECONDS, Connector, connect, lost_connections
from accounting.db.connection_settings import settings_statement

__all__ = [
    "Engine",
    "connect",
    "lost_connections",
    "open_engine",
    "prefer_index_scans",
    "private_connection",
    "psycopg_connection",
]


def open_engine(
    url: str,
    *,
    application_name: str = "turn-accounting",
    reload_url: Callable[[], str] | None = None,
    idle_connections: int = 1,
    connect_seconds: int = CONNECT_SECONDS,
) -> Engine:
    """An engine for a libpq URL. It connects when it is first used.

    ``idle_connections`` stay open, and each costs the server 5 MB. More are opened where they are
    used at once, and closed afterwards.

    ``reload_url`` is called when a connection is refused: another URL is tried at once, such as one
    with a new password.

    Does not use server-side prepared statements, which a pooler in transaction mode loses. Every
    transaction begins with the settings of :mod:`accounting.db.connection_settings`.
    """
    engine = create_engine(
        "postgresql+psycopg://",
        creator=Connector(url, application_name, reload_url, connect_seconds=connect_seconds),
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


def private_connection(engine: Engine) -> psycopg.Connection:
    """A new connection that is not of the pool: the caller closes it."""
    pooled = engine.raw_connection()
    driver = pooled.driver_connection
    assert isinstance(driver, psycopg.Connection)
    pooled.detach()
    return driver


def psycopg_connection(connection: Connection) -> psycopg.Connection:
    """The underlying psycopg connection, in the same transaction: for COPY."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
