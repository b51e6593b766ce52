"""Runs queries on the views and returns their rows."""

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
from accounting.errors import AccountingError
from accounting.reporting.view_query import Row, ViewQuery

FETCHED_ROWS: Final = 1000
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
    ) -> None:
        """``reload_url``: as :class:`Connector` has it. ``idle_connections`` stay open.

        ``statement_seconds``: a statement that takes longer raises ConnectionLost, and none has
        parallel workers; 0: no limit.

        ``takes_role``: each transaction has the rights of the reader's role and nothing more,
        whatever those of the login; one that may not take the role raises NotAllowed.
        """
        self._connect = Connector(url, application_name, reload_url)
        self._most_idle = idle_connections
        self._statement_seconds = statement_seconds
        self._takes_role = takes_role
        self._idle: deque[psycopg.Connection] = deque()  # its methods are atomic

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def transaction(
        self, *, is_snapshot: bool = False, commits: bool = False
    ) -> Iterator[psycopg.Connection]:
        """A transaction; ``is_snapshot``: all its queries see the same.

        ``commits``: for functions that write. Raises NotAllowed and ConnectionLost.
        """
        with lost_connections():
            connection = self._begin(is_snapshot=is_snapshot)
            try:
                yield connection
                connection.commit() if commits else connection.rollback()
            except BaseException:
                connection.close()
                raise
            if len(self._idle) < self._most_idle:
                self._idle.append(connection)
            else:
                connection.close()

    def _begin(self, *, is_snapshot: bool) -> psycopg.Connection:
        """A connection in a new transaction. One that broke while it was idle is replaced."""
        while True:
            try:
                connection, was_idle = self._idle.pop(), True
            except IndexError:
                connection, was_idle = self._connect(), False
            try:
                connection.isolation_level = (
                    IsolationLevel.REPEATABLE_READ if is_snapshot else IsolationLevel.READ_COMMITTED
                )
                apply_settings(connection, as_reader=self._takes_role)
                if self._statement_seconds:
                    connection.execute(_BE_SHORT, [f"{self._statement_seconds}s"])
            except BaseException as error:
                connection.close()
                if not (was_idle and isinstance(error, psycopg.OperationalError)):
                    raise
            else:
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
