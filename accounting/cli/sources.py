"""The commands for sources: ``source list|retire``."""

from typing import Annotated

import typer

from accounting.cli.arguments import JsonOption, name_argument
from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import write_query
from accounting.reporting import view_queries
from accounting.sources.retire import retire_source


def register(app: typer.Typer) -> None:
    """Add the group ``source``."""
    group = typer.Typer(help="List and retire sources: a Redis each.", no_args_is_help=True)
    group.command("list")(list_sources)
    group.command("retire")(retire)
    app.add_typer(group, name="source")


def list_sources(as_json: JsonOption = False) -> None:
    """List the sources, and how far each is captured, loaded and settled."""
    columns = {
        "source": "source",
        "mode": "mode",
        "epoch": "epoch",
        "position": "position",
        "captured_until": "captured until",
        "loaded_until": "loaded until",
        "settled_until": "settled until",
        "retired_at": "retired",
    }
    write_query(
        command_settings(),
        view_queries.sources(),
        columns,
        as_json=as_json,
        empty="No source is known yet.",
    )


def retire(
    name: Annotated[str, typer.Argument(parser=name_argument, help="The source.")],
) -> None:
    """Retire a source whose Redis is gone: periods no longer wait for it."""
    with writer_engine(command_settings()) as engine:
        retire_source(engine, name)
    write_message(f"source {name!r} is retired")
