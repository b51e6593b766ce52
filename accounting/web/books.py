"""What routes read with: the engine and the reader of the request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Select

from accounting.db.engine import Engine
from accounting.reporting import view_queries
from accounting.reporting.reader import read_rows
from accounting.web.access.reader import Reader


class Books:
    """The books as far as the reader of this request may read them."""

    def __init__(self, engine: Engine, reader: Reader) -> None:
        self.engine = engine
        self.reader = reader

    def rows(self, query: Select[Any], *, by_user: bool = False) -> list[Mapping[str, Any]]:
        """The rows of a query on a view. ``by_user``: see :meth:`Reader.restrict`."""
        return read_rows(self.engine, self.reader.restrict(query, by_user=by_user))

    def service_rows(self, query: Select[Any]) -> list[Mapping[str, Any]]:
        """Rows about the service and not about a realm: sources, gaps, notices.

        Only a reader of all gets any.
        """
        return read_rows(self.engine, query) if self.reader.reads_all else []

    def now(self) -> datetime:
        """The database's clock."""
        [clock] = read_rows(self.engine, view_queries.database_now())
        now: datetime = clock["now"]
        return now


def _books(request: Request) -> Books:
    return Books(request.app.state.engine, request.state.reader)


BooksDependency = Annotated[Books, Depends(_books)]
