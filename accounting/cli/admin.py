"""The commands for the database and its jobs: ``db upgrade|current``, ``job run``."""

from typing import Annotated, Final

import typer

from accounting.cli.output import write, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.errors import LockHeld, UsageError
from accounting.plurals import counted

JOB_NAMES: Final = (
    "settle", "rollup", "partitions", "gaps", "feed", "adjust", "close", "webhooks", "retain",
)  # fmt: skip
"""Those of the registry, which is imported when one runs."""
FRONT_JOB_NAMES: Final = (
    "forward",
    "feed",
    "bill",
    "peaks",
    "limits",
    "share",
    "webhooks",
    "retain",
)
"""Those of a front."""
ALL_JOB_NAMES: Final = tuple(dict.fromkeys(JOB_NAMES + FRONT_JOB_NAMES))

JOB_HELP: Final = (
    f"One of: {', '.join(JOB_NAMES)}; on a front, one of: {', '.join(FRONT_JOB_NAMES)}."
)


def register(app: typer.Typer) -> None:
    """Add the groups ``db`` and ``job``."""
    db = typer.Typer(help="Upgrade and check the database's schema.", no_args_is_help=True)
    db.command("upgrade")(upgrade)
    db.command("current")(current)
    app.add_typer(db, name="db")
    jobs = typer.Typer(help="Run scheduled jobs by hand.", no_args_is_help=True)
    jobs.command("run")(run_job)
    app.add_typer(jobs, name="job")


def upgrade() -> None:
    """Upgrade the database to this version's schema."""
    from accounting.front import cell_views
    from accounting.ops import servers

    with servers.database(command_settings(), may_create=True) as engine:
        write(f"{cell_views.upgrade(engine)}\n")


def current() -> None:
    """Print the database's revision; exit 1 when it is not this version's."""
    from accounting.db import migrations
    from accounting.db.revisions import head_revision
    from accounting.ops import servers

    with servers.database(command_settings()) as engine:
        revision = migrations.current_revision(engine)
    write(f"{revision or 'none'}\n")
    if revision != head_revision():
        write_message(f"this version needs {head_revision()}: run `turn-accounting db upgrade`")
        raise typer.Exit(1)


def run_job(
    name: Annotated[str, typer.Argument(help=JOB_HELP)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the job would do; only for retain.")
    ] = False,
) -> None:
    """Run one job now, to its end; exit 3 while another session holds its lock."""
    if name not in ALL_JOB_NAMES:
        raise UsageError(f"no job {name!r}: expected one of {', '.join(ALL_JOB_NAMES)}")
    from accounting.ops import service

    settings = command_settings()
    with writer_engine(settings) as engine:
        on_front = service.is_front_database(engine)
        jobs = service.configured_jobs(settings, is_front=on_front)
        if name not in jobs:
            kind = "a front, and cells have" if on_front else "no front, and only fronts have"
            raise UsageError(
                f"this database is {kind} the job {name!r}: expected one of {', '.join(jobs)}"
            )
        job = jobs[name]
        if dry_run and job.preview is None:
            raise UsageError(f"job {name!r} has no --dry-run: it only adds what is missing")
        if dry_run and job.preview is not None:
            for line in job.preview(engine):
                write(f"{line}\n")
            return
        try:
            count = job.run(engine)
        except LockHeld as held:
            raise LockHeld(f"job {name} can't run now: {held}") from held
    write_message(f"{name}: {counted(count, job.unit.removesuffix('s'), job.unit)}")
