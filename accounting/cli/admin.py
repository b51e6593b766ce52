"""The commands for the database and its jobs: ``db upgrade|current``, ``job run``."""

from collections.abc import Callable
from typing import Annotated

import typer

from accounting.cli.terminal import warn, write
from accounting.config import Settings
from accounting.db import migrations
from accounting.errors import UsageError
from accounting.ops import service
from accounting.ops.registry import JOBS


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    db = typer.Typer(help="The database's schema.", no_args_is_help=True)
    jobs = typer.Typer(help="The scheduled jobs, run by hand.", no_args_is_help=True)
    app.add_typer(db, name="db")
    app.add_typer(jobs, name="job")

    @db.command()
    def upgrade() -> None:
        """Bring the database to this version's schema."""
        with service.database(settings()) as engine:
            write(f"{migrations.upgrade(engine)}\n")

    @db.command()
    def current() -> None:
        """Print the database's revision; exit 1 when it is not this version's."""
        with service.database(settings()) as engine:
            found = migrations.current(engine)
        write(f"{found or 'none'}\n")
        if found != migrations.head():
            warn(f"this version needs {migrations.head()}: run `turn-accounting db upgrade`")
            raise typer.Exit(1)

    @jobs.command("run")
    def run_job(
        name: Annotated[str, typer.Argument(help=f"One of: {', '.join(JOBS)}.")],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only say what it would do; retain knows this.")
        ] = False,
    ) -> None:
        """Run one job now, to its end."""
        if name not in JOBS:
            raise UsageError(f"no job {name!r}: expected one of {', '.join(JOBS)}")
        chosen = settings()
        job = service.jobs(chosen)[name]
        if dry_run and job.preview is None:
            raise UsageError(f"job {name!r} has no --dry-run: it only adds what is missing")
        with service.database(chosen, service.WRITER) as engine:
            migrations.require_head(engine)
            if dry_run and job.preview is not None:
                for line in job.preview(engine):
                    write(f"{line}\n")
                return
            done = job.run(engine)
        warn(f"{name}: {done} {job.unit}")
