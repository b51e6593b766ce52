"""What routes read with: the database and the reader of the request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import cached_property
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request

from accounting.domain.calendar import from_micros
from accounting.domain.periods import wait_for_customers
from accounting.domain.statements import StatementCutoff
from accounting.errors import UsageError, unknown_name, unknown_user
from accounting.reporting import (
    billing_queries,
    limit_queries,
    previews,
    session_queries,
    usage_queries,
    view_queries,
    view_query,
)
from accounting.reporting.completeness import Progress, read_progress
from accounting.reporting.feed_pages import FeedPage, read_feed_page
from accounting.reporting.known_names import check_names
from accounting.reporting.live import LivePart
from accounting.reporting.overview import with_totals
from accounting.reporting.reader import DatabaseReader, Rows
from accounting.reporting.view_query import Arrangement, ViewQuery
from accounting.web.access.reader import Reader
from accounting.web.problems import no_such_address, not_found


class Books:
    """The books as far as the reader of this request may read them."""

    def __init__(self, database: DatabaseReader, reader: Reader) -> None:
        self._whole = database
        self._noted: Sequence[str] = ()
        self.reader = reader

    @cached_property
    def database(self) -> DatabaseReader:
        """What this request reads with: all of it leaves out the same cells of a front."""
        return self._whole.leaving_out()

    @property
    def without_cells(self) -> Sequence[str]:
        """The cells that are left out of what was read."""
        read_with = self.__dict__.get("database")
        return self._noted if read_with is None else read_with.without_cells

    def leave_no_cell_out(self) -> None:
        """Of bills and limits: CellAway is raised where a cell does not answer."""
        self.database = self._whole

    def note_without_cells(self, cells: Sequence[str]) -> None:
        """What was read otherwise leaves out these cells."""
        self._noted = cells

    def rows(self, query: ViewQuery, *, by_user: bool = False) -> list[Mapping[str, Any]]:
        """The rows of a query on a view. ``by_user``: see :meth:`Reader.restrict`."""
        return self._read(query, self.reader.restrict(query, by_user=by_user))

    def _read(self, asked: ViewQuery, restricted: ViewQuery) -> list[Mapping[str, Any]]:
        if self.reader.reads_all:
            return self.database.read_rows(restricted)
        if self.reader.asks_for_others(asked):
            # Not even looked up, since the time that it takes would show what there is.
            none = restricted.where("false")
            return Rows([], lambda: self.database.read_rows(none).columns())
        rows = self.database.read_rows(restricted)
        return Rows(map(_for_customers, rows), rows.columns)

    def limits(
        self,
        realm: str | None,
        arrangement: Arrangement,
        *,
        user_key: UUID | None = None,
        of_many: bool = False,
        limit_id: int | None = None,
    ) -> list[Mapping[str, Any]]:
        """Limits as :func:`limit_queries.limits` has them; to the reader of a user, the user's."""
        query = limit_queries.limits(
            self.realm(realm),
            user_key=self.user_key(user_key),
            of_many=of_many,
            arrangement=arrangement,
        )
        if limit_id is not None:
            query = query.where("limit_id = %(limit_id)s", limit_id=limit_id)
        own = query
        if self.reader.realm is not None:
            own = query.where("realm = %(own_realm)s", own_realm=self.reader.realm)
        return self._read(query, own)

    def sums(
        self, query: ViewQuery, sums_of: Callable[[ViewQuery], ViewQuery], *, by_user: bool
    ) -> Mapping[str, Any]:
        """The one row that ``sums_of`` makes of the rows that :meth:`rows` has."""
        [row] = self.database.read_rows(sums_of(self.reader.restrict(query, by_user=by_user)))
        return row

    def month_of_period(self, realm: str, period: date) -> Mapping[str, Any] | None:
        """The month of usage that an open period is, for a reader of the realm as a whole."""
        rows = self.rows(previews.month_of_period(realm, period))
        return rows[0] if rows else None

    def preview(
        self, realm: str, period: date, arrangement: Arrangement
    ) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
        """Lines of an open period, and the totals of all; the totals are empty without a line."""
        month = self.month_of_period(realm, period)
        if month is None:
            lines = billing_queries.statements(
                realm,
                period,
                user_key=self.user_key(None),
                preview=True,
                arrangement=arrangement,
            )
            query = with_totals(self.reader.restrict(lines, by_user=True))
        else:
            lines = previews.lines_of_month(month, arrangement)
            query = previews.with_month_totals(self.reader.restrict(lines, by_user=True), month)
        rows = self.database.read_rows(query)
        first = rows[0] if rows else {}
        mark = "total_"
        totals = {name[len(mark) :]: first[name] for name in first if name.startswith(mark)}
        return rows, totals

    def service_rows(self, query: ViewQuery) -> list[Mapping[str, Any]]:
        """Rows about the service and not about a realm: sources, gaps, notices.

        Only a reader of all gets any.
        """
        return self.database.read_rows(query) if self.reader.reads_all else []

    def progress(self) -> Progress:
        """How far usage is counted."""
        return read_progress(self.database)

    def require_all(self) -> None:
        """Raise the problem of an address that does not exist, unless everything may be read."""
        if not self.reader.reads_all:
            raise no_such_address()

    def require_realm(self) -> None:
        """As :meth:`require_all`, unless a realm may be read as a whole."""
        if not self.reader.reads_realm:
            raise no_such_address()

    def realm(self, wanted: str | None) -> str | None:
        """The realm to ask for: the wanted one, or the one of this reader."""
        return self.reader.realm if wanted is None else wanted

    def user_key(self, wanted: UUID | None) -> UUID | None:
        """The user to ask for: the wanted one, or the one of this reader."""
        return self.reader.user_key if wanted is None else wanted

    def live_part(self) -> LivePart:
        """The part of the live state."""
        return LivePart(realm=self.reader.realm, user_key=self.reader.user_key)

    def session(self, session_id: UUID) -> Mapping[str, Any]:
        """The row of a session. Raises the problem of an unknown one."""
        rows = self.rows(session_queries.sessions_by_id([session_id]), by_user=True)
        if not rows:
            raise not_found(f"no session {session_id} is known")
        return rows[0]

    def session_reports(
        self, session_id: UUID, after: Sequence[Any] | None, *, limit: int, most_scanned: int
    ) -> Rows:
        """Reports of a session, as :func:`session_queries.session_reports` says."""
        self.session(session_id)
        query = session_queries.session_reports(
            session_id, after=after, limit=limit, most_scanned=most_scanned
        )
        return self.database.read_rows(query)

    def feed(self, after: int, limit: int, history: UUID | None) -> FeedPage:
        """Events after a number. Raises FeedRestored."""
        events = self.reader.restrict(view_query.view("feed"), by_user=False)
        page = read_feed_page(self._whole, events, after=after, limit=limit, history=history)
        if self.reader.reads_all:
            return page
        return replace(page, events=[_for_customers(event) for event in page.events])

    def check_names(
        self, *, realm: str | None = None, user: str | None = None, source: str | None = None
    ) -> None:
        """Raise a problem for an unknown name, which suggests names that this reader may read.

        Call it when nothing was found.
        """
        try:
            self._check_names(realm, user, source)
        except UsageError as error:
            raise not_found(str(error)) from None

    def _check_names(self, realm: str | None, user: str | None, source: str | None) -> None:
        reader = self.reader
        if reader.realm is None:
            check_names(self.database, realm=realm, user=user, source=source)
            return
        if realm not in {None, reader.realm}:
            assert realm is not None
            raise unknown_name("realm", realm, [reader.realm])
        if user is not None:
            if reader.user_key is None:
                check_names(self.database, realm=reader.realm, user=user)
            else:
                usage = usage_queries.usage(by="user", per="month", user_key=reader.user_key)
                own = {row["user_id"] for row in self.rows(usage, by_user=True)}
                if user not in own:
                    raise unknown_user(reader.realm, user, own)

    def now(self) -> datetime:
        """The database's clock."""
        [clock] = self.database.read_rows(view_queries.database_now())
        now: datetime = clock["now"]
        return now


def _for_customers(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without what is the operator's: which sources a statement waited for, and how far."""
    shown = dict(row)
    if "waits_for" in row:
        shown["waits_for"] = wait_for_customers(row["waits_for"])
    if row.get("cutoff") is not None:
        settled_until = StatementCutoff.from_text(row["cutoff"]).settled_until
        shown["cutoff"] = None if settled_until is None else from_micros(settled_until)
    if isinstance(row.get("payload"), Mapping):
        payload = row["payload"]
        shown["payload"] = {name: payload[name] for name in payload if name != "without"}
    return shown


async def _books(request: Request) -> Books:
    # A coroutine, since it needs no thread.
    request.state.books = Books(request.app.state.database, request.state.reader)
    books: Books = request.state.books
    return books


BooksDependency = Annotated[Books, Depends(_books)]
