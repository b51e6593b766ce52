"""CloudEvents 1.0: the feed in the JSON format, and over HTTP structured, batched or binary.

``source`` is the installation's, ``id`` the event's id: together they identify an event for ever,
also when it is delivered again after a restore.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import (
    chunks,
    data,
    dump,
    message_id,
    occurred_at,
    plain_outcome,
    subject,
)
from accounting.webhooks.formats.options import CloudEventsMode
from accounting.webhooks.message import Outcome, Refusal, Request, Response

TYPE_PREFIX: Final = "turn-accounting."
_NOT_IN_HEADERS: Final = re.compile(r'[^\x21-\x7e]|["%]')


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEventsFormat:
    """``source``: the URI of the installation. ``batch_size`` 1: an event in each."""

    url: str
    source: str
    mode: CloudEventsMode = CloudEventsMode.STRUCTURED
    batch_size: int = 1

    @property
    def repeat_seconds(self) -> float | None:
        return None

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        del now
        if self.mode is CloudEventsMode.BINARY:
            return [self._binary(event) for event in events]
        return [self._structured(chunk) for chunk in chunks(events, self.batch_size)]

    def _structured(self, events: Sequence[FeedEvent]) -> Request:
        documents = [cloud_event(event, self.source) for event in events]
        kind = "cloudevents-batch" if self.batch_size > 1 else "cloudevents"
        return Request(
            url=self.url,
            headers={
                "Content-Type": f"application/{kind}+json",
                "webhook-id": message_id(events),
            },
            body=dump(documents if self.batch_size > 1 else documents[0]),
            events=events,
        )

    def _binary(self, event: FeedEvent) -> Request:
        attributes = _attributes(event, self.source)
        return Request(
            url=self.url,
            headers={
                "Content-Type": attributes.pop("datacontenttype"),
                **{f"ce-{name}": header_value(text) for name, text in attributes.items()},
                "webhook-id": str(event.event_id),
            },
            body=dump(data(event)),
            events=[event],
        )

    def outcome(self, request: Request, response: Response) -> Outcome:
        return plain_outcome(request, response)


def cloud_event(event: FeedEvent, source: str) -> dict[str, Any]:
    """An event in the JSON format of CloudEvents."""
    return {**_attributes(event, source), "data": data(event)}


def _attributes(event: FeedEvent, source: str) -> dict[str, str]:
    about = subject(event)
    return {
        "specversion": "1.0",
        "id": str(event.event_id),
        "source": source,
        "type": TYPE_PREFIX + event.type,
        **({} if about is None else {"subject": about}),
        "time": occurred_at(event).isoformat(),
        "datacontenttype": "application/json",
    }


def header_value(text: str) -> str:
    """A value in a header, as the HTTP binding encodes it.

    Space, double quote, percent, and all but printable ASCII become ``%XX`` of their UTF-8 bytes.
    """
    return _NOT_IN_HEADERS.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text
    )
