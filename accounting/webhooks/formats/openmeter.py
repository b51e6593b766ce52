"""OpenMeter: CloudEvents to its ingest API, which sums a property of their data.

Its meter has ``eventType`` = the meter's name, ``aggregation: SUM`` and ``valueProperty: $.value``.
It reads numbers as 64-bit floats, so that bytes are exact up to 2^53, and signed ones are summed.
It drops a repeated event by ``source`` and ``id``, in its cloud for 32 days.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from accounting.domain.counters import COUNTERS
from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import dump, plain_outcome
from accounting.webhooks.formats.metering import (
    EventCustomers,
    MeteredUsage,
    in_batches,
    metered_usage,
    plain,
)
from accounting.webhooks.formats.options import MAX_BATCH, FormatOptions
from accounting.webhooks.message import Outcome, Refusal, Request, Response

PATH: Final = "/api/v1/events"
REPEAT_SECONDS: Final = 32 * 86_400.0
_DETAILS: Final = (
    "realm", "user_key", "starts_at", "ends_at", "period", "posted_in", "adjustment_id", "reason",
    *COUNTERS, "session_seconds", "sessions_started", "sessions_ended", "estimated_bytes",
)  # fmt: skip
"""What else the data has of the payload, for meters of other properties and for ``groupBy``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMeterFormat:
    """``source``: the URI of the installation."""

    url: str
    source: str
    options: FormatOptions
    customers: EventCustomers
    batch_size: int = MAX_BATCH

    @property
    def repeat_seconds(self) -> float | None:
        return REPEAT_SECONDS

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        del now
        return in_batches(
            metered_usage(events, self.customers, self.options),
            self.batch_size,
            self._request,
        )

    def _request(self, usage: Sequence[MeteredUsage]) -> Request:
        return Request(
            url=self.url,
            # Without a charset: OpenMeter compares the whole header.
            headers={"Content-Type": "application/cloudevents-batch+json"},
            body=dump([self._cloud_event(item) for item in usage]),
            events=[item.event for item in usage],
        )

    def _cloud_event(self, usage: MeteredUsage) -> dict[str, Any]:
        event = usage.event
        payload = {"realm": event.realm, **event.payload}
        return {
            "specversion": "1.0",
            "id": str(event.event_id),
            "source": self.source,
            "type": self.options.meter,
            "subject": usage.customer,
            "time": usage.at.isoformat(),
            "datacontenttype": "application/json",
            "data": {
                "value": plain(usage.value),
                "kind": usage.kind.value,
                **{name: payload[name] for name in _DETAILS if name in payload},
            },
        }

    def outcome(self, request: Request, response: Response) -> Outcome:
        return plain_outcome(request, response)
