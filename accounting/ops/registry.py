"""The jobs by name, for the scheduler and ``turn-accounting job run NAME``."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from sqlalchemy import Engine

from accounting.audit.pruning import PruneLimits, prune
from accounting.audit.retention import preview, retain
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.feed.number_feed import number_feed
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.feed.forward_feed import forward_feed
from accounting.front.limits.evaluate_limits import evaluate_limits
from accounting.front.peaks.count_peaks import count_peaks
from accounting.front.shared.share import share
from accounting.ingest.partitions import make_partitions
from accounting.sessions.describe_gaps import describe_gaps
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup
from accounting.webhooks.attempts import prune_attempts
from accounting.webhooks.delivery import DeliverySettings, deliver
from accounting.webhooks.refusals import prune_refusals


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job. ``run`` is idempotent and returns how many ``unit`` it processed.

    ``every_seconds``: the interval, unless the settings have another one. ``preview`` yields a line
    of text for each thing that ``run`` would do, and changes nothing; None: the job has no preview.
    ``follows_reports``: all that it does follows from loaded reports, so that it runs more rarely
    while there are none, and at once when some come. ``after``: the jobs without whose first run
    this one would find nothing to do. ``thread``: jobs of the same thread run in turn; those that
    follow reports must not wait for long ones, nor any for the servers of others. ``cells``: the
    databases of the cells, which a front waits for.
    ``run_until``: as ``run``, of a job that may have work for as long as there is any; it ends soon
    after the event is set.
    """

    name: str
    description: str
    unit: str
    every_seconds: float
    run: Callable[[Engine], int]
    preview: Callable[[Engine], Iterable[str]] | None = None
    follows_reports: bool = False
    thread: Literal["reports", "default", "webhooks", "cells"] = "default"
    after: Collection[str] = ()
    run_until: Callable[[Engine, threading.Event], int] | None = None


JOBS: Final[Mapping[str, Job]] = {
    job.name: job
    for job in (
        Job(
            name="settle",
            description="Fold loaded reports into sessions, and end expired sessions",
            unit="reports",
            every_seconds=2.0,
            run=settle,
            follows_reports=True,
            thread="reports",
        ),
        Job(
            name="rollup",
            description="Add usage deltas to the hours, days and months of users and realms",
            unit="hours",
            every_seconds=2.0,
            run=rollup,
            follows_reports=True,
            thread="reports",
        ),
        Job(
            name="partitions",
            description="Create the partitions of the coming days",
            unit="partitions",
            every_seconds=3600.0,
            run=make_partitions,
        ),
        Job(
            name="gaps",
            description="Record for each capture gap what became of the sessions open during it",
            unit="gaps",
            every_seconds=60.0,
            run=describe_gaps,
        ),
        Job(
            name="feed",
            description="Number the events of the feed, and notify its consumers",
            unit="events",
            every_seconds=2.0,
            run=number_feed,
            follows_reports=True,
            thread="reports",
        ),
        Job(
            name="adjust",
            description="Post late usage of closed periods as adjustments",
            unit="adjustments",
            every_seconds=30.0,
            run=adjust,
            after=("settle", "rollup"),
        ),
        Job(
            name="close",
            description="Create billing periods, and close those that are complete",
            unit="periods",
            every_seconds=60.0,
            run=close_periods,
            after=("settle", "rollup"),
        ),
        Job(
            name="webhooks",
            description="Deliver the events of the feed to the endpoints of webhooks",
            unit="events",
            every_seconds=2.0,
            run=deliver,
            run_until=deliver,
            follows_reports=True,
            thread="webhooks",
        ),
        Job(
            name="retain",
            description="Delete details that are older than the settings keep them: of what was "
            "never billed, and verified reports, whole days at a time",
            unit="records",
            every_seconds=3600.0,
            run=lambda engine: _retain(engine, PruneLimits(), None, None),
            preview=lambda engine: preview(engine, None),
        ),
    )
}
"""Those of a database with sources: a cell, or an installation that is no front."""


def _prune_webhooks(engine: Engine) -> int:
    return prune_attempts(engine) + prune_refusals(engine)


FRONT_JOBS: Final[Mapping[str, Job]] = {
    job.name: job
    for job in (
        Job(
            name="forward",
            description="Forward the feeds of the cells into that of the front",
            unit="events",
            every_seconds=2.0,
            run=forward_feed,
            thread="cells",
        ),
        JOBS["feed"],
        Job(
            name="bill",
            description="Copy the periods that all cells have closed, and their adjustments",
            unit="records",
            every_seconds=60.0,
            run=copy_billing,
        ),
        Job(
            name="peaks",
            description="Count the peaks over all cells, of hours that changed in one",
            unit="hours",
            every_seconds=60.0,
            run=count_peaks,
            thread="cells",
        ),
        Job(
            name="limits",
            description="Compare the limits with what users and realms use in all cells",
            unit="events",
            every_seconds=5.0,
            run=evaluate_limits,
            thread="cells",
        ),
        Job(
            name="share",
            description="Bring the rules of realms, the names of sources and erasures to all cells",
            unit="changes",
            every_seconds=60.0,
            run=share,
            thread="cells",
        ),
        JOBS["webhooks"],
        Job(
            name="retain",
            description="Delete details of the delivery of webhooks that are older than they are "
            "kept",
            unit="records",
            every_seconds=3600.0,
            run=_prune_webhooks,
        ),
    )
}
"""Those of a front, which has no reports: what its cells have settled, rolled up and closed."""


def _retain(
    engine: Engine,
    limits: PruneLimits,
    report_retention_days: int | None,
    report_archive: str | None,
) -> int:
    pruned = prune(engine, limits) + _prune_webhooks(engine)
    return pruned + retain(engine, report_retention_days, report_archive)


def with_settings(
    *,
    report_retention_days: int | None,
    report_archive: str | None,
    prune_limits: PruneLimits,
    delivery: DeliverySettings,
    is_front: bool = False,
) -> Mapping[str, Job]:
    """The jobs with the settings applied.

    ``report_retention_days`` None: keep reports for ever. ``report_archive`` None: drop them
    without an archive. ``is_front``: those of a front.
    """
    retain_job = replace(
        JOBS["retain"],
        run=lambda engine: _retain(engine, prune_limits, report_retention_days, report_archive),
        preview=lambda engine: preview(engine, report_retention_days, report_archive),
    )
    webhooks_job = replace(
        JOBS["webhooks"],
        run=lambda engine: deliver(engine, settings=delivery),
        run_until=lambda engine, stop: deliver(engine, stop, delivery),
    )
    if is_front:
        return {**FRONT_JOBS, "webhooks": webhooks_job}
    return {**JOBS, "retain": retain_job, "webhooks": webhooks_job}
