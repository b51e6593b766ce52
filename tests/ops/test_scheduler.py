"""The scheduler: what brings a job forward, jobs that take long, and the shutdown.

A shutdown settles loaded reports, and a failure there is an error of one line.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread

import psycopg
import pytest
from structlog.testing import capture_logs

from accounting.db.locks import lock
from accounting.db.notification import NEW_REPORTS, notify
from accounting.errors import AccountingError
from accounting.ops.registry import JOBS, Job
from accounting.ops.scheduler import run_scheduler
from tests.support.billing_scenarios import NOVEMBER_END_SECONDS, receive_november
from tests.support.books import Books, channel, status_payload
from tests.support.servers import wait_until


def test_a_scheduler_settles_loaded_reports_before_it_ends(books: Books) -> None:
    stop = Event()
    stop.set()
    books.receive(0, channel("status"), status_payload("new"))
    books.load()
    run_scheduler(books.engine, {}, stop)
    assert len(books.rows("sessions")) == 1


def test_a_shutdown_job_that_fails_raises_an_error_of_one_line(books: Books) -> None:
    stop = Event()
    stop.set()
    books.receive(0, channel("status"), status_payload("new"))
    books.load()
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute("ALTER TABLE accounting.settle_watermarks RENAME TO gone")
    with (
        capture_logs() as logs,
        pytest.raises(AccountingError, match=r"^job settle failed at the end \(ProgrammingError"),
    ):
        run_scheduler(books.engine, {}, stop)
    assert logs[-1]["job"] == "settle"


def test_new_reports_bring_the_jobs_forward(books: Books) -> None:
    with running(books, dict.fromkeys(JOBS, 16.0)):
        wait_until(lambda: runs(books, "rollup") == 1)

        def is_brought_forward() -> bool:
            notify(books.engine, NEW_REPORTS)  # the scheduler may not listen yet
            return runs(books, "rollup") > 1

        wait_until(is_brought_forward, 12)  # it runs again by itself only after 16 s


def test_a_job_that_takes_long_delays_none_that_follows_reports(books: Books) -> None:
    end = Event()
    slow = replace(JOBS["gaps"], run=lambda _: int(end.wait()))
    with running(books, {"settle": 0.1, "rollup": 0.1}, {**JOBS, "gaps": slow}):
        try:
            wait_until(lambda: runs(books, "rollup") > 2)
        finally:
            end.set()
        wait_until(lambda: runs(books, "gaps") == 1)


def test_a_job_that_finds_work_while_the_scheduler_stops_ends_with_it(books: Books) -> None:
    stop, has_begun = Event(), Event()

    def find_work(_: object) -> int:
        has_begun.set()
        return int(stop.wait())

    jobs = {**JOBS, "gaps": replace(JOBS["gaps"], run=find_work)}
    with running(books, {}, jobs, stop):
        assert has_begun.wait(30)


@contextmanager
def running(
    books: Books,
    intervals: Mapping[str, float],
    jobs: Mapping[str, Job] = JOBS,
    stop: Event | None = None,
) -> Iterator[None]:
    """A scheduler in a thread, which ends with the block."""
    stop = stop or Event()
    thread = Thread(target=run_scheduler, args=(books.engine, intervals, stop, jobs), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def runs(books: Books, job: str) -> int:
    rows = books.query("SELECT runs FROM accounting.job_runs WHERE job = %s", [job])
    return sum(row["runs"] for row in rows)


def test_a_period_that_waits_for_nothing_closes_when_the_scheduler_starts(books: Books) -> None:
    """Not at the next interval: the job follows those whose work it waits for."""
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.load()
    assert books.rows("periods") == []
    with running(books, dict.fromkeys(JOBS, 600.0)):
        wait_until(lambda: "closed" in {row["state"] for row in books.rows("periods")})


def test_a_job_that_finds_a_lock_taken_runs_again_soon(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounting.ops.scheduler.RETRY_SECONDS", 0.2)
    with books.engine.connect() as other:
        lock(other, "rollup")
        with running(books, dict.fromkeys(JOBS, 600.0)):
            try:
                wait_until(lambda: blocked(books, "rollup"))
            finally:
                other.rollback()
            wait_until(lambda: runs(books, "rollup") == 1, 12)


def blocked(books: Books, job: str) -> bool:
    query = "SELECT 1 FROM accounting.job_runs WHERE job = %s AND blocked_since IS NOT NULL"
    return bool(books.query(query, [job]))
