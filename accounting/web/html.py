"""Values as HTML: short for people, exact in an attribute, and names that can't do any harm.

A name is text whatever it contains: Jinja2 escapes it, control characters are made visible as on
the command line, and ``<bdi>`` keeps letters that are read from right to left from reordering what
is beside them.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

from markupsafe import Markup

from accounting.domain.calendar import from_micros
from accounting.domain.gap_causes import cause_in_words
from accounting.domain.human_text import (
    human_bytes,
    human_seconds,
    percent_text,
    visible,
)
from accounting.domain.periods import describe_wait
from accounting.domain.session_ids import short_session_id
from accounting.domain.time_zones import time_zone

__all__ = ["from_micros", "short_session_id"]  # for templates, as all of this module
Number = int | Decimal


def byte_count(count: Number) -> Markup:
    """Bytes in decimal units."""
    return _data(count, f"{count:,} bytes", human_bytes(count))


def number(count: Number) -> Markup:
    """A number with all its digits."""
    return Markup('<data value="{}">{}</data>').format(_exact(count), f"{count:,}")


def duration(seconds: Number) -> Markup:
    """Seconds in their two largest units."""
    return _data(seconds, f"{seconds:,} s", human_seconds(seconds))


def span(begin: datetime, end: datetime) -> Markup:
    """How long it is from one time to another."""
    return duration(Decimal(max(0, (end - begin) // timedelta(microseconds=1))).scaleb(-6))


def cause(gap: Mapping[str, Any]) -> str:
    """The cause of a gap, in words."""
    return cause_in_words(gap["cause"])


def waits(period: Mapping[str, Any]) -> Markup:
    """What a period waits for, in words."""
    return name(describe_wait(period["waits_for"], period["ends_at"], period["time_zone"]))


def estimated_share(row: Mapping[str, Any]) -> Markup | str:
    """How much of a row's traffic is estimated, in percent; empty for nothing."""
    share = percent_text(row["estimated_bytes"], row["received_bytes"] + row["sent_bytes"])
    if not share:
        return ""
    return _data(row["estimated_bytes"], f"{row['estimated_bytes']:,} bytes", share)


def time(value: datetime, in_zone: tzinfo = UTC, *, to: str = "minute") -> Markup:
    """A time in a zone, to the ``month``, ``day``, ``minute`` or ``second``; ``clock``: no day."""
    local = value.astimezone(in_zone)
    form = {"month": "%Y-%m", "day": "%Y-%m-%d", "minute": "%Y-%m-%d %H:%M", "clock": "%H:%M:%S"}
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        value.astimezone(UTC).isoformat(),
        local.isoformat(" ", "microseconds" if local.microsecond else "seconds"),
        local.strftime(form.get(to, "%Y-%m-%d %H:%M:%S")),
    )


def day(value: date) -> Markup:
    """A day, as periods are named."""
    return Markup('<time datetime="{0}">{0}</time>').format(value.isoformat())


def name(text: str, empty: str = "without a name") -> Markup:
    """A name. ``empty``: what to call one that is empty."""
    if not text:
        return Markup('<i class="nameless">{}</i>').format(empty)
    return Markup('<bdi class="name">{}</bdi>').format(visible(text))


def user(row: Mapping[str, Any], erased: Collection[UUID], address: str | None = None) -> Markup:
    """A user by name, or by the key where the name was erased. ``address``: of the user's page."""
    shown = name(row["user_id"])
    if row["user_key"] in erased:
        shown = Markup('<i class="nameless">erased user</i> <code>{}</code>').format(
            str(row["user_key"])[:8]
        )
    if address is None:
        return shown
    return Markup('<a href="{}">{}</a>').format(address, shown)


def plain_name(text: str, empty: str = "without a name") -> str:
    """A name for a title or a label, which can have no markup."""
    return visible(text) or empty


def zone(zone_name: str) -> tzinfo:
    """A time zone by its name."""
    return time_zone(zone_name)


def url(root: str, path: str, **parameters: object) -> str:
    """An address in this server. Parameters that are None are left out."""
    given = {name: _text(value) for name, value in parameters.items() if value is not None}
    query = f"?{urlencode(given, quote_via=quote)}" if given else ""
    return f"{root}{path}{query}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, date) else str(value)


def _data(value: Number, exact: str, short: str) -> Markup:
    return Markup('<data value="{}" title="{}">{}</data>').format(_exact(value), exact, short)


def _exact(value: Number) -> str:
    return format(value, "f") if isinstance(value, Decimal) else str(value)
