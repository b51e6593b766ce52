"""Make a front, and let cells join and leave it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from typing import Final
from uuid import UUID

import psycopg
from psycopg.errors import (
    FeatureNotSupported,
    InsufficientPrivilege,
    ProhibitedSqlStatementAttempted,
    UndefinedFile,
)
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from accounting.db.engine import lost_connections
from accounting.db.locks import lock, waiting_for_readers
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.errors import AccountingError, NotAllowed, UsageError
from accounting.front import cell_views, cells, foreign_server, membership
from accounting.front.cell_engine import open_cell_engine
from accounting.front.cell_url import check_cell_name, checked_cell_url
from accounting.front.shared.share import share_with_cell

_QUERIES: Final = Queries("accounting.front")


def make_front(engine: Engine) -> None:
    """Make a database a front, with this version's schema.

    Raises UsageError for one that has books of its own, or is a cell; NotAllowed for a login that
    may not create the extension.
    """
    cell_views.upgrade(engine)
    with lost_connections(), _refusals(), engine.begin() as connection:
        if connection.execute(_QUERIES.text("has_own_books")).scalar_one():
            raise UsageError(
                "this database has books of its own: a front has none, so make another"
            )
        if cells.read_membership(connection) is not None:
            raise UsageError("this database is a cell of a front")
        connection.execute(_QUERIES.text("create_extension"))
        connection.execute(_QUERIES.text("let_owner_use_extension"))
        connection.execute(_QUERIES.text("become_owner"))
        connection.execute(_QUERIES.text("make_front"))
        foreign_server.define_views(connection)
        foreign_server.define_functions(connection)


def join_cell(
    engine: Engine, name: str, url: str, password: str | None, *, bill_from: date | None = None
) -> None:
    """Let a cell join, or join again with another URL or password.

    ``bill_from``: the first period that the front bills of it; None for all, or as said before.
    Raises UsageError for a database that can't be a cell of this front, and leaves both as they
    were, but for the schema of a new database; LockHeld while someone's open transaction has read
    the front's views. What the cell knows is committed last but one, so that a second call
    completes one that was interrupted, under any name. ``engine``: with the rights of the owner of
    the schema.
    """
    check_cell_name(name)
    checked_cell_url(url)
    with (
        lost_connections(),
        _refusals(),
        engine.begin() as connection,
        ExitStack() as stack,
    ):
        cells.require_front(connection)
        lock(connection, "cells")
        front = membership.FrontIdentity(connection)
        known = {cell.cell: cell for cell in cells.read_cells(connection)}
        rows = connection.execute(_QUERIES.text("known_databases"), {"cell": name})
        databases = {row.database_id: row.cell for row in rows}
        joined = _joined_database(connection, name)
        foreign_server.create_server(connection, name, url, password)
        with cells.errors_of_cell(name):
            cell_engine = stack.enter_context(open_cell_engine(url, password))
            database, cell_connection = membership.prepare_cell(
                stack, cell_engine, connection, front, name, databases, joined, bill_from
            )
        cell_id = (
            known[name].cell_id
            if name in known
            else connection.execute(_QUERIES.text("free_cell_id")).scalar_one()
        )
        connection.execute(_QUERIES.text("become_owner"))
        connection.execute(
            _QUERIES.text("add_cell"),
            {
                "cell_id": cell_id,
                "cell": name,
                "url": url,
                "front_revision": head_revision(),
                "bill_from": bill_from,
                **database._asdict(),
            },
        )
        connection.execute(_QUERIES.text("compare_all_peaks"))
        try:
            with waiting_for_readers(connection):
                foreign_server.import_views(connection, name, database.revision)
                foreign_server.drop_former(connection, name)
        except DBAPIError as error:
            if isinstance(error.orig, ProhibitedSqlStatementAttempted):
                raise UsageError(
                    f"cell '{name}' asks for no password: let a superuser of the front join it, "
                    "without one"
                ) from error
            raise
        with cells.errors_of_cell(name), lost_connections():
            cell_connection.commit()
    with lost_connections(), engine.connect() as connection:
        cell = cells.find_cell(connection, name)
    share_with_cell(engine, cell)


def leave(engine: Engine, name: str, *, without_its_usage: bool = False) -> str | None:
    """Let a cell leave; returns why the cell itself does not know it, if it doesn't.

    Raises UsageError while it has usage of a period that the front has not billed, or while nobody
    can tell; not with ``without_its_usage``. Raises LockHeld while someone's open
    transaction has read the front's views: repeat it then.
    """
    with lost_connections(), _refusals(), engine.begin() as connection:
        cells.require_front(connection)
        lock(connection, "cells")
        cell = cells.find_cell(connection, name)
        front = membership.FrontIdentity(connection)
        unreachable = None
        if not without_its_usage:
            _check_billed(engine, connection, cell)
        try:
            with cells.open_cell(engine, cell) as cell_engine:
                membership.forget_front(cell_engine, front)
        except AccountingError as error:
            unreachable = str(error)
        connection.execute(_QUERIES.text("become_owner"))
        connection.execute(_QUERIES.text("forget_cell"), {"cell": name})
        connection.execute(_QUERIES.text("forget_peaks_of_cell"), {"cell": name})
        with waiting_for_readers(connection):
            foreign_server.define_views(connection)
            foreign_server.drop_server(connection, name)
    return unreachable


def _joined_database(connection: Connection, name: str) -> UUID | None:
    row = connection.execute(_QUERIES.text("joined_database"), {"cell": name}).one_or_none()
    return None if row is None else row.database_id


def _check_billed(engine: Engine, connection: Connection, cell: cells.Cell) -> None:
    """Raise UsageError for a cell with usage that is in no statement of the front."""
    joined = _joined_database(connection, cell.cell)
    rows = connection.execute(_QUERIES.text("billed_of_database"), {"database_id": joined})
    billed = {(row.realm, row.period): row.cutoff for row in rows}
    try:
        with cells.open_cell(engine, cell) as cell_engine:
            if membership.read_database_id(cell_engine) != joined:
                raise UsageError("another database is there than the one that joined")
            with lost_connections(), cell_engine.connect() as cell_connection:
                periods = cell_connection.execute(_QUERIES.text("periods_in_cell")).all()
                late = cell_connection.execute(
                    _QUERIES.text("late_in_cell"), {"since": _copied_since(connection, cell.cell)}
                ).all()
    except AccountingError as error:
        raise UsageError(
            f"{error}: so nobody can tell what of its usage is not billed yet; to leave all the "
            "same: --without-its-usage"
        ) from error
    for row in periods:
        is_billed = (row.realm, row.period) in billed
        if row.cutoff is not None and billed.get((row.realm, row.period)) == row.cutoff:
            continue
        if cell.bill_from is not None and row.period < cell.bill_from and not is_billed:
            continue
        state = "has not closed it" if row.cutoff is None else "has closed it, the front has not"
        period = f"period {row.period}" if row.has_period else f"the period of {row.period}"
        raise UsageError(
            f"cell '{cell.cell}' has usage of realm '{row.realm}' in {period} that is not billed "
            f"here (the cell {state}): wait until `period list` has it closed; to leave all the "
            "same: --without-its-usage"
        )
    not_copied = connection.execute(
        _QUERIES.text("not_copied"),
        {
            "cell": cell.cell,
            "ids": [row.adjustment_id for row in late],
            "realms": [row.realm for row in late],
            "periods": [row.period for row in late],
        },
    ).first()
    if not_copied is not None:
        raise UsageError(
            f"cell '{cell.cell}' has late usage or an adjustment of realm '{not_copied.realm}' in "
            f"period {not_copied.period} that the front has not copied: wait until its job `bill` "
            "has; to leave all the same: --without-its-usage"
        )


def _copied_since(connection: Connection, name: str) -> str:
    since: str = connection.execute(
        _QUERIES.text("adjustments_copied_since"), {"cell": name}
    ).scalar_one()
    return since


@contextmanager
def _refusals() -> Iterator[None]:
    """Name the right that a login lacks."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, InsufficientPrivilege):
            raise NotAllowed(
                f"Postgres: {str(cause).splitlines()[0]}: a front is made, and cells join and "
                "leave, with a login that may create the extension postgres_fdw and act as "
                "turn_accounting_owner; a cell that asks for no password needs a superuser"
            ) from error
        if isinstance(cause, FeatureNotSupported | UndefinedFile):
            raise AccountingError(
                f"Postgres: {str(cause).splitlines()[0]}: install the extension "
                "postgres_fdw, which is part of PostgreSQL's own packages"
            ) from error
        raise


def list_cells(connection: Connection) -> list[cells.Cell]:
    """The cells of this front. Raises UsageError where it is none."""
    cells.require_front(connection)
    return cells.read_cells(connection)
