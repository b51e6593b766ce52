"""The scheduler: runs the jobs at their intervals. Owns when, knows nothing of what.

Any number of schedulers may run on one database: each job takes a lock of the database for each
transaction, so none runs twice at once.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from accounting.db.engine import Engine, lost_connections
from accounting.errors import AccountingError, ConnectionLost
from accounting.ops import job_runs
from accounting.ops.registry import JOBS, Job

log = structlog.get_logger()

SHUTDOWN_JOBS: Final = ("settle", "rollup")
"""Run once more when the scheduler ends, so that what was loaded is in the books."""


def run_job(job: Job, engine: Engine) -> int:
    """Run a job once, log what it did, and note in the database how it went."""
    started = time.monotonic()
    try:
        done = job.run(engine)
    except ConnectionLost:
        raise
    except Exception as error:
        kind = type(getattr(error, "orig", None) or error).__name__
        with suppress(ConnectionLost), lost_connections(), engine.begin() as connection:
            job_runs.record_failure(connection, job.name, kind)
        raise
    seconds = time.monotonic() - started
    with lost_connections(), engine.begin() as connection:
        job_runs.record_success(connection, job.name, seconds)
    say = log.info if done else log.debug
    say("job done", job=job.name, seconds=round(seconds, 3), **{job.unit: done})
    return done


def run_scheduler(
    engine: Engine,
    intervals_seconds: Mapping[str, float],
    stop: threading.Event,
    jobs: Mapping[str, Job] = JOBS,
) -> None:
    """Run the jobs until ``stop`` is set, then let those under way end, and settle once more.

    Raises AccountingError when that fails otherwise than for a database that is away.

    A job that fails is logged with its error and runs again at its next turn; the others go on.
    ``intervals_seconds``: by name of job, where it is not the job's own; a job runs first when the
    scheduler starts.
    """
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(len(jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )
    scheduler.add_listener(_on_job_error, EVENT_JOB_ERROR)
    # It would log each failure a second time, Postgres merely away with a trace at every turn, and
    # a job that takes longer than its interval, which is no fault.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    for name, job in jobs.items():
        scheduler.add_job(
            run_job,
            "interval",
            args=(job, engine),
            id=name,
            seconds=intervals_seconds.get(name, job.every_seconds),
            next_run_time=datetime.now(UTC),
        )
    scheduler.start()
    log.info("scheduling", jobs=list(jobs))
    stop.wait()
    scheduler.shutdown(wait=True)
    for name in SHUTDOWN_JOBS:
        try:
            run_job(jobs[name], engine)
        except ConnectionLost as error:
            log.warning("what is left is settled at the next start", reason=str(error))
            return
        except Exception as error:
            _log_failure(name, error)
            raise AccountingError(
                f"job {name} failed at the end ({type(error).__name__}, see the log): what is left "
                "is settled at the next start"
            ) from error


def _on_job_error(event: JobExecutionEvent) -> None:
    """Log a failed job: with its trace, unless the database was merely away."""
    _log_failure(event.job_id, event.exception)


def _log_failure(job: str, error: BaseException) -> None:
    if isinstance(error, ConnectionLost):
        log.warning("job can't run now, trying again", job=job, reason=str(error))
    else:
        log.error("job failed, trying again", job=job, exc_info=error)
