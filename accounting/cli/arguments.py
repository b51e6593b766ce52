"""Arguments that several commands share, and how names are spelled."""

import functools
import inspect
import os
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Final, TypeVar, cast

import typer

from accounting.cli.rows import ListForm, Listing
from accounting.domain.text_escaping import escape
from accounting.reporting.filters import period_day

MAX_INTEGER: Final = 2**31 - 1


def name_argument(value: str) -> str:
    """A name as the views spell it: bytes that are not valid UTF-8 are escaped."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return escape(os.fsencode(value))
    return value


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
        help=(
            "From then on: today, yesterday, 5m, 24h, 7d, 2w, 2026-11, 2026-11-22, "
            "2026-11-22T15:00."
        ),
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", "--to", metavar="TIME", help="Before then; as --since.")
]
By = Annotated[str, typer.Option("--by", metavar="user|realm", help="What a row is of.")]
UsageBy = Annotated[
    str,
    typer.Option("--by", metavar="user|realm|server|transport", help="What a row is of."),
]
Per = Annotated[str, typer.Option("--per", metavar="hour|day|month", help="What a row spans.")]
PeriodDay = Annotated[
    date, typer.Argument(parser=period_day, help="Its first day, YYYY-MM-DD or YYYY-MM.")
]
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
