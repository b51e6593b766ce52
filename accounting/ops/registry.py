"""The jobs by name: what ``turn-accounting job run NAME`` and the scheduler know."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Engine

from accounting.audit.retention import preview, retain
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.feed.number_feed import number_feed
from accounting.ingest.partitions import make_partitions
from accounting.sessions.describe_gaps import describe_gaps
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A named step. ``run`` is idempotent and returns how much it did, in ``unit``s.

    ``every_seconds``: the pause between two runs, where the settings name no other. ``preview``
    says in lines what ``run`` would do, and changes nothing; None: the job has none.
    """

    name: str
    description: str
    unit: str
    every_seconds: float
    run: Callable[[Engine], int]
    preview: Callable[[Engine], Iterable[str]] | None = None


JOBS: Final[Mapping[str, Job]] = {
    job.name: job
    for job in (
        Job(
            name="settle",
            description="Settle what is loaded into sessions, and end those whose time has passed",
            unit="reports",
            every_seconds=2.0,
            run=settle,
        ),
        Job(
            name="rollup",
            description="Add what settling changed to the usage of users and realms",
            unit="hours",
            every_seconds=2.0,
            run=rollup,
        ),
        Job(
            name="partitions",
            description="Make the partitions of the coming days",
            unit="partitions",
            every_seconds=3600.0,
            run=make_partitions,
        ),
        Job(
            name="gaps",
            description="Say of each capture gap what became of the sessions that lived through it",
            unit="gaps",
            every_seconds=60.0,
            run=describe_gaps,
        ),
        Job(
            name="feed",
            description="Number the events for the billing worker, and wake those who wait",
            unit="events",
            every_seconds=2.0,
            run=number_feed,
        ),
        Job(
            name="adjust",
            description="Post what changed in closed periods, once, as adjustments",
            unit="adjustments",
            every_seconds=30.0,
            run=adjust,
        ),
        Job(
            name="close",
            description="Draw the billing periods, and close those that wait for nothing",
            unit="periods",
            every_seconds=60.0,
            run=close_periods,
        ),
        Job(
            name="retain",
            description="Drop the days of reports that are older than the setting, and proved",
            unit="days",
            every_seconds=3600.0,
            run=lambda engine: retain(engine, None),
            preview=lambda engine: preview(engine, None),
        ),
    )
}


def with_settings(*, report_retention_days: int | None) -> Mapping[str, Job]:
    """The jobs as the settings have them. ``report_retention_days`` None: kept for ever."""
    retaining = replace(
        JOBS["retain"],
        run=lambda engine: retain(engine, report_retention_days),
        preview=lambda engine: preview(engine, report_retention_days),
    )
    return {**JOBS, "retain": retaining}
