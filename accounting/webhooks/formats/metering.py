"""What a metering format counts of an event, and for which customer.

Two kinds of events count. ``usage.counted`` is the usage of a user in an hour that is over, and
later its corrections, which are differences of either sign; their time is the hour's beginning.
``adjustment.posted`` is usage that came after its period was closed, or a person's decision; its
time is that of the posting, because the period is billed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.envelope import occurred_at
from accounting.webhooks.formats.options import METERING_TYPES, FormatOptions, MeterValue
from accounting.webhooks.message import Refusal, Request


class UsageKind(StrEnum):
    """What the usage of an event is."""

    USAGE = "usage"
    CORRECTION = "correction"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCustomer:
    """Whom an event is billed to. ``customer`` None: nobody, for ``reason``.

    ``period_ends_at``: the end of the realm's period in which the counted hour lies; None: it isn't
    known, because no usage came after it.
    """

    customer: str | None
    reason: str = ""
    period_ends_at: datetime | None = None


EventCustomers = Mapping[UUID, EventCustomer]
"""By event_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredUsage:
    """An event as a metering format sends it. ``value`` is in the unit of the options."""

    event: FeedEvent
    customer: str
    value: Decimal
    at: datetime
    kind: UsageKind
    period_ends_at: datetime | None


def metered_usage(
    events: Sequence[FeedEvent], customers: EventCustomers, options: FormatOptions
) -> list[MeteredUsage | Refusal]:
    """What to send of each event, in order: nothing for events that count nothing."""
    counted: list[MeteredUsage | Refusal] = []
    for event in events:
        if event.type not in METERING_TYPES:
            continue
        value = _value(event, options.value)
        if not value:
            continue
        billed = customers[event.event_id]
        if billed.customer is None:
            text = f"{plain(value)} {options.value}: {billed.reason}"
            counted.append(Refusal(event=event, reason=text))
            continue
        counted.append(
            MeteredUsage(
                event=event,
                customer=billed.customer,
                value=value.scaleb(-options.unit.exponent),
                at=occurred_at(event),
                kind=usage_kind(event),
                period_ends_at=billed.period_ends_at,
            )
        )
    return counted


def in_batches(
    usage: Sequence[MeteredUsage | Refusal],
    size: int,
    make_request: Callable[[Sequence[MeteredUsage]], Request],
) -> list[Request | Refusal]:
    """Requests of at most ``size`` events each, strictly in order: a refusal divides a batch.

    So the cursor can move to the last event of whatever was done.
    """
    plan: list[Request | Refusal] = []
    batch: list[MeteredUsage] = []
    for item in usage:
        if isinstance(item, Refusal) or len(batch) == size:
            plan += [make_request(batch)] if batch else []
            batch = []
        if isinstance(item, Refusal):
            plan.append(item)
        else:
            batch.append(item)
    return plan + ([make_request(batch)] if batch else [])


def usage_kind(event: FeedEvent) -> UsageKind:
    """Whether an event is usage, its correction, or an adjustment of a closed period."""
    if event.type == "adjustment.posted":
        return UsageKind.ADJUSTMENT
    return UsageKind.CORRECTION if event.payload["correction"] else UsageKind.USAGE


def _value(event: FeedEvent, measure: MeterValue) -> Decimal:
    payload = event.payload
    match measure:
        case MeterValue.BYTES:
            return Decimal(payload["received_bytes"] + payload["sent_bytes"])
        case MeterValue.RECEIVED_BYTES | MeterValue.SENT_BYTES:
            return Decimal(payload[measure.value])
        case MeterValue.SESSION_SECONDS:
            return Decimal(payload["session_seconds"])
        case MeterValue.SESSIONS:
            return Decimal(payload.get("sessions_started", 0))  # an adjustment has no sessions


def plain(value: Decimal) -> str:
    """All digits of a number, without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def utc_text(time: datetime) -> str:
    """A time as messages to an operator have it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
