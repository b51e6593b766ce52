"""What an operator chooses for a format: how it batches, what it counts, and for whom."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final, Self

from accounting.domain.human_text import visible
from accounting.errors import UsageError
from accounting.feed.outbox import EventType

MAX_BATCH: Final = 100
"""Events in one request at the most: Lago takes no more, and elsewhere it bounds the body."""
METERING_TYPES: Final[tuple[EventType, ...]] = ("usage.counted", "adjustment.posted")
"""The events of which metering formats make requests."""
PLACEHOLDERS: Final = ("realm", "user", "user_key")
_BRACES: Final = re.compile(r"\{([^{}]*)\}|[{}]")
MAX_METER_LENGTH: Final = 100
"""Stripe's longest ``event_name``."""


class FormatName(StrEnum):
    """The kinds of receivers."""

    STANDARD = "standard"
    CLOUDEVENTS = "cloudevents"
    OPENMETER = "openmeter"
    LAGO = "lago"
    STRIPE = "stripe"

    @property
    def is_metering(self) -> bool:
        """Whether the receiver counts usage; it gets the events METERING_TYPES and no others."""
        return self not in (FormatName.STANDARD, FormatName.CLOUDEVENTS)

    @property
    def max_batch(self) -> int:
        """How many events a request may have."""
        return 1 if self is FormatName.STRIPE else MAX_BATCH

    @property
    def default_batch(self) -> int:
        """How many events a request has unless an operator says how many."""
        return self.max_batch if self.is_metering else 1


class MeterValue(StrEnum):
    """What a metering format counts. ``bytes``: received and sent together, as a bill has them."""

    BYTES = "bytes"
    RECEIVED_BYTES = "received_bytes"
    SENT_BYTES = "sent_bytes"
    SESSION_SECONDS = "session_seconds"
    SESSIONS = "sessions"

    @property
    def is_bytes(self) -> bool:
        return self in (MeterValue.BYTES, MeterValue.RECEIVED_BYTES, MeterValue.SENT_BYTES)


class Unit(StrEnum):
    """Decimal units of bytes, as the lists of this program print them."""

    BYTES = "bytes"
    MB = "MB"
    GB = "GB"

    @property
    def exponent(self) -> int:
        """The power of ten that is one of this unit."""
        return {Unit.BYTES: 0, Unit.MB: 6, Unit.GB: 9}[self]


class CloudEventsMode(StrEnum):
    """The content modes of CloudEvents over HTTP, of which a batch is always structured."""

    STRUCTURED = "structured"
    BINARY = "binary"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOptions:
    """The options of one endpoint.

    ``meter``: the receiver's name of what is counted. ``customer``: a template with PLACEHOLDERS;
    None: only users of the endpoint's table have a customer. ``invoice_grace_seconds``: how long
    after a period Stripe leaves an invoice open.
    """

    mode: CloudEventsMode = CloudEventsMode.STRUCTURED
    meter: str = "turn_usage"
    value: MeterValue = MeterValue.BYTES
    unit: Unit = Unit.BYTES
    customer: str | None = None
    invoice_grace_seconds: int = 3600

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The options that :meth:`to_json` made."""
        values = dict(stored)
        for key, enum in (("mode", CloudEventsMode), ("value", MeterValue), ("unit", Unit)):
            if key in values:
                values[key] = enum(values[key])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON values."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}

    def check(self, name: FormatName, batch_size: int) -> None:
        """Raise UsageError unless the format can do what the options say."""
        if not 1 <= batch_size <= name.max_batch:
            raise UsageError(f"--batch {batch_size}: {name} takes 1 to {name.max_batch} events")
        if self.mode is CloudEventsMode.BINARY and (
            name is not FormatName.CLOUDEVENTS or batch_size > 1
        ):
            raise UsageError(
                "--mode binary: only cloudevents has it, and only for one event at a time"
            )
        if not name.is_metering:
            self._check_counts_nothing(name)
            return
        if not 1 <= len(self.meter) <= MAX_METER_LENGTH or self.meter != visible(self.meter):
            raise UsageError(
                f"--meter: expected a name of 1 to {MAX_METER_LENGTH} printable characters"
            )
        if self.unit is not Unit.BYTES and not self.value.is_bytes:
            raise UsageError(f"--unit {self.unit}: {self.value} is not in bytes")
        if name is FormatName.STRIPE and self.unit is not Unit.BYTES:
            raise UsageError(
                f"--unit {self.unit}: Stripe takes whole numbers only, and rounded values of "
                "hours would add up to another bill. Send bytes, and divide them in the price: "
                f"transform_quantity[divide_by]={10**self.unit.exponent}"
            )
        check_template(self.customer)

    def _check_counts_nothing(self, name: FormatName) -> None:
        defaults = FormatOptions()
        for option in ("meter", "value", "unit", "customer", "invoice_grace_seconds"):
            if getattr(self, option) != getattr(defaults, option):
                flag = option.removesuffix("_seconds").replace("_", "-")
                raise UsageError(
                    f"--{flag}: {name} counts nothing; expected --format openmeter, lago or stripe"
                )


def check_template(template: str | None) -> None:
    """Raise UsageError for a template with anything but PLACEHOLDERS in braces."""
    if template is None:
        return
    unknown = [match[0] for match in _BRACES.finditer(template) if match[1] not in PLACEHOLDERS]
    if unknown or not template or template != visible(template):
        expected = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise UsageError(
            f"--customer '{visible(template)}': expected text with only {expected} in braces"
        )


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """The text of a template that was checked."""
    return _BRACES.sub(lambda match: values[match[1]], template)
