"""Results of job runs: when each job last succeeded, how long that took, how often it failed."""

from sqlalchemy import Connection, func
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import job_runs


def record_success(connection: Connection, job: str, seconds: float) -> None:
    """Record that a job succeeded just now."""
    values = {"last_succeeded_at": func.now(), "last_seconds": seconds, "failures_in_a_row": 0}
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
