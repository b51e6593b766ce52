"""Sessions, and the reports that they were made of."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from accounting.domain.session_ids import parse_session_id
from accounting.reporting import session_queries
from accounting.reporting.filters import PARAMETER, time_span
from accounting.reporting.reader import Rows
from accounting.reporting.row_text import json_object
from accounting.reporting.session_queries import REPORT_KEY, SESSION_KEY
from accounting.reporting.view_query import Arrangement, Row
from accounting.web.api.cursor import Key
from accounting.web.api.listing import ListParameters, by_key, list_response
from accounting.web.api.openapi import COUNTED_UNTIL, describe, describe_list
from accounting.web.api.parameters import Realm, SessionUser, Since, Until, UserKey
from accounting.web.books import Books, BooksDependency
from accounting.web.problems import not_found
from accounting.web.render import json_response

router = APIRouter(tags=["sessions"])

SessionId = Annotated[str, Path(description="Its session_id, or the short id of the commands.")]

MOST_SCANNED: Final = 60_000
"""So many reports, of any session, are read for one page of a session's reports."""


@router.get("/sessions", responses=describe_list("Session", more=COUNTED_UNTIL))
def list_sessions(
    books: BooksDependency,
    wanted: ListParameters,
    realm: Realm = None,
    user: SessionUser = None,
    user_key: UserKey = None,
    since: Since = None,
    until: Until = None,
    live: Annotated[bool, Query(description="Only open sessions.")] = False,
) -> Response:
    """Sessions that were open at some time of a span, newest first.

    Times without an offset are UTC.
    """
    begin, end = time_span(since, until, dashes=PARAMETER)
    wanted = wanted.pinned(books, begin, end)

    def read(part: Arrangement) -> list[Row]:
        query = session_queries.sessions(
            realm=books.realm(realm),
            user=user,
            user_key=books.user_key(user_key),
            since=wanted.bound(begin),
            until=wanted.bound(end),
            live=live,
            arrangement=part,
        )
        return books.rows(query, by_user=True)

    return list_response(
        wanted,
        SESSION_KEY,
        by_key(SESSION_KEY, read),
        if_empty=lambda: books.check_names(realm=realm, user=user),
        progress=books.progress,
    )


@router.get("/sessions/{session_id}", responses=describe("Session"))
def show_session(books: BooksDependency, session_id: SessionId) -> Response:
    """One session."""
    return json_response(json_object(books.session(_parse_id(session_id))))


@router.get("/sessions/{session_id}/reports", responses=describe_list("SessionReport"))
def list_reports(books: BooksDependency, wanted: ListParameters, session_id: SessionId) -> Response:
    """The reports of a session in order, with their positions, unless they were dropped.

    They have no key, so that a request looks at all reports of a part of the session's time: a
    page may have fewer items than the limit, or none, and still a `next`.
    """
    found_id = _parse_id(session_id)

    def fetch(after: Key | None, limit: int) -> tuple[list[Row], Key | None]:
        return reports_page(books, found_id, after, limit)

    return list_response(wanted, REPORT_KEY, fetch)


def _parse_id(text: str) -> UUID:
    session_id = parse_session_id(text)
    if session_id is None:
        raise not_found(f"no session {text} is known")
    return session_id


def reports_page(
    books: Books, session_id: UUID, after: Key | None, limit: int
) -> tuple[list[Row], Key | None]:
    """Reports of a session, and the key to go on after; None at the end."""
    rows = books.session_reports(session_id, after, limit=limit + 1, most_scanned=MOST_SCANNED)
    until = rows.pop()["scanned_until"] if rows and rows[-1]["scanned_until"] else None
    reports: list[Row] = Rows(
        [{name: value for name, value in row.items() if name != "scanned_until"} for row in rows],
        lambda: [name for name in rows.columns() if name != "scanned_until"],
    )
    if len(reports) > limit:
        reports = reports[:limit]
        return reports, [reports[-1][name] for name in REPORT_KEY]
    return reports, None if until is None else [until, -1, -1]
