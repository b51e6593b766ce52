"""The cells of a front, and connections to their databases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from accounting.db import migrations
from accounting.db.connection import missing_tables
from accounting.db.engine import lost_connections, open_engine
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.errors import (
    AccountingError,
    ConnectionLost,
    UsageError,
    nearest_names,
    unknown_name,
)
from accounting.front.cell_url import with_password

_QUERIES: Final = Queries("accounting.front")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell as its front knows it. ``url``: without a password.

    ``revision``: of its schema when its views were imported, and ``front_revision`` of the front's.
    """

    cell_id: int
    cell: str
    url: str
    revision: str
    front_revision: str
    joined_at: datetime


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
        raise UsageError("this database is no front: `turn-accounting front init` makes it one")


def read_membership(connection: Connection) -> Membership | None:
    """The front of which this database is a cell, if it is one."""
    row = connection.execute(_QUERIES.text("read_membership")).one_or_none()
    return None if row is None else Membership(*row)


def refuse_front(engine: Engine, source: str | None = None) -> None:
    """Raise UsageError on a front, for what works in a cell: in that which has the source."""
    with lost_connections(), engine.connect() as connection:
        if not is_front(connection):
            return
        names = [cell.cell for cell in read_cells(connection)]
        if source is not None and (
            of_source := connection.execute(_QUERIES.text("find_source"), {"source": source})
            .scalars()
            .all()
        ):
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
    cell_engine = _engine(cell.url, password)
    try:
        yield cell_engine
    finally:
        cell_engine.dispose()


@contextmanager
def open_cell_url(name: str, url: str, password: str | None) -> Iterator[Engine]:
    """As :func:`open_cell`, for a cell that the front does not know yet."""
    cell_engine = _engine(url, password)
    try:
        with errors_of_cell(name):
            yield cell_engine
    finally:
        cell_engine.dispose()


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
    engines = {cell.cell: _engine(cell.url, password) for cell, password in passwords}
    try:
        yield engines
    finally:
        for cell_engine in engines.values():
            cell_engine.dispose()


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


def _engine(url: str, password: str | None) -> Engine:
    return open_engine(with_password(url, password), application_name="turn-accounting front")


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
