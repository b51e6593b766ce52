"""Runs queries on the views and returns their rows."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel
from psycopg.errors import (
    InvalidSchemaName,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedTable,
)
from psycopg.rows import dict_row

from accounting.db.connection import Connector, lost_connections
from accounting.db.connection_settings import apply_settings
from accounting.errors import AccountingError, ConnectionLost
from accounting.reporting.cell_watch import CellWatch, name_cell
from accounting.reporting.cells import AwayCells, joined_cells
from accounting.reporting.view_query import Row, ViewQuery

FETCHED_ROWS: Final = 1000
_WITHOUT: Final = "turn_accounting.without_cells"
_BE_SHORT: Final = (
    "SELECT set_config('statement_timeout', %s, true),"
    " set_config('max_parallel_workers_per_gather', '0', true)"
)
"""For short statements: parallel workers would take longer to start than they save."""
_LACKING: Final = (InvalidSchemaName, UndefinedTable, UndefinedColumn, UndefinedFunction)


class Rows(list[Row]):
    """Rows. ``columns()`` has their names, also where there is no row."""

    def __init__(self, rows: Iterable[Row], columns: Callable[[], Sequence[str]]) -> None:
        super().__init__(rows)
        self.columns = columns


class DatabaseReader:
    """Connections with the reader's rights, for any number of threads.

    One is opened when none is idle, and closed after an error. They are psycopg's own: a command
    that reads would wait longer for SQLAlchemy to be imported than for its rows.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "turn-accounting",
        reload_url: Callable[[], str] | None = None,
        idle_connections: int = 1,
        statement_seconds: int = 0,
        takes_role: bool = False,
        leaves_out_cells: bool = False,
    ) -> None:
        """``reload_url``: as :class:`Connector` has it. ``idle_connections`` stay open.

        ``statement_seconds``: a statement that takes longer raises ConnectionLost, and none has
        parallel workers; 0: no limit.

        ``takes_role``: each transaction has the rights of the reader's role and nothing more,
        whatever those of the login; one that may not take the role raises NotAllowed.

        ``leaves_out_cells``: whether :meth:`leaving_out` may, on a front. Without it, each read of
        a cell that does not answer raises CellAway, also where the cell hangs.
        """
        self._connect = Connector(url, application_name, reload_url)
        self._away = AwayCells(self._connect)
        self._leaves_out_cells = leaves_out_cells
        self._lock = threading.Lock()
        self._leaving_out: DatabaseReader | None = None
        self._is_closed = False
        self.without_cells: tuple[str, ...] = ()
        """The cells that are left out: what is read is incomplete."""
        self._is_front: bool | None = None
        self._most_idle = idle_connections
        self._statement_seconds = statement_seconds
        self._takes_role = takes_role
        self._idle: deque[psycopg.Connection] = deque()  # its methods are atomic

    def close(self) -> None:
        """Close the idle connections, and those in use once they are not."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()
        if self._leaving_out is not None:
            self._leaving_out.close()

    def leaving_out(self) -> "DatabaseReader":
        """What to read with, without the cells that do not answer now; see ``without_cells``.

        This reader where all answer, or where it may leave none out. The sessions of another one
        are opened with the setting that leaves cells out, since Postgres keeps plans.
        """
        if self.without_cells or not self._leaves_out_cells:
            return self
        away = tuple(sorted(self._away.lately()))
        if not away:
            return self
        with self._lock:
            if self._leaving_out is None or self._leaving_out.without_cells != away:
                if self._leaving_out is not None:
                    self._leaving_out.close()
                connect = self._connect.with_settings({_WITHOUT: ",".join(away)})
                self._leaving_out = other = copy.copy(self)
                vars(other).update(
                    _connect=connect, _idle=deque(), _leaving_out=None, without_cells=away
                )
            return self._leaving_out

    @contextmanager
    def transaction(
        self, *, is_snapshot: bool = False, commits: bool = False
    ) -> Iterator[psycopg.Connection]:
        """A transaction; ``is_snapshot``: all its queries see the same.

        ``commits``: for functions that write. Raises NotAllowed and ConnectionLost.
        """
        watch: CellWatch | None = None
        try:
            with lost_connections():
                connection = self._begin(is_snapshot=is_snapshot)
                if self._is_front:
                    watch = CellWatch(connection, self._away)
                try:
                    try:
                        yield connection
                        connection.commit() if commits else connection.rollback()
                    finally:
                        if watch is not None:
                            watch.end()
                except BaseException:
                    connection.close()
                    raise
                if len(self._idle) < self._most_idle and not self._is_closed:
                    self._idle.append(connection)
                else:
                    connection.close()
        except ConnectionLost as error:
            if not self._is_front:
                raise
            away = {} if watch is None else watch.away
            raise name_cell(
                error, self._away, away, without=self.without_cells
            ) from error.__cause__

    def _begin(self, *, is_snapshot: bool) -> psycopg.Connection:
        """A connection in a new transaction. One that broke while it was idle is replaced."""
        while True:
            try:
                connection, was_idle = self._idle.pop(), True
            except IndexError:
                connection, was_idle = self._open(), False
            try:
                connection.isolation_level = (
                    IsolationLevel.REPEATABLE_READ if is_snapshot else IsolationLevel.READ_COMMITTED
                )
                apply_settings(
                    connection,
                    as_reader=self._takes_role,
                    without_cells=self.without_cells,
                    is_front=bool(self._is_front),
                )
                if self._statement_seconds:
                    connection.execute(_BE_SHORT, [f"{self._statement_seconds}s"])
            except BaseException as error:
                connection.close()
                if not (was_idle and isinstance(error, psycopg.OperationalError)):
                    raise
            else:
                return connection

    def _open(self) -> psycopg.Connection:
        connection = self._connect()
        try:
            self._is_front = bool(joined_cells(connection))
            if self.without_cells:
                _require_setting(connection, self.without_cells)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def open_rows(self, query: ViewQuery) -> Iterator[Iterator[Row]]:
        """Stream the rows of a query within the block, named by the columns of the view.

        Raises AccountingError where the database lacks the view or a column, NotAllowed and
        ConnectionLost.
        """
        with self.transaction() as connection:
            yield _stream(connection, query)

    @contextmanager
    def open_rows_and_sums(
        self, query: ViewQuery, sums_query: ViewQuery
    ) -> Iterator[tuple[Row, Iterator[Row]]]:
        """As :meth:`open_rows`, with the one row of another query on the same snapshot."""
        with self.transaction(is_snapshot=True) as connection:
            [sums] = _stream(connection, sums_query)
            yield sums, _stream(connection, query)

    def read_rows(self, query: ViewQuery) -> Rows:
        """Return all rows of a query. Raises as :meth:`open_rows`."""
        columns: list[str] = []
        with self.transaction() as connection:
            return Rows(_stream(connection, query, columns), lambda: columns)


def _require_setting(connection: psycopg.Connection, cells: Sequence[str]) -> None:
    """Raise AccountingError where a pooler has dropped the setting of the session."""
    row = connection.execute("SELECT current_setting(%s, true)", [_WITHOUT]).fetchone()
    connection.rollback()
    if row != (",".join(cells),):
        raise AccountingError(
            "a pooler in front of Postgres drops the setting that leaves cells out: with "
            "ACCOUNTING_CELLS_AWAY=leave_out connect to Postgres itself"
        )


def _stream(
    connection: psycopg.Connection, query: ViewQuery, columns: list[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Read rows. ``columns`` receives the names of their columns before the first one is read."""
    with connection.cursor("rows", row_factory=dict_row) as cursor:
        cursor.itersize = FETCHED_ROWS
        try:
            cursor.execute(query.text.encode(), query.values)
        except _LACKING as error:
            raise AccountingError(
                f"Postgres: {str(error).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        if columns is not None and cursor.description is not None:
            columns += [column.name for column in cursor.description]
        yield from cursor
