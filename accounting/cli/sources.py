"""The commands for sources: ``source list|retire|reopen|rename``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import list_options, name_argument
from accounting.cli.output import write_message
from accounting.cli.resources import cell_engine, command_settings, open_reader
from accounting.cli.rows import ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import minute, second
from accounting.errors import UsageError
from accounting.reporting import view_queries

_SOURCES: Final = Listing(
    plain={
        "source": "source",
        "mode": "mode",
        "epoch": "epoch",
        "position": "position",
        "captured_until": "captured until",
        "loaded_until": "loaded until",
        "settled_until": "settled until",
        "retired_at": "retired",
    },
    columns=(
        Column(field="source", heading="source", kind=Kind.NAME),
        Column(field="mode", heading="mode"),
        Column(field="captured_until", heading="captured until (UTC)", text=second),
        Column(field="behind", heading="to load", kind=Kind.SECONDS),
        Column(field="unsettled", heading="to settle", kind=Kind.SECONDS),
        Column(field="retired_at", heading="retired", text=minute, optional=True),
        Column(field="epoch", heading="epoch", kind=Kind.COUNT, rank=2),
        Column(field="position", heading="position", kind=Kind.COUNT, rank=1),
    ),
    rank="captured_until",
    empty="No source is known yet.",
    fields={
        "behind": lambda source: _seconds_behind(source, "loaded_until"),
        "unsettled": lambda source: _seconds_behind(source, "settled_until"),
    },
)


def register(app: typer.Typer) -> None:
    """Add the group ``source``."""
    group = typer.Typer(help="List, rename, retire and reopen sources.", no_args_is_help=True)
    group.command("list")(list_sources)
    group.command("retire")(retire)
    group.command("reopen")(reopen)
    group.command("rename")(rename)
    app.add_typer(group, name="source")


@list_options(lambda: _SOURCES)
def list_sources(*, form: ListForm) -> None:
    """List the sources, and how far each is captured, loaded and settled.

    What needs attention goes to standard error, a line each.
    """
    settings = command_settings()
    write_query(settings, view_queries.sources, _SOURCES, form)
    with open_reader(settings) as reader:
        notices = reader.read_rows(view_queries.source_notices())
    for row in notices:
        write_message(f"source {row['source']!r} {row['notice']}")


def _seconds_behind(source: Mapping[str, Any], name: str) -> int | None:
    """How much of what is captured has not come that far yet, in seconds."""
    captured_until: datetime | None = source["captured_until"]
    reached: datetime | None = source[name]
    if captured_until is None or reached is None:
        return None
    return max(0, round((captured_until - reached).total_seconds()))


def retire(
    name: Annotated[str, typer.Argument(parser=name_argument, help="Name of the source.")],
    also_captured: Annotated[
        bool, typer.Option("--yes", help="Also while a collector captures it.")
    ] = False,
) -> None:
    """Retire a source whose Redis is gone: periods no longer wait for it.

    Its history and usage stay. It returns to service by itself, with the next
    message that is received; so one that is captured right now is refused
    unless --yes is given. `source reopen` returns it too.
    """
    from accounting.sources.retire import retire_source

    with cell_engine(command_settings(), name) as engine:
        host = retire_source(engine, name, also_captured=also_captured)
    write_message(
        f"source {name!r} is retired"
        if host is None
        else f"source {name!r} is retired, until its next message: {host} captures it"
    )


def reopen(
    name: Annotated[str, typer.Argument(parser=name_argument, help="Name of the source.")],
) -> None:
    """Return a retired source to service: periods wait for it again.

    Closed periods stay closed. A retired source also returns by itself, with
    its next message.
    """
    from accounting.sources.retire import reopen_source

    with cell_engine(command_settings(), name) as engine:
        was_retired = reopen_source(engine, name)
    write_message(f"source {name!r} is {'back' if was_retired else 'already'} in service")


def rename(
    old_name: Annotated[str, typer.Argument(parser=name_argument, help="The present name.")],
    new_name: Annotated[str, typer.Argument(parser=name_argument, help="The new name.")],
) -> None:
    """Give a source another name, while its collector is stopped.

    Usage and positions stay as they are; the spool in this data directory is
    renamed too. Set ACCOUNTING_SOURCE to the new name before you start the
    collector again; on another machine it renames its spool itself. The old
    name stays reserved.
    """
    from accounting.capture.spool.file import spool_path
    from accounting.capture.spool.rename import rename_spool
    from accounting.config import check_source_name
    from accounting.ops import servers
    from accounting.sources.rename import rename_source

    try:
        check_source_name(new_name)
    except ValueError as error:
        raise UsageError(f"{new_name!r} can't be the name of a source: {error}") from None
    settings = command_settings()
    servers.check_data_dir(settings.data_dir)
    with cell_engine(settings, old_name) as engine:
        rename_source(engine, old_name, new_name)
        rename_spool(settings.data_dir, old_name, new_name)
    if spool_path(settings.data_dir, old_name).exists():
        write_message(
            f"the spool of {old_name!r} is not renamed: {new_name!r} has a spool here already"
        )
    write_message(f"renamed source {old_name!r} to {new_name!r}: set ACCOUNTING_SOURCE={new_name}")
