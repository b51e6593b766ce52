"""The commands for sources: ``source list|retire``."""

from collections.abc import Callable
from typing import Annotated

import typer

from accounting.cli.arguments import Json, from_argument
from accounting.cli.terminal import warn
from accounting.cli.views import write_query
from accounting.config import Settings
from accounting.db import migrations
from accounting.ops import service
from accounting.reporting import view_queries
from accounting.sources.retire import retire_source


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    source = typer.Typer(
        help="The sources: one Redis and its collector each.", no_args_is_help=True
    )
    app.add_typer(source, name="source")

    @source.command("list")
    def source_list(as_json: Json = False) -> None:
        """List the sources and how far each is captured, loaded and settled."""
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
            settings(),
            view_queries.sources(),
            columns,
            as_json=as_json,
            empty="No source is known yet.",
        )

    @source.command("retire")
    def source_retire(
        name: Annotated[str, typer.Argument(parser=from_argument, help="The source.")],
    ) -> None:
        """Declare a source gone for good: no period waits for it any more."""
        with service.database(settings(), service.WRITER) as engine:
            migrations.require_head(engine)
            retire_source(engine, name)
        warn(f"source {name!r} is retired")
