"""The commands that look at the service and change nothing: ``health``, ``doctor``, ``config``."""

from collections.abc import Callable
from dataclasses import asdict

import typer

from accounting.cli.arguments import Json
from accounting.cli.terminal import flush_output, warn, write_finding, write_json
from accounting.cli.views import write_rows
from accounting.config import Settings, variable
from accounting.ops import doctor as examination
from accounting.ops import service


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""

    @app.command(hidden=True)
    def health() -> None:
        """Say what is wrong, in words; exit 1 when anything is."""
        found = service.health(settings())
        for sentence in (*found.troubles, *found.suspicions):
            warn(sentence)
        raise typer.Exit(1 if found.troubles else 0)

    @app.command()
    def doctor(as_json: Json = False) -> None:
        """Examine Redis, Postgres, spool, clocks and events; exit 1 when something must be
        mended.
        """
        chosen = settings()
        found = examination.examine(
            chosen,
            redis_url=service.redis_url(chosen),
            database_url=service.find_database(chosen),
        )
        is_bad = False
        for finding in found:
            is_bad |= finding.level is examination.Level.ERROR
            if as_json:
                write_json([asdict(finding)])
            else:
                write_finding(
                    finding.level,
                    f"{finding.subject}: {finding.check}",
                    finding.seen,
                    finding.advice,
                )
            flush_output()
        raise typer.Exit(1 if is_bad else 0)

    @app.command()
    def config(as_json: Json = False) -> None:
        """Print the settings in force and where each came from; secrets masked."""
        chosen = settings()
        origins = chosen.origins()
        rows = [
            {"variable": variable(name), "value": value, "origin": origins[name]}
            for name, value in chosen.masked().items()
        ]
        write_rows(
            rows, {"variable": "variable", "value": "value", "origin": "from"}, as_json=as_json
        )
