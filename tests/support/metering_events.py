"""Events that metering formats count, and their delivery to an engine without the job.

``send`` does with requests and outcomes what the job does, over real HTTP and without a database.
"""

import http.client
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from accounting.domain.counters import COUNTERS
from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.format import Format
from accounting.webhooks.formats.metering import EventCustomer
from accounting.webhooks.message import Refusal, Request, Response
from tests.support.metering_engines import API_KEY

HOUR: Final = datetime(2026, 11, 3, 9, tzinfo=UTC)
SOURCE: Final = "urn:uuid:0b0e7a55-0000-4000-8000-000000000001"
_NAMESPACE: Final = UUID("6a1de7b4-0000-4000-8000-000000000002")


def counters(received_bytes: int, sent_bytes: int) -> dict[str, int]:
    return {
        **dict.fromkeys(COUNTERS, 0),
        "received_bytes": received_bytes,
        "sent_bytes": sent_bytes,
    }


def user_key(user: str) -> str:
    return str(uuid5(_NAMESPACE, user))


def feed_event(
    seq: int, type_: str, payload: Mapping[str, Any], created_at: datetime, realm: str
) -> FeedEvent:
    """An event whose id is a function of its number."""
    return FeedEvent(seq, uuid5(_NAMESPACE, f"event {seq}"), type_, realm, payload, created_at)


def hour_counted(
    seq: int,
    user: str,
    received_bytes: int,
    sent_bytes: int = 0,
    *,
    hour: datetime = HOUR,
    correction: bool = False,
    seconds: str = "0.000000",
    sessions: int = 0,
) -> FeedEvent:
    """An hour of a user, or its correction."""
    payload = {
        "user_key": user_key(user),
        "starts_at": hour.isoformat(),
        "ends_at": (hour + timedelta(hours=1)).isoformat(),
        **counters(received_bytes, sent_bytes),
        "sessions_started": sessions,
        "sessions_ended": 0,
        "session_seconds": seconds,
        "estimated_bytes": 0,
        "correction": correction,
    }
    return feed_event(seq, "usage.counted", payload, hour + timedelta(hours=1), "example.org")


def adjustment(seq: int, user: str, sent_bytes: int, *, posted_at: datetime) -> FeedEvent:
    """An adjustment of October."""
    payload = {
        "adjustment_id": user_key(f"adjustment {seq}"),
        "period": "2026-10-01",
        "posted_in": "2026-11-01",
        "user_key": user_key(user),
        **counters(0, sent_bytes),
        "session_seconds": "0.000000",
        "before": None,
        "reason": "a test call",
        "author": "carol",
    }
    return feed_event(seq, "adjustment.posted", payload, posted_at, "example.org")


def billed_to(events: Iterable[FeedEvent], **customers: str) -> dict[UUID, EventCustomer]:
    """The customers of users by name; others have none."""
    by_key = {user_key(user): customer for user, customer in customers.items()}
    return {
        event.event_id: EventCustomer(
            customer=by_key.get(event.payload["user_key"]), reason="nobody is billed"
        )
        for event in events
        if "user_key" in event.payload
    }


def post(request: Request) -> Response:
    """Send a request over a connection of its own. Raises OSError and HTTPException."""
    parts = urlsplit(request.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        headers = {**request.headers, "Authorization": f"Bearer {API_KEY}"}
        connection.request("POST", parts.path, request.body, headers)
        answer = connection.getresponse()
        return Response(status=answer.status, body=answer.read())
    finally:
        connection.close()


def send(
    format_: Format, events: Sequence[FeedEvent], now: datetime
) -> tuple[list[Refusal], str | None]:
    """Send events until one fails; returns the refusals, and why it failed."""
    refusals: list[Refusal] = []
    work = deque(format_.requests(events, now))
    while work:
        item = work.popleft()
        if isinstance(item, Refusal):
            refusals.append(item)
            continue
        try:
            response = post(item)
        except (OSError, http.client.HTTPException) as error:
            return refusals, f"no answer: {error!r}"
        outcome = format_.outcome(item, response)
        refusals += outcome.refusals
        if outcome.failure is not None:
            return refusals, outcome.failure
        if outcome.rest is not None:
            work.appendleft(outcome.rest)
    return refusals, None
