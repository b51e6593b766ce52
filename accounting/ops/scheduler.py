"""The scheduler: runs the jobs at their intervals.

Any number of schedulers may run on one database: each transaction of a job takes that job's lock,
so that the same job never runs twice at a time. APScheduler plans by the machine's time of day,
which may be wrong and step; the steady clock shows which job it has not started in time.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
    JobSubmissionEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from accounting.db.engine import Engine, lost_connections
from accounting.errors import AccountingError, ConnectionLost, LockHeld
from accounting.ops import job_runs
from accounting.ops.registry import JOBS, Job

log = structlog.get_logger()

BLOCKED_WARNING_SECONDS: Final = 60.0
"""With several schedulers a job often finds its lock taken, but not for so long."""
OVERDUE_SECONDS: Final = 1.0
"""A job that is later than this by the steady clock is started; so often is that checked."""
SHUTDOWN_JOBS: Final = ("settle", "rollup")
"""Run once more when the scheduler stops, so that the books have everything loaded."""


def run_job(job: Job, engine: Engine) -> int:
    """Run a job once, log its result, and record it in the database.

    Raises what the job raises; LockHeld means that another session does its work, or hangs.
    """
    started = time.monotonic()
    try:
        count = job.run(engine)
    except LockHeld as held:
        _record_blocked(job, engine, str(held))
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ConnectionLost) else error
        error_type = type(getattr(cause, "orig", None) or cause).__name__
        # Without a database there is no record. With one that refuses locks or memory, there is.
        with suppress(ConnectionLost), lost_connections(), engine.begin() as connection:
            job_runs.record_failure(connection, job.name, error_type)
        raise
    seconds = time.monotonic() - started
    with lost_connections(), engine.begin() as connection:
        job_runs.record_success(connection, job.name, seconds)
    write_log = log.info if count else log.debug
    write_log("job done", job=job.name, seconds=round(seconds, 3), **{job.unit: count})
    return count


def _record_blocked(job: Job, engine: Engine, reason: str) -> None:
    with suppress(ConnectionLost), lost_connections(), engine.begin() as connection:
        seconds = job_runs.record_blocked(connection, job.name, reason)
        write_log = log.warning if seconds >= BLOCKED_WARNING_SECONDS else log.debug
        write_log("job can't run now", job=job.name, reason=reason, seconds=round(seconds))


def run_scheduler(
    engine: Engine,
    intervals_seconds: Mapping[str, float],
    stop: threading.Event,
    jobs: Mapping[str, Job] = JOBS,
) -> None:
    """Run the jobs until ``stop`` is set; then finish those that run, and run SHUTDOWN_JOBS.

    Each job runs at once, then at its interval; ``intervals_seconds`` overrides that by job name. A
    failed job is logged and runs again at its next interval; the other jobs continue. Raises
    AccountingError when a shutdown job fails, unless the database is unreachable.
    """
    intervals = {name: intervals_seconds.get(name, job.every_seconds) for name, job in jobs.items()}
    due = dict.fromkeys(jobs, time.monotonic())

    def on_start(event: JobSubmissionEvent) -> None:
        due[event.job_id] = time.monotonic() + intervals[event.job_id]

    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(len(jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone=UTC,
    )
    # A job that still runs when it is due again counts as started.
    scheduler.add_listener(on_start, EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES)
    scheduler.add_listener(_on_job_error, EVENT_JOB_ERROR)
    # APScheduler would log each failure a second time, an unreachable Postgres with a traceback,
    # and also a job that takes longer than its interval, which is no error.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    for name, job in jobs.items():
        scheduler.add_job(
            run_job,
            NextInterval(seconds=intervals[name], timezone=UTC),
            args=(job, engine),
            id=name,
            next_run_time=datetime.now(UTC),
        )
    scheduler.start()
    log.info("scheduling", jobs=list(jobs))
    while not stop.wait(OVERDUE_SECONDS):
        for name in jobs:
            # The machine's clock has stepped back: the planned time is too far ahead.
            if time.monotonic() > due[name] + OVERDUE_SECONDS:
                scheduler.modify_job(name, next_run_time=datetime.now(UTC))
    scheduler.shutdown(wait=True)
    for name in SHUTDOWN_JOBS:
        try:
            run_job(jobs[name], engine)
        except LockHeld as error:
            log.info("loaded reports are settled by another scheduler", reason=str(error))
        except ConnectionLost as error:
            log.warning("loaded reports are settled at the next start", reason=str(error))
            return
        except Exception as error:
            _log_failure(name, error)
            raise AccountingError(
                f"job {name} failed at the end ({type(error).__name__}, see the log): "
                "loaded reports are settled at the next start"
            ) from error


class NextInterval(IntervalTrigger):  # type: ignore[misc]  # APScheduler carries no types
    """An interval whose next time is never past.

    APScheduler's own lists each run that was missed before it drops all but one. After a step of
    the machine's clock by years it would list runs until memory is full.
    """

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The next run after the previous one, one interval from now if that time has passed."""
        following: datetime = super().get_next_fire_time(previous_fire_time, now)
        return following if following > now else now + self.interval


def _on_job_error(event: JobExecutionEvent) -> None:
    _log_failure(event.job_id, event.exception)


def _log_failure(job: str, error: BaseException) -> None:
    """Log a failed job: with a traceback, unless the database was unreachable."""
    if isinstance(error, LockHeld):
        return  # logged when it was recorded
    if isinstance(error, ConnectionLost):
        log.warning("job can't run now, trying again", job=job, reason=str(error))
    else:
        log.error("job failed, trying again", job=job, exc_info=error)
