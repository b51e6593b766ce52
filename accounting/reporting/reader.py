"""Runs queries on the views and returns their rows."""

from collections.abc import Callable, Iterator, Mapping
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
from accounting.reporting.view_queries import Row, ViewQuery

FETCHED_ROWS: Final = 1000
_LACKING: Final = (InvalidSchemaName, UndefinedTable, UndefinedColumn, UndefinedFunction)


class Reader:
    """One connection, for transactions that write nothing.

    It is opened when it is first used, and again after an error. It is one of psycopg: a command
    that reads would wait longer for SQLAlchemy to be imported than for its rows.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "turn-accounting",
        reload_url: Callable[[], str] | None = None,
    ) -> None:
        """``reload_url``: as :class:`Connector` has it."""
        self._connect = Connector(url, application_name, reload_url)
        self._connection: psycopg.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def transaction(self, *, is_snapshot: bool = False) -> Iterator[psycopg.Connection]:
        """A transaction; ``is_snapshot``: all its queries see the same. None within another.

        Raises NotAllowed and ConnectionLost.
        """
        with lost_connections():
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            connection = self._connection
            connection.isolation_level = (
                IsolationLevel.REPEATABLE_READ if is_snapshot else IsolationLevel.READ_COMMITTED
            )
            try:
                apply_settings(connection)
                yield connection
                connection.rollback()
            except BaseException:
                connection.close()
                raise

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

    def read_rows(self, query: ViewQuery) -> list[Row]:
        """Return all rows of a query. Raises as :meth:`open_rows`."""
        with self.open_rows(query) as rows:
            return list(rows)


def _stream(connection: psycopg.Connection, query: ViewQuery) -> Iterator[Mapping[str, Any]]:
    with connection.cursor("rows", row_factory=dict_row) as cursor:
        cursor.itersize = FETCHED_ROWS
        try:
            cursor.execute(query.text.encode(), query.values)
        except _LACKING as error:
            raise AccountingError(
                f"Postgres: {str(error).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        yield from cursor
