"""Arguments that several commands share, and the parsing of names, days and times.

A text that can't be parsed raises UsageError, which says what was expected.
"""

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import typer

from accounting.cli.rows import ListForm, Listing
from accounting.domain.text_escaping import escape
from accounting.errors import UsageError
from accounting.plurals import listed
from accounting.reporting.view_queries import Bound, DaysAgo, HoursAgo

MAX_INTEGER: Final = 2**31 - 1
_SUBJECTS: Final[Sequence[Literal["user", "realm"]]] = ("user", "realm")
_LENGTHS: Final[Sequence[Literal["hour", "day", "month"]]] = ("hour", "day", "month")
_AGO: Final = re.compile(r"(?P<count>[0-9]{1,4})(?P<unit>[hdw])")
_DAYS: Final = {"d": 1, "w": 7}
_MONTH: Final = re.compile(r"[0-9]{4}-[0-9]{2}")
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


def time_span(since: str | None, until: str | None) -> tuple[Bound | None, Bound | None]:
    """Parse a half-open span. Times without an offset stay naive.

    Raises UsageError for an empty span.
    """
    begin, end = _parse_time("--since", since), _parse_time("--until", until)
    is_empty = False
    match begin, end:
        case datetime(), datetime() if (begin.tzinfo is None) == (end.tzinfo is None):
            is_empty = begin >= end
        case (DaysAgo(first), DaysAgo(last)) | (HoursAgo(first), HoursAgo(last)):
            is_empty = first <= last
    if is_empty:
        raise UsageError(f"--since {since} is not before --until {until}")
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
        count = int(match["count"])
        unit = match["unit"]
        return HoursAgo(count) if unit == "h" else DaysAgo(count * _DAYS[unit])
    try:
        return datetime.fromisoformat(f"{value}-01" if _MONTH.fullmatch(value) else value)
    except ValueError:
        raise UsageError(
            f"{option} {value!r}: expected today, yesterday, 24h, 7d, 2w, 2026-11, 2026-11-22 or "
            "2026-11-22T15:00"
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
    raise UsageError(f"{option} {value!r}: expected {listed(choices)}")


Command = TypeVar("Command", bound=Callable[..., None])


def list_options(listing: Callable[[], Listing]) -> Callable[[Command], Command]:
    """Add the options of every list; the command gets them as one argument, ``form``.

    ``listing``: what it lists, for the completion of ``--sort``.
    """

    def add_options(command: Command) -> Command:
        with_form = _with_list_options(command)
        with_form.listing = listing  # type: ignore[attr-defined]  # typer copies it
        return with_form

    return add_options


def _with_list_options(command: Command) -> Command:
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "form"]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in _LIST_OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_form(**arguments: Any) -> None:
        form = ListForm(**{name: arguments.pop(name) for name in _LIST_OPTIONS})
        command(**arguments, form=form)

    combined = signature.replace(parameters=[*own, *added])
    with_form.__signature__ = combined  # type: ignore[attr-defined]  # as inspect documents
    with_form.__annotations__ = {
        name: parameter.annotation for name, parameter in combined.parameters.items()
    }
    return cast(Command, with_form)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
RealmName = Annotated[
    str,
    typer.Argument(
        parser=name_argument, metavar="REALM", help="The realm; '' for the realm without a name."
    ),
]
Realm = Annotated[
    str | None, typer.Option("--realm", parser=name_argument, help="Only this realm.")
]
User = Annotated[
    str | None, typer.Option("--user", parser=name_argument, help="Only this user_id.")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        "--from",
        metavar="TIME",
        help="From then on: today, yesterday, 24h, 7d, 2w, 2026-11, 2026-11-22, 2026-11-22T15:00.",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", "--to", metavar="TIME", help="Before then; as --since.")
]
By = Annotated[str, typer.Option("--by", metavar="user|realm", help="What a row is of.")]
Per = Annotated[str, typer.Option("--per", metavar="hour|day|month", help="What a row spans.")]
PeriodDay = Annotated[date, typer.Argument(parser=period_day, help="Its first day, YYYY-MM-DD.")]
PeriodOption = Annotated[
    date | None,
    typer.Option("--period", parser=period_day, help="Only this period: its first day."),
]
_LIST_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "top": (
        Annotated[
            int | None,
            typer.Option(
                "--top",
                metavar="N",
                min=1,
                max=MAX_INTEGER,
                help="The N that count most: by traffic, else by time, or by --sort.",
            ),
        ],
        None,
    ),
    "sort": (
        Annotated[
            str | None,
            typer.Option(
                "--sort",
                metavar="COLUMN",
                help="Sort by a column: largest first, texts from A to Z; -COLUMN: the reverse.",
            ),
        ],
        None,
    ),
    "limit": (
        Annotated[
            int | None,
            typer.Option("--limit", metavar="N", min=1, max=MAX_INTEGER, help="At most N rows."),
        ],
        None,
    ),
    "wide": (
        Annotated[bool, typer.Option("--wide", help="All columns, also where they don't fit.")],
        False,
    ),
    "in_bytes": (
        Annotated[bool, typer.Option("--bytes", help="Numbers with all digits, without units.")],
        False,
    ),
    "as_json": (JsonOption, False),
    "as_csv": (Annotated[bool, typer.Option("--csv", help="Print CSV with all columns.")], False),
}
