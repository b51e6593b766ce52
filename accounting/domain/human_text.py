"""Values as people read them: units, times, and hostile names made visible."""

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def visible(text: str) -> str:
    """Escape control characters, so that a username can't control the terminal.

    Formatting characters count as such: those that change the direction of text are among them.
    """
    if text.isprintable():
        return text
    return "".join(
        [char if char.isprintable() else char.encode("unicode_escape").decode() for char in text]
    )


def visible_name(name: str) -> str:
    """A name for a terminal: also the empty name, and spaces at its ends, can be seen."""
    if not name:
        return "''"
    text = visible(name)
    if text[0] == " " or text[-1] == " ":
        inner = text.strip(" ")
        before = len(text) - len(text.lstrip(" "))
        text = r"\x20" * before + inner + r"\x20" * (len(text) - before - len(inner))
    return text


def human_bytes(count: int | Decimal) -> str:
    """Bytes in decimal units, such as ``27.2 GB``."""
    size = abs(int(count))
    sign = "-" if count < 0 else ""
    if size < 1000:
        return f"{sign}{size} B"
    tenths = size
    for unit in _UNITS:
        # Rounded in integers, half up: a counter may have more digits than a float.
        tenths, divisor = (size * 10 + 500) // 1000, 1000
        if tenths < 10_000 or unit == _UNITS[-1]:
            return f"{sign}{tenths // 10:,}.{tenths % 10} {unit}"
        size = size // divisor
    raise AssertionError(tenths)


def human_seconds(seconds: int | Decimal) -> str:
    """A duration in its two largest units, such as ``2h 05m``."""
    sign = "-" if seconds < 0 else ""
    exact = abs(Decimal(seconds))
    whole = round(exact)
    if whole < 60:
        short = f"{exact:.1f}".removesuffix(".0") if whole < 10 else f"{whole}"
        return f"{sign}{short}s"
    if whole < 3600:
        return f"{sign}{whole // 60}m {whole % 60:02}s"
    minutes = round(exact / 60)
    if minutes < 24 * 60:
        return f"{sign}{minutes // 60}h {minutes % 60:02}m"
    hours = round(exact / 3600)
    return f"{sign}{hours // 24:,}d {hours % 24:02}h"


def percent_text(part: int | Decimal, whole: int | Decimal) -> str:
    """A share in percent: never 0 or 100 unless exactly so; empty for no part."""
    if not part:
        return ""
    percent = 100 * part / whole if whole else 100
    if percent < 1:
        return "<1%"
    return ">99%" if 99 < percent < 100 else f"{percent:.0f}%"


def short_time(time: datetime) -> str:
    """A time as its day where it is midnight, else to the minute and with the offset from UTC."""
    if (time.hour, time.minute, time.second) == (0, 0, 0):
        return f"{time:%Y-%m-%d}"
    return f"{time:%Y-%m-%d %H:%M}{_offset(time)}"


def minute(time: datetime) -> str:
    """A time to the minute, without the offset: the heading names the zone."""
    return f"{time:%Y-%m-%d %H:%M}"


def second(time: datetime) -> str:
    """A time to the second, without the offset: the heading names the zone."""
    return f"{time:%Y-%m-%d %H:%M:%S}"


def bucket_start(length: str) -> Callable[[datetime], str]:
    """How to write when a bucket of that length begins: a month as ``2026-11``."""

    def text(time: datetime) -> str:
        if length == "month" and time.day == 1 and short_time(time) == f"{time:%Y-%m-%d}":
            return f"{time:%Y-%m}"
        if length == "hour":
            return f"{time:%Y-%m-%d %H:%M}{_offset(time)}"
        return short_time(time)

    return text


def _offset(time: datetime) -> str:
    # As Postgres: the minutes of the offset only where they are not zero.
    return f"{time:%z}".removesuffix("00")


def exact_text(value: object) -> str:
    """A value with all its digits, as tables outside of terminals show it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case Decimal():
            return f"{value:,.0f}" if value == value.to_integral_value() else f"{value:,.1f}"
        case datetime():
            return value.isoformat(" ", "seconds").removesuffix(":00" if value.tzinfo else "")
        case date():
            return value.isoformat()
        case _:
            return visible(str(value))
