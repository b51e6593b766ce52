"""The cells of a front, and connections to their databases."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, NamedTuple

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from accounting.db import migrations
from accounting.db.connection import missing_tables
from accounting.db.engine import lost_connections, private_connection, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.errors import (
    AccountingError,
    CellAway,
    ConnectionLost,
    UsageError,
    nearest_names,
    unknown_name,
)
from accounting.front.cell_engine import open_cell_engine
from accounting.reporting.cell_watch import CellWatch, name_cell
from accounting.reporting.cells import AwayCells

_QUERIES: Final = Queries("accounting.front")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell as its front knows it. ``url``: without a password.

    ``bill_from``: the first period that the front bills of it; None for all.

    ``revision``: of its schema when its views were imported, and ``front_revision`` of the front's.
    """

    cell_id: int
    cell: str
    url: str
    revision: str
    front_revision: str
    joined_at: datetime
    bill_from: date | None


class Membership(NamedTuple):
    """What a cell knows of its front. ``front``: the name of the installation."""

    front: str
    cell: str


def is_front(connection: Connection) -> bool:
    """Whether this database is a front."""
    return bool(connection.execute(_QUERIES.text("is_front")).scalar_one())


def require_front(connection: Connection) -> None:
    """Raise UsageError unless this database is a front."""
    if not is_front(connection):
        raise UsageError(
            "this database is no front: `turn-accounting front init` makes one of an empty database"
        )


def read_membership(connection: Connection) -> Membership | None:
    """The front of which this database is a cell, if it is one."""
    row = connection.execute(_QUERIES.text("read_membership")).one_or_none()
    return None if row is None else Membership(*row)


def is_for_all_cells(engine: Engine, what: str) -> bool:
    """Whether a command works in all cells of a front. Raises UsageError in one of them.

    ``what``: what it does there, for the error.
    """
    with lost_connections(), engine.connect() as connection:
        if is_front(connection):
            return True
        membership = read_membership(connection)
    if membership is not None:
        raise UsageError(
            f"this database is the cell '{membership.cell}' of a front: {what} on the front, for "
            "all cells at once"
        )
    return False


def refuse_front(engine: Engine, source: str | None = None) -> None:
    """Raise UsageError on a front, for what works in a cell: in that which has the source."""
    with lost_connections(), engine.connect() as connection:
        if not is_front(connection):
            return
        names = [cell.cell for cell in read_cells(connection)]
    if source is not None:
        with reading_cells(engine) as connection:
            of_source = (
                connection.execute(_QUERIES.text("find_source"), {"source": source}).scalars().all()
            )
        if of_source:
            raise UsageError(
                f"this database is a front, and source '{source}' is in cell "
                f"'{of_source[0]}': run this on that cell's database"
            )
    raise UsageError(
        f"this database is a front: run this on the database of a cell: {nearest_names('', names)}"
    )


def read_cells(connection: Connection) -> list[Cell]:
    """The cells of this front, by name; none where it is no front."""
    rows = connection.execute(_QUERIES.text("read_cells")).mappings()
    return [Cell(**row) for row in rows]


def find_cell(connection: Connection, name: str) -> Cell:
    """A cell by its name. Raises UsageError for an unknown one."""
    cells = {cell.cell: cell for cell in read_cells(connection)}
    if name not in cells:
        raise unknown_name("cell", name, cells.keys())
    return cells[name]


MAX_STATEMENT_SECONDS: Final = 600.0
"""A job does not wait for longer for a cell that lets in and never answers."""
TOUCH_SECONDS: Final = 20.0
"""A row of each cell takes milliseconds."""


@contextmanager
def reading_cells(
    engine: Engine,
    *,
    only: str | None = None,
    statement_seconds: float = MAX_STATEMENT_SECONDS,
) -> Iterator[Connection]:
    """A transaction on the front that reads all its cells, or one.

    Each answers before the transaction begins, so that none that hangs keeps what is locked in it,
    and that it is the database of that cell: another one has other closings, or none at all.
    One that stops to answer later ends it. Raises CellAway then, and UsageError where this is no
    front. A statement that takes longer than ``statement_seconds`` is a lost connection; 0: none.
    """
    away = AwayCells(lambda: private_connection(engine))
    with lost_connections(), engine.connect() as connection:
        with connection.begin():
            require_front(connection)
            was_away = connection.execute(_QUERIES.text("was_away"), {"cell": only}).scalar_one()
        if was_away:  # over sessions of their own: they end at once
            for cell, reason in away.now(only=only).items():
                raise CellAway(cell, reason)
        with _watched(connection, away), connection.begin():
            limit_statements(connection, TOUCH_SECONDS)
            foreign = list(
                connection.execute(_QUERIES.text("touch_cells"), {"cell": only}).scalars()
            )
        if foreign:
            reasons = away.now(only=only)
            raise CellAway(foreign[0], reasons.get(foreign[0], "its database is being restored"))
        with _watched(connection, away), connection.begin():
            connection.execute(_QUERIES.text("forget_plans"))
            limit_statements(connection, statement_seconds)
            yield connection


def limit_statements(connection: Connection, seconds: float) -> None:
    """End each later statement of the transaction that takes longer; 0: none."""
    milliseconds = str(round(seconds * 1000))
    connection.execute(_QUERIES.text("limit_statements"), {"milliseconds": milliseconds})


@contextmanager
def _watched(connection: Connection, cells: AwayCells) -> Iterator[None]:
    """End what the connection waits for in the block if that is a cell that does not answer."""
    watch = CellWatch(psycopg_connection(connection), cells)
    try:
        with lost_connections():
            yield
    except ConnectionLost as error:
        raise name_cell(error, cells, watch.away) from error.__cause__
    finally:
        watch.end()


@contextmanager
def open_cell(engine: Engine, cell: Cell) -> Iterator[Engine]:
    """The database of a cell, with the rights of the front's login there.

    Within the block, errors name the cell.
    """
    with errors_of_cell(cell.cell), connect_cell(engine, cell) as cell_engine:
        yield cell_engine


@contextmanager
def connect_cell(engine: Engine, cell: Cell) -> Iterator[Engine]:
    """As :func:`open_cell`, for a block that works in several cells, and names each by itself."""
    with lost_connections(), engine.connect() as connection:
        password = connection.execute(
            _QUERIES.text("cell_password"), {"cell": cell.cell}
        ).scalar_one()
    with open_cell_engine(cell.url, password) as cell_engine:
        yield cell_engine


@contextmanager
def open_cells(engine: Engine) -> Iterator[Mapping[str, Engine]]:
    """The databases of all cells by name, for what works in several at once.

    It names its errors itself: see :func:`errors_of_cell`.
    """
    with lost_connections(), engine.connect() as connection:
        passwords = [
            (cell, connection.execute(_QUERIES.text("cell_password"), {"cell": cell.cell}).scalar())
            for cell in read_cells(connection)
        ]
    with ExitStack() as stack:
        yield {
            cell.cell: stack.enter_context(open_cell_engine(cell.url, password))
            for cell, password in passwords
        }


@contextmanager
def errors_of_cell(name: str) -> Iterator[None]:
    """Name the cell in the errors of the block. One whose tables are missing is away."""
    try:
        yield
    except ConnectionLost as error:
        raise ConnectionLost(f"cell '{name}': {error}") from error
    except AccountingError as error:
        raise type(error)(f"cell '{name}': {error}") from error
    except (psycopg.Error, DBAPIError) as error:
        if (reason := missing_tables(error)) is None:
            raise
        raise ConnectionLost(f"cell '{name}': Postgres: {reason}") from error


def require_same_revision(engine: Engine) -> None:
    """Raise AccountingError for a cell whose tables may be others than this version's.

    ConnectionLost for one that has none at the moment.
    Views of a cell can be read at another revision, but only this version writes into its tables.
    """
    revision, required = migrations.current_revision(engine), head_revision()
    if revision is None:
        raise ConnectionLost("has no tables: the database is being restored")
    if revision != required:
        older = "the front" if revision > required else "it"
        raise AccountingError(
            f"is at revision {revision}, and this version knows {required}: upgrade {older} first"
        )
