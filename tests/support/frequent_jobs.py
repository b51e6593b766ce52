"""Runs ``turn-accounting`` with short waits and jobs that run each second, for months that pass in
seconds: ``python -m tests.support.frequent_jobs schedule``.

The variable NEXT_MIGRATIONS names the migrations of a later version, which it is then.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import accounting.__main__  # noqa: F401  # it imports the others without rich
from accounting.cli.main import main
from accounting.db import migrations, revisions
from accounting.ops import registry
from tests.support.cell_site import NEXT_MIGRATIONS
from tests.support.short_waits import CAPTURE, SERVICE, shorten

FORWARDING: Final = {"accounting.front.feed.forward_feed.MAX_PAUSE_SECONDS": 1.0}
MOST_SECONDS: Final = 2.0
RARE_SECONDS: Final = 3600.0


def run_jobs_often() -> None:
    """All jobs but those that run once an hour."""
    for name in ("JOBS", "FRONT_JOBS"):
        jobs = {
            job.name: replace(job, every_seconds=min(job.every_seconds, MOST_SECONDS))
            if job.every_seconds < RARE_SECONDS
            else job
            for job in getattr(registry, name).values()
        }
        setattr(registry, name, jobs)


def use_migrations(directory: Path) -> None:
    for module in (migrations, revisions):
        setattr(module, "migrations_directory", lambda: directory)  # noqa: B010


if __name__ == "__main__":
    shorten({**CAPTURE, **SERVICE, **FORWARDING})
    run_jobs_often()
    if NEXT_MIGRATIONS in os.environ:
        use_migrations(Path(os.environ[NEXT_MIGRATIONS]))
    main()
