"""Standard Webhooks: a JSON object of ``type``, ``timestamp`` and ``data`` for each event.

``signing`` adds the timestamp and the signature to ``webhook-id``. A batch is an array, in which
each object has its own ``id``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import (
    chunks,
    data,
    dump,
    message_id,
    occurred_at,
    plain_outcome,
)
from accounting.webhooks.message import Outcome, Refusal, Request, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardFormat:
    """``batch_size`` 1: an event in each request, without an array."""

    url: str
    batch_size: int = 1

    @property
    def repeat_seconds(self) -> float | None:
        return None

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        del now
        return [self._request(chunk) for chunk in chunks(events, self.batch_size)]

    def _request(self, events: Sequence[FeedEvent]) -> Request:
        messages = [_message(event) for event in events]
        return Request(
            url=self.url,
            headers={
                "Content-Type": "application/json",
                "webhook-id": message_id(events),
            },
            body=dump(messages if self.batch_size > 1 else messages[0]),
            events=events,
        )

    def outcome(self, request: Request, response: Response) -> Outcome:
        return plain_outcome(request, response)


def _message(event: FeedEvent) -> dict[str, Any]:
    return {
        "id": str(event.event_id),
        "type": event.type,
        "timestamp": occurred_at(event).isoformat(),
        "data": data(event),
    }
