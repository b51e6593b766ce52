"""The commands for many cells read as one: ``front init|join|list|leave``."""

import sys
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from accounting.cli.arguments import list_options, name_argument
from accounting.cli.output import write, write_message
from accounting.cli.resources import command_settings
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import minute
from accounting.errors import ConnectionLost, UsageError
from accounting.reporting.filters import period_day

if TYPE_CHECKING:
    from accounting.db.engine import Engine

_CELLS: Final = Listing(
    plain={
        "cell": "cell",
        "url": "url",
        "state": "state",
        "revision": "revision",
        "joined_at": "joined",
        "bill_from": "billed from",
    },
    columns=(
        Column(field="cell", heading="cell", kind=Kind.NAME),
        Column(field="state", heading="state", kind=Kind.TEXT),
        Column(field="url", heading="url", kind=Kind.NAME),
        Column(field="revision", heading="revision"),
        Column(field="joined_at", heading="joined (UTC)", text=minute, rank=1),
        Column(field="bill_from", heading="billed from", rank=1, optional=True),
    ),
    rank="cell",
    empty="No cell has joined yet: `turn-accounting front join NAME URL`.",
)


def register(app: typer.Typer) -> None:
    """Add the group ``front``."""
    group = typer.Typer(help="Read and bill many cells as one.", no_args_is_help=True)
    group.command("init")(init)
    group.command("join")(join)
    group.command("list")(list_all)
    group.command("leave")(leave)
    app.add_typer(group, name="front")


def init() -> None:
    """Make the database of ACCOUNTING_DATABASE_URL a front.

    It gets this version's schema and the extension postgres_fdw, so it needs a
    login that may create both. It has no sources of its own.
    """
    from accounting.front.join import make_front

    with _owner_engine() as engine:
        make_front(engine)
    write_message("this database is a front: `turn-accounting front join NAME URL` adds a cell")


def join(
    name: Annotated[
        str,
        typer.Argument(parser=name_argument, help="Name of the cell: of a-z, 0-9, '_' and '-'."),
    ],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="postgresql://user@host/database of the cell.")
    ],
    password_file: Annotated[
        str | None,
        typer.Option(
            "--password-file", metavar="FILE", help="Has the password; - is standard input."
        ),
    ] = None,
    bill_from: Annotated[
        date | None,
        typer.Option(
            "--bill-from",
            parser=period_day,
            metavar="PERIOD",
            help="The first period that the front bills of it: earlier ones, which it has closed,"
            " were invoiced before.",
        ),
    ] = None,
) -> None:
    """Let a cell join, or join again with another URL or password.

    The cell gets the schema, if it has none, and the key of this installation,
    if it has no users yet. The front reads it with the reader's rights. For one
    that has closed periods, or takes the place of another, say --bill-from.
    """
    from accounting.db.connection import needs_password
    from accounting.front.join import join_cell

    password = None if password_file is None else _read_password(password_file)
    try:
        with _owner_engine() as engine:
            join_cell(engine, name, url, password, bill_from=bill_from)
    except ConnectionLost as error:
        if password is None and needs_password(error):
            raise ConnectionLost(f"{error}: give it with --password-file") from error
        raise
    write_message(f"cell '{name}' has joined")


@list_options(lambda: _CELLS)
def list_all(*, form: ListForm) -> None:
    """List the cells, and whether each answers.

    What keeps them from being one installation goes to standard error, a line each.
    """
    from accounting.front.status import cell_problems, cell_states

    arrangement = _CELLS.arrangement(form)
    with _owner_engine() as engine:
        rows = cell_states(engine)
        problems = cell_problems(engine)
    has_rows = write_list(arranged(rows, arrangement), _CELLS, form, arrangement)
    if not has_rows and not form.for_programs:
        write(f"{_CELLS.empty}\n")
    for problem in problems:
        write_message(problem)


def leave(
    name: Annotated[str, typer.Argument(parser=name_argument, help="Name of the cell.")],
    *,
    without_its_usage: Annotated[
        bool,
        typer.Option(
            "--without-its-usage",
            help="Also with usage of periods that the front has not billed: it is then in no"
            " statement of the front.",
        ),
    ] = False,
) -> None:
    """Let a cell leave: the front reads it no more. Its own books stay as they are.

    Refused while the cell has usage of a period that the front has not billed.
    """
    from accounting.front import join as front_join

    with _owner_engine() as engine:
        unreachable = front_join.leave(engine, name, without_its_usage=without_its_usage)
    write_message(f"cell '{name}' has left")
    if unreachable is not None:
        write_message(
            f"it does not know, and refuses `realm set` until it joins again: {unreachable}"
        )


def _owner_engine() -> AbstractContextManager["Engine"]:
    from accounting.ops import servers

    return servers.database(command_settings(), may_create=True)


def _read_password(path: str) -> str:
    """A secret from a file or from standard input, without the end of its line."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the password from {path}: {error}") from None
    if not (password := text.rstrip("\r\n")):
        raise UsageError(f"no password in {path}")
    return password
