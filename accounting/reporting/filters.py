"""Parses the filters that the command line and the API have in common.

A text that can't be parsed raises UsageError, which says what was expected of which filter: of
``--since`` on the command line; with ``dashes=PARAMETER`` of ``since`` in an address.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Final, Literal, TypeVar

from accounting.errors import UsageError
from accounting.plurals import listed
from accounting.reporting.usage_queries import Subject
from accounting.reporting.view_query import Bound, DaysAgo, HoursAgo

_SUBJECTS: Final[Sequence[Subject]] = ("user", "realm", "server", "transport")
_EXPORTED: Final[Sequence[Literal["user", "realm"]]] = ("user", "realm")
_LENGTHS: Final[Sequence[Literal["hour", "day", "month"]]] = ("hour", "day", "month")
OPTION: Final = "--"
PARAMETER: Final = ""
"""What is before the name of a filter: of a command, and of an address."""
_AGO: Final = re.compile(r"(?P<count>[0-9]{1,20})(?P<unit>[mhdw])")
_DAYS: Final = {"d": 1, "w": 7}
MAX_DAYS_AGO: Final = 9999 * 7
"""Some two centuries: further than any books go back."""
_MONTH: Final = re.compile(r"[0-9]{4}-[0-9]{2}")
Choice = TypeVar("Choice", bound=str)


def period_day(value: str) -> date:
    """Parse the name of a period: its first day, or the month on whose first day it begins."""
    try:
        return date.fromisoformat(f"{value}-01" if _MONTH.fullmatch(value) else value)
    except ValueError:
        raise UsageError(
            f"{value!r} is not a period: expected its first day, YYYY-MM-DD or YYYY-MM"
        ) from None


def time_span(
    since: str | None, until: str | None, *, dashes: str = OPTION
) -> tuple[Bound | None, Bound | None]:
    """Parse a half-open span. Times without an offset stay naive.

    Raises UsageError for an empty span.
    """
    begin, end = _parse_time(f"{dashes}since", since), _parse_time(f"{dashes}until", until)
    is_empty = False
    match begin, end:
        case datetime(), datetime() if (begin.tzinfo is None) == (end.tzinfo is None):
            is_empty = begin >= end
        case (DaysAgo(first), DaysAgo(last)) | (HoursAgo(first), HoursAgo(last)):
            is_empty = first <= last
    if is_empty:
        raise UsageError(f"{dashes}since {since} is not before {dashes}until {until}")
    return begin, end


def _parse_time(option: str, value: str | None) -> Bound | None:
    match value:
        case None:
            return None
        case "today":
            return DaysAgo(0)
        case "yesterday":
            return DaysAgo(1)
    if match := _AGO.fullmatch(value):
        count, unit = int(match["count"]), match["unit"]
        hours = count / 60 if unit == "m" else count * {"h": 1, "d": 24, "w": 7 * 24}[unit]
        if hours > MAX_DAYS_AGO * 24:
            raise UsageError(f"{option} {value!r} is out of range: at most {MAX_DAYS_AGO}d")
        if unit in _DAYS:
            return DaysAgo(count * _DAYS[unit])
        return HoursAgo(hours)
    try:
        return datetime.fromisoformat(f"{value}-01" if _MONTH.fullmatch(value) else value)
    except ValueError:
        raise UsageError(
            f"{option} {value!r}: expected today, yesterday, 5m, 24h, 7d, 2w, 2026-11, 2026-11-22 "
            "or 2026-11-22T15:00"
        ) from None


def usage_subject(by: str, *, dashes: str = OPTION) -> Subject:
    """Parse ``--by``."""
    return _choice(f"{dashes}by", by, _SUBJECTS)


def exported_subject(by: str) -> Literal["user", "realm"]:
    """Parse ``--by`` of an export."""
    return _choice("--by", by, _EXPORTED)


def bucket_length(per: str, *, dashes: str = OPTION) -> Literal["hour", "day", "month"]:
    """Parse ``--per``."""
    return _choice(f"{dashes}per", per, _LENGTHS)


def _choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    for choice in choices:
        if value == choice:
            return choice
    raise UsageError(f"{option} {value!r}: expected {listed(choices)}")
