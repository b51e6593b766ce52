"""Locks of the jobs: rows of ``accounting.locks``, which only the writer can lock.

Any login can take an advisory lock, and so stop the jobs. ``FOR UPDATE`` on a row needs the right
to update the table. It leaves no dead row, and ends with its transaction, also through a pooler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import psycopg
from sqlalchemy import ColumnElement, Connection, Select, func, select, text
from sqlalchemy.exc import DBAPIError

from accounting.db.queries import Queries
from accounting.db.schema import locks
from accounting.errors import LockHeld

_QUERIES: Final = Queries("accounting.db")

MAX_WAIT_SECONDS: Final = 30.0
"""How long :func:`lock` waits for the other holder."""
MAX_READER_SECONDS: Final = 3.0
"""How long :func:`waiting_for_readers` waits for each view."""
MAX_IDLE_SECONDS: Final = 600.0
"""A holder that sends no statement for so long is stopped or hung: the server ends its session."""


class LockHolder(NamedTuple):
    """The session that holds a lock. ``seconds``: None where this login may not see it."""

    pid: int
    role: str
    application: str
    seconds: float | None


def try_lock(
    connection: Connection, name: str, *, max_idle_seconds: float = MAX_IDLE_SECONDS
) -> bool:
    """Take the named lock until the transaction ends; False when another session has it.

    ``max_idle_seconds``: 0 for a transaction that waits for others.
    """
    query = _row(name).add_columns(_limit_idleness(max_idle_seconds))
    if connection.execute(query.with_for_update(skip_locked=True)).first() is not None:
        return True
    if connection.execute(_row(name)).first() is None:
        raise KeyError(name)
    return False


def require_lock(
    connection: Connection, name: str, *, max_idle_seconds: float = MAX_IDLE_SECONDS
) -> None:
    """As :func:`try_lock`, but raises LockHeld when another session has the lock."""
    if not try_lock(connection, name, max_idle_seconds=max_idle_seconds):
        raise _lock_held(connection, name)


def lock(
    connection: Connection,
    name: str,
    *,
    wait_seconds: float = MAX_WAIT_SECONDS,
    max_idle_seconds: float = MAX_IDLE_SECONDS,
) -> None:
    """Take the named lock until the transaction ends; waits while another session has it.

    Raises LockHeld after ``wait_seconds``; the transaction can only be rolled back then.
    ``max_idle_seconds``: as in :func:`try_lock`.
    """
    set_lock_timeout(connection, wait_seconds)
    try:
        connection.execute(_row(name).with_for_update()).one()
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        with connection.engine.begin() as other:
            held = _lock_held(other, name)
        raise held from error
    connection.execute(
        select(func.set_config("lock_timeout", "0", True), _limit_idleness(max_idle_seconds))
    )


@contextmanager
def waiting_for_loaders(connection: Connection) -> Iterator[None]:
    """Limit how long the block waits for loaders, each of which locks the row of its source.

    Raises LockHeld after MAX_WAIT_SECONDS, since one may hang.
    """
    waiting = connection.execute(select(func.pg_backend_pid())).scalar_one()
    set_lock_timeout(connection, MAX_WAIT_SECONDS)
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        with connection.engine.begin() as other:
            row = other.execute(_QUERIES.text("source_holder"), {"waiting": waiting}).first()
        held = _held("a source", None if row is None else LockHolder(*row))
        raise held from error
    connection.execute(select(func.set_config("lock_timeout", "0", True)))


@contextmanager
def waiting_for_readers(connection: Connection) -> Iterator[None]:
    """Limit how long the block waits for readers of the views over cells, which it redefines.

    All other readers queue behind it meanwhile. Raises LockHeld after MAX_READER_SECONDS; the
    transaction can only be rolled back then.
    """
    waiting = connection.execute(select(func.pg_backend_pid())).scalar_one()
    set_lock_timeout(connection, MAX_READER_SECONDS)
    try:
        yield
    except (DBAPIError, psycopg.errors.LockNotAvailable) as error:
        if not isinstance(getattr(error, "orig", error), psycopg.errors.LockNotAvailable):
            raise
        with connection.engine.begin() as other:
            row = other.execute(_QUERIES.text("views_holder"), {"waiting": waiting}).first()
        held = _held("a view over the cells", None if row is None else LockHolder(*row))
        raise held from error
    connection.execute(select(func.set_config("lock_timeout", "0", True)))


def find_holder(connection: Connection, name: str) -> LockHolder | None:
    """The session that holds a lock; None when it is free. Waits for nothing."""
    row = connection.execute(_QUERIES.text("lock_holder"), {"name": name}).first()
    return None if row is None else LockHolder(*row)


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Limit how long each statement of the transaction waits for a lock."""
    connection.execute(
        text("SELECT set_config('lock_timeout', :milliseconds, true)"),
        {"milliseconds": str(max(1, round(seconds * 1000)))},
    )


def _row(name: str) -> Select[tuple[str]]:
    return select(locks.c.name).where(locks.c.name == name)


def _limit_idleness(seconds: float) -> ColumnElement[str]:
    """Ends the session when it idles in this transaction for longer; 0: never."""
    setting = "idle_in_transaction_session_timeout"
    return func.set_config(setting, str(round(seconds * 1000)), True)


def _lock_held(connection: Connection, name: str) -> LockHeld:
    return _held(f"the lock '{name}'", find_holder(connection, name))


def _held(what: str, holder: LockHolder | None) -> LockHeld:
    if holder is None:
        return LockHeld(f"{what} was held by another session until a moment ago")
    since = "" if holder.seconds is None else f" for {holder.seconds:.0f} s"
    return LockHeld(
        f"{what} is held{since} by the database session {holder.pid} "
        f"(role {holder.role}, application '{holder.application}')"
    )
