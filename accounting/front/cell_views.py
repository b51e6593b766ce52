"""The foreign tables of cells, and the views over them, after an upgrade of either."""

from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db import migrations
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, waiting_for_readers
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision
from accounting.front import foreign_server
from accounting.front.cells import Cell, is_front, open_cell

_QUERIES: Final = Queries("accounting.front")


def upgrade(engine: Engine) -> str:
    """Upgrade a database to this version's schema; returns its revision.

    The views of a front are defined over its cells in the same transaction, so that nothing ever
    reads those that an upgrade defines over the front's own empty tables. A cell's views are
    imported again by the job ``share``: its columns that are new are null until then.
    """
    return migrations.upgrade(engine, finish=_define_front)


def _define_front(connection: Connection) -> None:
    if is_front(connection):
        foreign_server.define_views(connection)
        foreign_server.define_functions(connection)


def import_changed_views(engine: Engine, cell: Cell) -> int:
    """Import the views of a cell that was upgraded since, or whose front was; returns whether.

    Not those of a cell that is newer than the front, which reads it as before.
    """
    with open_cell(engine, cell) as cell_engine:
        revision = migrations.current_revision(cell_engine)
    if revision is None or revision > head_revision():
        return 0
    if (revision, head_revision()) == (cell.revision, cell.front_revision):
        return 0
    with lost_connections(), engine.begin() as connection:
        lock(connection, "cells")
        with waiting_for_readers(connection):
            foreign_server.import_views(connection, cell.cell, revision)
    return 1
