"""The scheduler: runs the jobs at their intervals.

Any number of schedulers may run on one database: each transaction of a job takes that job's lock,
so that the same job never runs twice at a time. No interval is measured by the machine's time of
day, which may be wrong, and step.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import structlog

from accounting.db.engine import Engine, lost_connections
from accounting.errors import AccountingError, ConnectionLost, LockHeld
from accounting.ops import job_runs
from accounting.ops.registry import JOBS, Job

log = structlog.get_logger()

BLOCKED_WARNING_SECONDS: Final = 60.0
"""With several schedulers a job often finds its lock taken, but not for so long."""
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
    threads = [
        threading.Thread(
            target=_run_at_intervals,
            args=(job, engine, intervals_seconds.get(name, job.every_seconds), stop),
            name=f"job {name}",
        )
        for name, job in jobs.items()
    ]
    for thread in threads:
        thread.start()
    log.info("scheduling", jobs=list(jobs))
    for thread in threads:
        thread.join()
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


def _run_at_intervals(
    job: Job, engine: Engine, interval_seconds: float, stop: threading.Event
) -> None:
    """Run a job until ``stop`` is set: at once, and at its interval by the steady clock.

    A run that takes longer than the interval is followed by the next one at once.
    """
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        try:
            run_job(job, engine)
        except Exception as error:  # noqa: BLE001  # any is logged, and the job tried again
            _log_failure(job.name, error)
        due = max(due + interval_seconds, time.monotonic())


def _log_failure(job: str, error: BaseException) -> None:
    """Log a failed job: with a traceback, unless the database was unreachable."""
    if isinstance(error, LockHeld):
        return  # logged when it was recorded
    if isinstance(error, ConnectionLost):
        log.warning("job can't run now, trying again", job=job, reason=str(error))
    else:
        log.error("job failed, trying again", job=job, exc_info=error)
