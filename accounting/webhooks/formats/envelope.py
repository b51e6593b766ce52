"""What formats for any receiver say of an event: when it happened, of what, and its data."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from accounting.domain.human_text import visible
from accounting.feed.reader import FeedEvent
from accounting.webhooks.message import Outcome, Request, Response

MAX_QUOTED = 300
"""Characters of an answer that a failure quotes."""


def occurred_at(event: FeedEvent) -> datetime:
    """When it happened, in UTC: the end of a session, the beginning of a counted hour.

    Of other events: when they were recorded. A function of what the event says, so that a repeated
    event has the same time.
    """
    payload = event.payload
    if event.type == "session.ended":
        return datetime.fromisoformat(payload["ended_at"]).astimezone(UTC)
    if event.type == "usage.counted":
        return datetime.fromisoformat(payload["starts_at"]).astimezone(UTC)
    return event.created_at.astimezone(UTC)


def subject(event: FeedEvent) -> str | None:
    """What it is about: a session, a user's key, ``realm/period``, a source; None: nothing named.

    Control characters of a realm are escaped, because CloudEvents doesn't take them.
    """
    payload = event.payload
    match event.type:
        case "session.ended":
            name = str(payload["session_id"])
        case "period.closed":
            name = f"{event.realm}/{payload['period']}"
        case _:
            names = (payload.get(key) for key in ("user_key", "source", "webhook"))
            name = next((str(value) for value in names if value is not None), event.realm)
    return visible(name) or None


def data(event: FeedEvent) -> dict[str, Any]:
    """The payload, with the realm."""
    return {"realm": event.realm, **event.payload}


def dump(document: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def chunks(events: Sequence[FeedEvent], size: int) -> Iterator[Sequence[FeedEvent]]:
    """The events in runs of at most ``size``, in order."""
    for start in range(0, len(events), size):
        yield events[start : start + size]


def message_id(events: Sequence[FeedEvent]) -> str:
    """The ``webhook-id``: an event's id, and of several a hash of theirs.

    A receiver drops a message whose id it has seen. So the id of a batch is that of no other: one
    that is sent again may have more events.
    """
    if len(events) == 1:
        return str(events[0].event_id)
    digest = hashlib.sha256(b"".join(event.event_id.bytes for event in events)).digest()
    return str(UUID(bytes=digest[:16]))


def plain_outcome(request: Request, response: Response) -> Outcome:
    """All taken after a 2xx, else all to be sent again."""
    if response.is_success:
        return Outcome(taken=len(request.events))
    return Outcome(taken=0, failure=describe(response))


def read_json(body: bytes) -> Any:
    """The JSON of an answer; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def describe(response: Response) -> str:
    """An answer for an operator: its status and how its body begins."""
    text = " ".join(visible(response.body[: 4 * MAX_QUOTED].decode(errors="replace")).split())
    if len(text) > MAX_QUOTED:
        text = text[: MAX_QUOTED - 3] + "..."
    return f"HTTP {response.status}" + (f": {text}" if text else "")
