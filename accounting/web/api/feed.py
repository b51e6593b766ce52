"""The feed: events for billing, as pages, by long poll, and as a stream of server-sent events."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from accounting.errors import UsageError
from accounting.reporting.feed_pages import FeedPage, FeedRestored, NumberBeyondEnd, last_number
from accounting.reporting.row_text import json_object
from accounting.web.api.feed_watch import FeedWatch, disconnected
from accounting.web.api.openapi import EVENT_STREAM_TYPE, describe
from accounting.web.books import Books, BooksDependency
from accounting.web.problems import Problem
from accounting.web.render import json_response

router = APIRouter(tags=["feed"])

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 100
MAX_WAIT_SECONDS: Final = 60
MAX_NUMBER: Final = 10**18
KEEP_ALIVE_SECONDS: Final = 15.0
_EVENT_ID: Final = re.compile(
    r"(?P<number>[0-9]{1,18})(:(?P<history>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}))?"
)
STREAM_SECONDS: Final = 300.0
"""A stream ends after this time, and its client comes back."""
Read = Callable[[int, int, UUID | None], FeedPage]


async def _feed_watch(request: Request) -> FeedWatch:
    app = request.app
    watch: FeedWatch | None = getattr(app.state, "feed_watch", None)
    if watch is None:
        watch = app.state.feed_watch = FeedWatch(lambda: last_number(app.state.database))
    return watch


@router.get(
    "/feed",
    responses=describe(
        "FeedPage",
        more={
            EVENT_STREAM_TYPE: {
                "schema": {
                    "type": "string",
                    "description": "Each event's `type` as event and the event as data; the last "
                    "id of a page is NUMBER:HISTORY.",
                }
            }
        },
    ),
)
async def read_feed(
    request: Request,
    books: BooksDependency,
    watch: Annotated[FeedWatch, Depends(_feed_watch)],
    after: Annotated[
        int, Query(ge=0, le=MAX_NUMBER, description="Only events with a higher number.")
    ] = 0,
    limit: Annotated[
        int, Query(ge=1, le=MAX_LIMIT, description="At most so many events.")
    ] = DEFAULT_LIMIT,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=MAX_WAIT_SECONDS,
            allow_inf_nan=False,
            description="Without an event: wait for one, up to so many seconds.",
        ),
    ] = 0,
    history: Annotated[
        UUID | None,
        Query(
            description="The `history` that came with this number: 409 if the feed up to there is "
            "another one now, since its database was restored from a backup."
        ),
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="Of a stream: go on after this id, instead of `after`.")
    ] = None,
) -> Response:
    """Events after a number, in order: sessions that ended, periods that closed, adjustments.

    With `Accept: text/event-stream` it is a stream of server-sent events.

    Ask again with `after=` the `next` of the answer, and its `history`. There are 20,000 events
    between the two at most, of which a reader of one realm may see none: the numbers are those of
    the events of all realms. A reader of one user has no feed.
    """
    books.require_realm()
    if EVENT_STREAM_TYPE in request.headers.get("accept", ""):
        if last_event_id is not None:
            after, history = _event_id(last_event_id)
        return await _stream(request, books, watch, after, limit, history)
    page = await _read(books.feed, after, limit, history)
    if wait and page.is_end and not page.events:
        async with watch.place(books.reader):
            gone = asyncio.create_task(disconnected(request))
            try:
                read = _read_again(request, books)
                page = await _wait_for_events(read, watch, page, limit, wait, gone)
            finally:
                gone.cancel()
    items = ",\n".join(map(json_object, page.events))
    return json_response(
        f'{{"items": [\n{items}\n], "next": {page.next}, "history": "{page.history}"}}'
    )


def _read_again(request: Request, books: Books) -> Read:
    """Reads pages for an answer that takes long: while its token is valid."""

    def read(after: int, limit: int, history: UUID | None) -> FeedPage:
        request.state.identify()
        return books.feed(after, limit, history)

    return read


async def _read(read: Read, after: int, limit: int, history: UUID | None) -> FeedPage:
    try:
        return await run_in_threadpool(read, after, limit, history)
    except NumberBeyondEnd as beyond:
        raise UsageError(
            f"after {after}: the feed ends at {beyond.last_seq}. If you have read up to {after}, "
            "the database was restored from a backup since: read again from a number that the "
            "backup has, or from 0, and skip the event ids that were handled"
        ) from None
    except FeedRestored as error:
        raise Problem(409, "Feed Restored", str(error)) from None


async def _wait_for_events(
    read: Read,
    watch: FeedWatch,
    page: FeedPage,
    limit: int,
    seconds: float,
    gone: asyncio.Task[None],
) -> FeedPage:
    """The first page with an event that may be read, or an empty one after so many seconds."""
    deadline = time.monotonic() + seconds
    while not page.events and (left := deadline - time.monotonic()) > 0:
        waiting = asyncio.create_task(watch.wait_beyond(page.next, left))
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            waiting.cancel()
            break
        page = await _read(read, page.next, limit, page.history)
    return page


async def _stream(
    request: Request,
    books: Books,
    watch: FeedWatch,
    after: int,
    limit: int,
    history: UUID | None,
) -> Response:
    page = await _read(books.feed, after, limit, history)
    place = watch.place(books.reader)
    await place.__aenter__()  # here, since a stream that has begun can't be refused

    async def events() -> AsyncIterator[str]:
        try:
            async for text in _events(_read_again(request, books), watch, page, limit):
                yield text
        finally:
            await place.__aexit__(None, None, None)

    return StreamingResponse(events(), media_type=EVENT_STREAM_TYPE)


async def _events(read: Read, watch: FeedWatch, page: FeedPage, limit: int) -> AsyncIterator[str]:
    deadline = time.monotonic() + STREAM_SECONDS
    while True:
        yield _page_text(page)
        if time.monotonic() > deadline:
            return
        if page.is_end and not await watch.wait_beyond(page.next, KEEP_ALIVE_SECONDS):
            yield ": nothing new\n\n"
        try:
            page = await _read(read, page.next, limit, page.history)
        except Problem as problem:
            yield f"event: problem\ndata: {json_object(problem.fields())}\n\n"
            return


def _page_text(page: FeedPage) -> str:
    """The events of a page. The last id says how far it goes, and what the feed is up to there."""
    texts = [_event_text(event, str(event["seq"])) for event in page.events]
    texts.append(f"id: {page.next}:{page.history}\n\n")
    return "".join(texts)


def _event_text(event: Any, event_id: str) -> str:
    return f"id: {event_id}\nevent: {event['type']}\ndata: {json_object(event)}\n\n"


def _event_id(text: str) -> tuple[int, UUID | None]:
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise UsageError(f"Last-Event-ID {text!r}: expected an id of this stream")
    return int(match["number"]), UUID(match["history"]) if match["history"] else None
