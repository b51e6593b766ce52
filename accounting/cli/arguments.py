"""Arguments that several commands share, and the parsing of names, days and times.

A text that can't be parsed raises UsageError, which says what was expected.
"""

import os
from collections.abc import Sequence
from datetime import date, datetime, tzinfo
from typing import Annotated, Final, Literal, TypeVar

import typer

from accounting.domain.text_escaping import escape
from accounting.errors import UsageError

MAX_INTEGER: Final = 2**31 - 1
_SUBJECTS: Final[Sequence[Literal["user", "realm"]]] = ("user", "realm")
_LENGTHS: Final[Sequence[Literal["hour", "day", "month"]]] = ("hour", "day", "month")
Choice = TypeVar("Choice", bound=str)


def name_argument(value: str) -> str:
    """A name as the views spell it: bytes that are not valid UTF-8 are escaped."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return escape(os.fsencode(value))
    return value


def period_day(value: str) -> date:
    """Parse the name of a period: its first day."""
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is not a period: expected its first day, YYYY-MM-DD") from None


def time_span(
    since: str | None, until: str | None, *, zone: tzinfo | None = None
) -> tuple[datetime | None, datetime | None]:
    """Parse a half-open span. Times without an offset are in ``zone``; without it they stay naive.

    Raises UsageError for an empty span.
    """
    begin, end = _parse_time(since, zone), _parse_time(until, zone)
    if begin and end and (begin.tzinfo is None) == (end.tzinfo is None) and begin >= end:
        raise UsageError(f"--since {since} is not before --until {until}")
    return begin, end


def _parse_time(value: str | None, zone: tzinfo | None) -> datetime | None:
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
        if zone is None:
            return time
        return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(zone)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{value!r} is not a time: expected ISO 8601, such as 2026-11-22"
        ) from None


def usage_subject(by: str) -> Literal["user", "realm"]:
    """Parse ``--by``."""
    return _choice("--by", by, _SUBJECTS)


def bucket_length(per: str) -> Literal["hour", "day", "month"]:
    """Parse ``--per``."""
    return _choice("--per", per, _LENGTHS)


def _choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    for choice in choices:
        if value == choice:
            return choice
    expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
    raise UsageError(f"{option} {value!r}: expected {expected}")


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
RealmName = Annotated[
    str, typer.Argument(parser=name_argument, help="The realm; '' for the realm without a name.")
]
Realm = Annotated[
    str | None, typer.Option("--realm", parser=name_argument, help="Only this realm.")
]
User = Annotated[
    str | None, typer.Option("--user", parser=name_argument, help="Only this user_id.")
]
Since = Annotated[
    str | None, typer.Option("--since", "--from", help="From this time on, ISO 8601.")
]
Until = Annotated[str | None, typer.Option("--until", "--to", help="Before this time, ISO 8601.")]
By = Annotated[str, typer.Option("--by", help="user or realm.")]
Per = Annotated[str, typer.Option("--per", help="hour, day or month.")]
PeriodDay = Annotated[date, typer.Argument(parser=period_day, help="Its first day, YYYY-MM-DD.")]
PeriodOption = Annotated[
    date | None,
    typer.Option("--period", parser=period_day, help="Only this period: its first day."),
]
