"""What routes read with: the database and the reader of the request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Request

from accounting.reporting import view_queries
from accounting.reporting.reader import Reader as DatabaseReader
from accounting.reporting.view_queries import ViewQuery
from accounting.web.access.reader import Reader


class Books:
    """The books as far as the reader of this request may read them."""

    def __init__(self, database: DatabaseReader, reader: Reader) -> None:
        self.database = database
        self.reader = reader

    def rows(self, query: ViewQuery, *, by_user: bool = False) -> list[Mapping[str, Any]]:
        """The rows of a query on a view. ``by_user``: see :meth:`Reader.restrict`."""
        return self.database.read_rows(self.reader.restrict(query, by_user=by_user))

    def service_rows(self, query: ViewQuery) -> list[Mapping[str, Any]]:
        """Rows about the service and not about a realm: sources, gaps, notices.

        Only a reader of all gets any.
        """
        return self.database.read_rows(query) if self.reader.reads_all else []

    def now(self) -> datetime:
        """The database's clock."""
        [clock] = self.database.read_rows(view_queries.database_now())
        now: datetime = clock["now"]
        return now


def _books(request: Request) -> Books:
    return Books(request.app.state.database, request.state.reader)


BooksDependency = Annotated[Books, Depends(_books)]
