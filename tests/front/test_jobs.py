"""A front runs jobs of its own, and a cell those of an installation that is no front."""

from collections.abc import Iterator
from threading import Event, Thread

import pytest

from accounting.ops.registry import FRONT_JOBS, JOBS
from accounting.ops.scheduler import run_scheduler
from accounting.ops.service import wait_for_kind
from tests.support.books import WRITER
from tests.support.command import turn_accounting
from tests.support.fronts import Front, open_front
from tests.support.servers import PostgresServer, wait_until


@pytest.fixture(scope="module")
def front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path_factory.mktemp("jobs"), ("north",)) as front:
        yield front


def test_the_scheduler_of_a_front_runs_its_jobs(front: Front) -> None:
    stop = Event()
    assert wait_for_kind(front.books.engine, stop) is True
    assert wait_for_kind(front.cells["north"].engine, stop) is False
    scheduler = Thread(target=run_scheduler, args=(front.books.engine, {}, stop, FRONT_JOBS))
    scheduler.start()
    query = "SELECT job FROM accounting.job_runs WHERE last_succeeded_at IS NOT NULL"
    try:
        wait_until(lambda: {row["job"] for row in front.books.query(query)} == {*FRONT_JOBS})
    finally:
        stop.set()
        scheduler.join()


@pytest.mark.parametrize("name", FRONT_JOBS)
def test_a_job_of_a_front_runs_by_hand(front: Front, name: str) -> None:
    done = turn_accounting("job", "run", name, database_url=front.books.url(WRITER))
    assert (done.code, done.err.split(": ")[1]) == (0, name)


def test_a_job_of_the_other_kind_is_refused(front: Front) -> None:
    on_front = turn_accounting("job", "run", "settle", database_url=front.books.url(WRITER))
    assert on_front.code == 2
    assert "this database is a front, and cells have the job 'settle'" in on_front.error_line
    url = front.cells["north"].url(WRITER)
    in_cell = turn_accounting("job", "run", "bill", database_url=url)
    assert in_cell.code == 2
    assert "this database is no front, and only fronts have the job 'bill'" in in_cell.error_line
    assert turn_accounting("job", "run", "nothing", database_url=url).code == 2
    assert {*FRONT_JOBS} & {*JOBS} == {"feed", "webhooks", "retain"}
