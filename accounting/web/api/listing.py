"""Lists: a page as JSON with a cursor for the next one, or all of it as JSON Lines or CSV.

All of a list is read page by page too, so that a client which reads slowly, or goes away, holds no
connection to Postgres and no snapshot; and that a token which is revoked meanwhile reads no
further.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from accounting.errors import AccountingError, UsageError
from accounting.reporting.completeness import Progress
from accounting.reporting.reader import Rows
from accounting.reporting.row_text import csv_line, json_object
from accounting.reporting.view_query import Arrangement, Bound, Row, as_of
from accounting.web.api.cursor import (
    MOST_CHARACTERS,
    Key,
    binding,
    encode_cursor,
    open_cursor,
    parse_key,
)
from accounting.web.books import Books
from accounting.web.problems import AnswerCut, Problem
from accounting.web.render import items_response, route_path, without_cells

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
STREAMED_ROWS: Final = 1000
"""So many rows of a streamed list are read at once."""
CSV_TYPE: Final = "text/csv"
JSON_LINES_TYPE: Final = "application/jsonl"

Fetch = Callable[[Key | None, int], tuple[list[Row], Key | None]]
"""Reads at most so many rows after a key, and the key to go on after; None at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """How a list was asked for. ``bound_to``: see :mod:`accounting.web.api.cursor`.

    ``after``: what a cursor's key is made of. ``as_of``: when the first page was read, if the
    filters have relative times. ``identify`` raises a Problem once the token is not valid any more.
    ``without_cells``: those of a front that are left out of what was read.
    """

    form: Literal["json", "jsonl", "csv"]
    limit: int | None
    bound_to: str
    after: Sequence[Any] | None
    as_of: datetime | None
    identify: Callable[[], object]
    without_cells: Callable[[], Sequence[str]]

    def pinned(self, books: Books, *bounds: Bound | None) -> "ListRequest":
        """The request as of now, if it is for the first page and one of the bounds is relative."""
        if self.as_of is not None or all(isinstance(bound, datetime | None) for bound in bounds):
            return self
        return replace(self, as_of=books.now())

    def bound(self, bound: Bound | None) -> Bound | None:
        """A bound, which is the same for all pages."""
        return bound if self.as_of is None else as_of(bound, self.as_of)


async def _list_request(
    request: Request,
    limit: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_LIMIT,
            description="At most so many items; json: 100 by default, jsonl and csv: all.",
        ),
    ] = None,
    cursor: Annotated[
        str | None,
        Query(
            max_length=MOST_CHARACTERS,
            description="Go on where a page ended: its `next`, with the same filters.",
        ),
    ] = None,
    form: Annotated[
        Literal["json", "jsonl", "csv"],
        Query(alias="format", description="jsonl and csv stream everything that matches."),
    ] = "json",
) -> ListRequest:
    filters = {
        name: value
        for name, value in request.query_params.items()
        if name not in {"limit", "cursor", "format"}
    }
    bound_to = binding(route_path(request.scope), filters)
    after, resolved_at = (None, None) if cursor is None else open_cursor(cursor, bound_to)
    return ListRequest(
        form=form,
        limit=limit,
        bound_to=bound_to,
        after=after,
        as_of=resolved_at,
        identify=request.state.identify,
        without_cells=lambda: without_cells(request.scope),
    )


ListParameters = Annotated[ListRequest, Depends(_list_request)]


def by_key(key: tuple[str, ...], read: Callable[[Arrangement], list[Row]]) -> Fetch:
    """Pages of a query that is in the order of its ``key``."""

    def fetch(after: Key | None, limit: int) -> tuple[list[Row], Key | None]:
        rows = read(Arrangement(limit=limit + 1, after=after))
        if len(rows) <= limit:
            return rows, None
        return rows[:limit], [rows[limit - 1][name] for name in key]

    return fetch


def list_response(
    wanted: ListRequest,
    key: tuple[str, ...],
    fetch: Fetch,
    *,
    if_empty: Callable[[], None] = lambda: None,
    more: Callable[[], Row] = dict,
    progress: Callable[[], Progress] | None = None,
) -> Response:
    """The answer of a list. ``if_empty`` may raise when there is nothing at all.

    ``more``: members of the JSON beside the items. ``progress``: of a list that grows while
    reports are counted; the answer says how far it is.
    """
    # Before the rows are read, so that they have at least that much.
    counted = {} if progress is None else {"counted_until": progress().until}
    after = None if wanted.after is None else parse_key(wanted.after, key)
    if wanted.form == "json":
        rows, end = fetch(after, wanted.limit or DEFAULT_LIMIT)
        if not rows and after is None and end is None:
            if_empty()
        cursor = None if end is None else encode_cursor(wanted.bound_to, end, wanted.as_of)
        return items_response(rows, cursor, {**counted, **more(), **_incomplete(wanted)})
    pages = _pages(fetch, after, wanted.limit, wanted.identify)
    first = next(pages)
    if not first and after is None:
        if_empty()
    return _stream(wanted, chain([first], pages), counted)


def rows_response(
    wanted: ListRequest, rows: list[Row], progress: Progress | None = None
) -> Response:
    """The answer of a list that is always whole."""
    counted = {} if progress is None else {"counted_until": progress.until}
    if wanted.after is not None:
        raise UsageError("cursor: this list has one page")
    if wanted.limit is not None and len(rows) > wanted.limit:
        rows = rows[: wanted.limit]
    if wanted.form == "json":
        return items_response(rows, None, {**counted, **_incomplete(wanted)})
    return _stream(wanted, iter([rows]), counted)


def _incomplete(wanted: ListRequest) -> Mapping[str, Sequence[str]]:
    cells = wanted.without_cells()
    return {"without_cells": cells} if cells else {}


def _pages(
    fetch: Fetch, after: Key | None, limit: int | None, identify: Callable[[], object]
) -> Iterator[list[Row]]:
    """Pages until the end or the limit; only the last one may be empty.

    ``identify`` is called between them.
    """
    is_first = True
    while limit is None or limit > 0:
        if not is_first:
            identify()
        is_first = False
        rows, after = fetch(after, STREAMED_ROWS if limit is None else min(limit, STREAMED_ROWS))
        if limit is not None:
            limit -= len(rows)
        if rows or after is None:
            yield rows
        if after is None:
            return


def _stream(
    wanted: ListRequest, pages: Iterator[list[Row]], counted: Mapping[str, datetime | None]
) -> Response:
    """All pages; how far they are counted is in the head of the answer."""
    headers = {
        f"X-{name.replace('_', '-')}": time.astimezone(UTC).isoformat()
        for name, time in counted.items()
        if time is not None
    }
    pages = _or_cut(pages)
    if wanted.form == "csv":
        return StreamingResponse(
            _csv(pages), media_type=f"{CSV_TYPE}; charset=utf-8", headers=headers
        )
    return StreamingResponse(_json_lines(pages), media_type=JSON_LINES_TYPE, headers=headers)


def _or_cut(pages: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """The pages of an answer that has begun, and that only its end can tell from a complete one."""
    try:
        yield from pages
    except (Problem, AccountingError) as error:
        raise AnswerCut(str(error)) from error


def _json_lines(pages: Iterable[list[Row]]) -> Iterator[str]:
    for rows in pages:
        yield "".join([f"{json_object(row)}\n" for row in rows])


def _csv(pages: Iterable[list[Row]]) -> Iterator[str]:
    columns: Sequence[str] = ()
    for rows in pages:
        if not columns:
            columns = rows.columns() if isinstance(rows, Rows) else list(rows[0])
            yield ",".join(columns) + "\n"
        yield "".join([f"{csv_line(row, columns)}\n" for row in rows])
