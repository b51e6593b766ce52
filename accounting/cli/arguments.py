"""What commands are told: the arguments that several of them share, and what their texts mean.

Owns how names, days and times are spelled on a command line. A text that means nothing is wrong
use: UsageError, with what was expected. Must not look into the books.
"""

import os
from datetime import date, datetime
from typing import Annotated, Final

import typer

from accounting.domain.text_escaping import escape
from accounting.errors import UsageError

LARGEST_INTEGER: Final = 2**31 - 1


def from_argument(value: str) -> str:
    """An argument in the spelling of the views, also where its bytes are no valid UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return escape(os.fsencode(value))
    return value


Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
RealmName = Annotated[
    str, typer.Argument(parser=from_argument, help="The realm; '' for the one without a name.")
]
Realm = Annotated[
    str | None, typer.Option("--realm", parser=from_argument, help="Only this realm.")
]
User = Annotated[
    str | None, typer.Option("--user", parser=from_argument, help="Only this user_id.")
]
Since = Annotated[
    str | None, typer.Option("--since", "--from", help="From this time on, ISO 8601.")
]
Until = Annotated[str | None, typer.Option("--until", "--to", help="Before this time, ISO 8601.")]


def span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Two times, the first before the second; naive ones are left to the query."""
    begin, end = _time(since), _time(until)
    if begin and end and (begin.tzinfo is None) == (end.tzinfo is None) and begin >= end:
        raise UsageError(f"--since {since} is not before --until {until}")
    return begin, end


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no time: expected ISO 8601, such as 2026-11-22") from None


def period_day(value: str) -> date:
    """The name of a period."""
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no period: expected its first day, YYYY-MM-DD") from None
