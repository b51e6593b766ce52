"""Results of job runs: when each job last succeeded, how long that took, how often it failed.

Also since when it could not take its lock: ``blocked_since`` is the first run without it after the
last success, by any scheduler, and ``blocked_at`` the last.
"""

from sqlalchemy import Connection, func
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import job_runs


def record_success(connection: Connection, job: str, seconds: float) -> None:
    """Record that a job succeeded just now."""
    values = {
        "last_succeeded_at": func.now(),
        "last_seconds": seconds,
        "failures_in_a_row": 0,
        "blocked_since": None,
        "blocked_at": None,
        "blocked_by": None,
    }
    connection.execute(
        insert(job_runs)
        .values(job=job, runs=1, **values)
        .on_conflict_do_update(
            constraint="job_runs_pkey", set_={"runs": job_runs.c.runs + 1, **values}
        )
    )


def record_failure(connection: Connection, job: str, error: str) -> None:
    """Record that a job failed just now. ``error``: the type only, as messages may hold names."""
    values = {"last_failed_at": func.now(), "last_error": error}
    connection.execute(
        insert(job_runs)
        .values(job=job, runs=1, failures=1, failures_in_a_row=1, **values)
        .on_conflict_do_update(
            constraint="job_runs_pkey",
            set_={
                "runs": job_runs.c.runs + 1,
                "failures": job_runs.c.failures + 1,
                "failures_in_a_row": job_runs.c.failures_in_a_row + 1,
                **values,
            },
        )
    )


def record_blocked(connection: Connection, job: str, reason: str) -> float:
    """Record that a job could not take its lock just now; returns for how many seconds so far.

    ``reason``: names the lock and its holder.
    """
    values = {"blocked_at": func.now(), "blocked_by": reason}
    seconds: float = connection.execute(
        insert(job_runs)
        .values(job=job, blocked_since=func.now(), **values)
        .on_conflict_do_update(
            constraint="job_runs_pkey",
            set_={
                "blocked_since": func.coalesce(job_runs.c.blocked_since, func.now()),
                **values,
            },
        )
        .returning(func.extract("epoch", job_runs.c.blocked_at - job_runs.c.blocked_since))
    ).scalar_one()
    return float(seconds)
