"""Runs queries on the views and returns their rows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from psycopg.errors import (
    InvalidSchemaName,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedTable,
)
from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import ProgrammingError

from accounting.db.engine import lost_connections
from accounting.errors import AccountingError

Row = Mapping[str, Any]
ViewQuery = Select[Any]
_LACKING: Final = (InvalidSchemaName, UndefinedTable, UndefinedColumn, UndefinedFunction)


@contextmanager
def open_rows(engine: Engine, query: ViewQuery) -> Iterator[Iterator[Row]]:
    """Stream the rows of a query within the block, named by the columns of the view.

    Raises AccountingError where the database lacks the view or a column, NotAllowed and
    ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        yield _stream(connection, query)


@contextmanager
def open_rows_and_sums(
    engine: Engine, query: ViewQuery, sums_query: ViewQuery
) -> Iterator[tuple[Row, Iterator[Row]]]:
    """As :func:`open_rows`, with the one row of another query on the same snapshot."""
    with lost_connections(), engine.connect() as connection:
        snapshot = connection.execution_options(isolation_level="REPEATABLE READ")
        [sums] = _stream(snapshot, sums_query)
        yield sums, _stream(snapshot, query)


def read_rows(engine: Engine, query: ViewQuery) -> list[Row]:
    """Return all rows of a query. Raises as :func:`open_rows`."""
    with open_rows(engine, query) as rows:
        return list(rows)


def _stream(connection: Connection, query: ViewQuery) -> Iterator[Row]:
    try:
        result = connection.execution_options(stream_results=True).execute(query)
    except ProgrammingError as error:
        if isinstance(error.orig, _LACKING):
            raise AccountingError(
                f"Postgres: {str(error.orig).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        raise
    for row in result.mappings():
        yield dict(row)
