"""What pages read beyond the lists of the API, as far as the reader of the request may."""

import threading
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request

from accounting.export.atomic_file import ByteSink
from accounting.export.export import export_to_stream
from accounting.export.parquet_process import write_parquet_in_child
from accounting.export.selection import ExportFormat, Selection
from accounting.reporting import overview, view_queries, view_query
from accounting.reporting.completeness import (
    Counted,
    NotCaptured,
    not_captured_in,
    span_waits_for,
)
from accounting.reporting.view_query import Bound, ViewQuery
from accounting.web.books import Books
from accounting.web.problems import Problem, not_found

_ONE_EXPORT: Final = threading.Lock()
"""A file at a time: the process that writes Parquet takes 100 MB."""
MOST_EXPORTS: Final = 3
_PLACES: Final = threading.BoundedSemaphore(MOST_EXPORTS)
"""For it and those that wait: each holds one of the threads that serve all requests."""
RETRY_SECONDS: Final = 5


class PageBooks(Books):
    """The books for a page."""

    def rows_of_realm(self, query: ViewQuery) -> list[Mapping[str, Any]]:
        """Rows about a realm as a whole that also its users may read, such as its periods."""
        own = query
        if self.reader.realm is not None:
            own = query.where("realm = %(own_realm)s", own_realm=self.reader.realm)
        return self._read(query, own)

    def erased(self, rows: Iterable[Mapping[str, Any]]) -> frozenset[UUID]:
        """The keys of those users in rows whose name was erased."""
        nameless = {row["user_key"] for row in rows if not row["user_id"]}
        if not nameless:
            return frozenset()
        query = overview.erased_users(nameless)
        return frozenset(row["user_key"] for row in self.database.read_rows(query))

    def gaps_between(self, since: datetime, until: datetime, most: int) -> list[Mapping[str, Any]]:
        """The capture gaps of a span, the newest. Sources and details are for a reader of all."""
        query = view_queries.gaps(
            since=since, until=until, arrangement=view_query.Arrangement(limit=most)
        )
        gaps = self.database.read_rows(query)
        if self.reader.reads_all:
            return gaps
        return [{**gap, "source": None, "detail": None} for gap in gaps]

    def lapses(
        self, until: Bound | None = None, source: str | None = None
    ) -> Collection[NotCaptured]:
        """What is not captured now, and no gap says so; only a reader of all gets any."""
        return not_captured_in(self.database, until, source) if self.reader.reads_all else []

    def not_counted(self, realm: str) -> str | None:
        """What usage of a realm lacks, which names sources: only for a reader of all."""
        if not self.reader.reads_all:
            return None
        return span_waits_for(self.database, realm, Counted.USAGE)

    def export(self, selection: Selection, form: ExportFormat, sink: ByteSink) -> None:
        """Write what ``export`` does, of a realm that the reader may read as a whole."""
        reader = self.reader
        if not reader.reads_realm or not reader.may_read_realm(selection.realm or ""):
            raise not_found("no such export")
        if not _PLACES.acquire(blocking=False):
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise Problem(503, "Service Unavailable", "other files are being written", headers)
        try:
            with _ONE_EXPORT:
                export_to_stream(
                    self.database,
                    selection,
                    form,
                    sink,
                    write_parquet=write_parquet_in_child,
                )
        finally:
            _PLACES.release()


async def _page_books(request: Request) -> PageBooks:  # async: needs no thread
    request.state.books = PageBooks(request.app.state.database, request.state.reader)
    books: PageBooks = request.state.books
    return books


PageBooksDependency = Annotated[PageBooks, Depends(_page_books)]
