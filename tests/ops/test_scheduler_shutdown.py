"""The shutdown of a scheduler: it settles loaded reports, and a failure is an error of one line."""

from threading import Event

import psycopg
import pytest
from structlog.testing import capture_logs

from accounting.errors import AccountingError
from accounting.ops.scheduler import run_scheduler
from tests.support.books import Books, channel, status_payload


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
