"""Stripe: a meter event in each request of its API v1, form-encoded.

Its meter has ``event_name`` = the meter's name, aggregates by ``sum``, and keeps the default keys
of the payload. Values are whole numbers of either sign with at most 15 digits: bytes, sessions, or
microseconds of sessions. It drops a repeated ``identifier`` for a day only.

Stripe answers before it has looked for the customer: what it rejects later is in its events
``v1.billing.meter.error_report_triggered``, which this program doesn't receive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

from accounting.domain.human_text import visible
from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import (
    MAX_QUOTED,
    describe,
    plain_outcome,
    read_json,
)
from accounting.webhooks.formats.metering import (
    EventCustomers,
    MeteredUsage,
    UsageKind,
    metered_usage,
    plain,
    utc_text,
)
from accounting.webhooks.formats.options import FormatOptions, MeterValue
from accounting.webhooks.message import Outcome, Refusal, Request, Response

PATH: Final = "/v1/billing/meter_events"
REPEAT_SECONDS: Final = 86_400.0
MAX_AGE: Final = timedelta(days=35)
MAX_DIGITS: Final = 15
_REFUSED_CODES: Final = frozenset({
    "meter_event_customer_not_found", "meter_event_invalid_value",
    "meter_event_no_customer_defined", "meter_event_value_not_found",
    "meter_event_value_too_many_digits", "timestamp_too_far_in_past",
})  # fmt: skip
"""Errors that are the event's own. All others, such as an unknown meter, are the endpoint's."""
_NO_CUSTOMER: Final = "No such customer"
_DUPLICATES: Final = ("already exists with identifier", "duplicate identifier")
"""In the message of a repeated identifier, whose ``code`` is not always there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeFormat:
    """The customers of ``customers`` are ids of customers at Stripe, ``cus_...``."""

    url: str
    options: FormatOptions
    customers: EventCustomers

    @property
    def repeat_seconds(self) -> float | None:
        return REPEAT_SECONDS

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        return [
            item if isinstance(item, Refusal) else self._request(item, now)
            for item in metered_usage(events, self.customers, self.options)
        ]

    def _request(self, usage: MeteredUsage, now: datetime) -> Request | Refusal:
        value = _whole(usage.value, self.options.value)
        if (reason := self._refusal(usage, value, now)) is not None:
            return Refusal(event=usage.event, reason=f"{value}: {reason}")
        identifier = str(usage.event.event_id)
        form = {
            "event_name": self.options.meter,
            "payload[stripe_customer_id]": usage.customer,
            "payload[value]": str(value),
            "identifier": identifier,
            "timestamp": str(int(usage.at.timestamp())),
        }
        return Request(
            url=self.url,
            headers={
                "Content-Type": "application/x-www-form-urlencoded",
                # Stripe answers a repeated key with the first answer for a day, errors too. With
                # the hour in it, an error lasts until the next hour at the longest; the identifier
                # still keeps the event from being counted twice.
                "Idempotency-Key": f"{identifier}-{now:%Y%m%d%H}",
            },
            body=urlencode(form).encode(),
            events=[usage.event],
        )

    def _refusal(self, usage: MeteredUsage, value: int, now: datetime) -> str | None:
        """Why Stripe would not bill it; None: it would."""
        if len(str(abs(value))) > MAX_DIGITS:
            return f"Stripe takes at most {MAX_DIGITS} digits; split it by hand"
        if usage.at <= now - MAX_AGE:
            return (
                f"its hour, {utc_text(usage.at)}, is more than {MAX_AGE.days} days ago, and Stripe "
                "takes nothing older; add it to an invoice by hand"
            )
        ends_at = usage.period_ends_at
        grace = timedelta(seconds=self.options.invoice_grace_seconds)
        if (
            usage.kind is not UsageKind.ADJUSTMENT
            and ends_at is not None
            and ends_at + grace <= now
        ):
            return (
                f"its period ended {utc_text(ends_at)}, and Stripe finalized the invoice "
                f"{grace} later: it would take the event and never bill it; add it to an invoice "
                "by hand, or set --invoice-grace to what your account has"
            )
        return None

    def outcome(self, request: Request, response: Response) -> Outcome:
        if response.status not in (400, 404):
            return plain_outcome(request, response)
        error = _error(response.body)
        message, code = str(error.get("message") or ""), str(error.get("code"))
        if code == "duplicate_meter_event" or any(words in message for words in _DUPLICATES):
            return Outcome(taken=1)
        if code in _REFUSED_CODES or message.startswith(_NO_CUSTOMER):
            reason = f"Stripe: {visible(message)[:MAX_QUOTED]}"
            return Outcome(taken=1, refusals=[Refusal(event=request.events[0], reason=reason)])
        return Outcome(taken=0, failure=describe(response))


def _whole(value: Decimal, measure: MeterValue) -> int:
    """The value as a whole number: seconds, which have six decimal places, as microseconds."""
    whole = value.scaleb(6) if measure is MeterValue.SESSION_SECONDS else value
    assert whole == int(whole), plain(whole)
    return int(whole)


def _error(body: bytes) -> dict[str, Any]:
    try:
        error = read_json(body)["error"]
    except (TypeError, KeyError):  # another shape
        return {}
    return error if isinstance(error, dict) else {}
