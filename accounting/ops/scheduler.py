"""The scheduler: runs the jobs at their intervals.

Any number of schedulers may run on one database: each transaction of a job takes that job's lock,
so that the same job never runs twice at a time. The jobs of one scheduler run in turn in three
threads: those that follow reports in one, those that may take long in another, and the delivery of
webhooks, which waits for other people's servers, in the third. On a front, what waits for the
databases of cells runs in a fourth.

APScheduler plans by the machine's time of day, which may be wrong and step; the steady clock shows
which job it has not started in time. Only the scheduler's process imports this, which takes 4 MB.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from accounting.db.engine import Engine, lost_connections
from accounting.db.notification import NEW_REPORTS, Listener
from accounting.errors import AccountingError, ConfigurationError, ConnectionLost, LockHeld
from accounting.ops import job_runs
from accounting.ops.registry import JOBS, Job

log = structlog.get_logger()

BLOCKED_WARNING_SECONDS: Final = 60.0
"""With several schedulers a job often finds its lock taken, but not for so long."""
OVERDUE_SECONDS: Final = 1.0
"""A job that is later than this by the steady clock is started; so often is that checked."""
IDLE_INTERVALS: Final = 5
"""How many intervals a job that follows reports waits while none come."""
IDLE_SPACING: Final = 1 / 8
"""Of an interval: the least between a run that found nothing and one for new reports."""
RETRY_SECONDS: Final = 2.0
"""After this a job runs again that found a lock taken, of another job that started with it."""
SHUTDOWN_JOBS: Final = ("settle", "rollup")
"""Run once more when the scheduler stops, so that the books have everything loaded."""


def run_job(job: Job, engine: Engine, stop: threading.Event | None = None) -> int:
    """Run a job once, log its result, and record it in the database.

    ``stop``: ends a job early that may have work for as long as there is any. Raises what the job
    raises; LockHeld means that another session does its work, or hangs.
    """
    started = time.monotonic()
    try:
        if stop is None or job.run_until is None:
            count = job.run(engine)
        else:
            count = job.run_until(engine, stop)
    except LockHeld as held:
        _record_blocked(job, engine, str(held))
        raise
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, ConnectionLost) else None) or error
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

    Each job runs at once, or after those that it follows, then at its interval;
    ``intervals_seconds`` overrides that by job name. A failed job is logged
    and runs again at its next interval; the other jobs continue. Raises AccountingError when a
    shutdown job fails, unless the database is unreachable.
    """
    # APScheduler would log a job that takes longer than its interval, which is no error.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    schedule = _Schedule(engine, intervals_seconds, jobs)
    with schedule.running():
        log.info("scheduling", jobs=list(jobs))
        while not stop.wait(OVERDUE_SECONDS):
            schedule.start_overdue()
    for name in SHUTDOWN_JOBS:
        if name not in jobs:  # of a front
            continue
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


class _JobTrigger(NextInterval):
    """When one job runs, and what that follows from. Times are the steady clock's.

    A job that follows reports runs at every IDLE_INTERVALS of its intervals only, once it has found
    nothing and ``is_listening`` says that notifications of new reports would come.
    """

    def __init__(self, job: Job, seconds: float, is_listening: Callable[[], bool]) -> None:
        super().__init__(seconds=seconds, timezone=UTC)
        self._job = job
        self._is_listening = is_listening
        self._spacing_seconds = 0.0
        self._started_at = float("-inf")
        self._found_nothing = False
        self._has_new_reports = False
        """Since the job began to run last."""
        self.due = time.monotonic() + (self.interval_length if job.after else 0.0)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Called whenever the job is started, or still runs when it is due: its next run."""
        rests = self._found_nothing and self._job.follows_reports and self._is_listening()
        extra: timedelta = (IDLE_INTERVALS - 1) * self.interval if rests else timedelta(0)
        self.due = time.monotonic() + self.interval_length + extra.total_seconds()
        return super().get_next_fire_time(previous_fire_time, now) + extra

    @property
    def is_overdue(self) -> bool:
        """Whether the machine's clock has stepped back: the planned time is too far ahead."""
        return time.monotonic() > self.due + OVERDUE_SECONDS

    def begin(self) -> None:
        self._started_at = time.monotonic()
        self._has_new_reports = False

    def end(self, *, found_nothing: bool) -> None:
        self._found_nothing = found_nothing
        self._spacing_seconds = self.interval_length * (IDLE_SPACING if found_nothing else 1)

    @property
    def missed_reports(self) -> bool:
        """Whether reports came while the job ran, which found nothing."""
        return self._found_nothing and self._has_new_reports

    def earlier_run(self) -> datetime | None:
        """For new reports: when the job runs now; None when its planned time stays."""
        self._has_new_reports = True
        return self._bring_forward(max(time.monotonic(), self._started_at + self._spacing_seconds))

    def retry(self) -> datetime | None:
        """After a run that found a lock taken: when the job runs again; None as above."""
        return self._bring_forward(time.monotonic() + RETRY_SECONDS)

    def first_run(self) -> datetime | None:
        """Once the jobs have run that it follows: now, unless it has run already; None as above."""
        return None if self.has_run else self._bring_forward(time.monotonic())

    def _bring_forward(self, due: float) -> datetime | None:
        if due >= self.due:
            return None
        self.due = due
        return datetime.now(UTC) + timedelta(seconds=due - time.monotonic())

    @property
    def has_run(self) -> bool:
        return self._started_at > float("-inf")


class _Schedule:
    """The jobs in APScheduler, one at a time in each of their threads."""

    def __init__(
        self, engine: Engine, intervals_seconds: Mapping[str, float], jobs: Mapping[str, Job]
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._listener = Listener(engine, NEW_REPORTS, self._run_for_new_reports)
        self._triggers = {
            name: _JobTrigger(
                job,
                intervals_seconds.get(name, job.every_seconds),
                lambda: self._listener.is_listening,
            )
            for name, job in jobs.items()
        }
        self._lock = threading.Lock()
        self._succeeded: set[str] = set()
        self._is_ending = False
        self._stop = threading.Event()
        self._scheduler = BackgroundScheduler(
            executors={
                thread: ThreadPoolExecutor(1)
                for thread in ("default", "reports", "webhooks", "cells")
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the jobs until the block ends; then finish those that run."""
        for name, job in self._jobs.items():
            trigger = self._triggers[name]
            delay_seconds = trigger.interval_length if job.after else 0.0
            self._scheduler.add_job(
                self._run,
                trigger,
                args=(name,),
                id=name,
                executor=job.thread,
                next_run_time=datetime.now(UTC) + timedelta(seconds=delay_seconds),
            )
        self._scheduler.start()
        try:
            with self._listener.running():
                yield
        finally:
            # APScheduler holds the lock of its plan while it waits for the jobs that run.
            with self._lock:
                self._is_ending = True
            self._stop.set()
            self._scheduler.shutdown(wait=True)

    def start_overdue(self) -> None:
        """Start the jobs that the steady clock says should have started."""
        for name, trigger in self._triggers.items():
            if trigger.is_overdue:
                self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def _run(self, name: str) -> None:
        if self._is_ending:
            return
        trigger = self._triggers[name]
        trigger.begin()
        count = None
        try:
            count = run_job(self._jobs[name], self._engine, self._stop)
        except LockHeld:  # logged when it was recorded
            self._bring_forward(name, trigger.retry)
        except Exception as error:  # noqa: BLE001  # any is logged, and the job tried again
            _log_failure(name, error)
        trigger.end(found_nothing=count == 0)
        if count or trigger.missed_reports:
            self._run_for_new_reports()
        if count is not None and name not in self._succeeded:
            self._succeeded.add(name)
            for other, job in self._jobs.items():
                if name in job.after and self._succeeded.issuperset(job.after):
                    self._bring_forward(other, self._triggers[other].first_run)

    def _run_for_new_reports(self) -> None:
        """Bring the jobs forward that follow reports, or what another one made of them."""
        for name, job in self._jobs.items():
            if job.follows_reports:
                self._bring_forward(name, self._triggers[name].earlier_run)

    def _bring_forward(self, name: str, plan: Callable[[], datetime | None]) -> None:
        """Run a job at the time that ``plan`` returns, unless that is None."""
        with self._lock:
            if not self._is_ending and (run_time := plan()) is not None:
                self._scheduler.modify_job(name, next_run_time=run_time)


def _log_failure(job: str, error: BaseException) -> None:
    """Log a failed job: with a traceback, unless the database was unreachable."""
    if isinstance(error, ConnectionLost):
        log.warning("job can't run now, trying again", job=job, reason=str(error))
    elif isinstance(error, ConfigurationError):
        log.error("job can't run until this is changed", job=job, reason=str(error))
    else:
        log.error("job failed, trying again", job=job, exc_info=error)
