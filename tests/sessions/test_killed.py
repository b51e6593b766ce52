"""Jobs killed before any statement, within any COPY, and before or after any COMMIT.

The connection is closed as if the process had died, and the job runs again.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from accounting.audit.verify import verify
from accounting.errors import ConnectionLost
from accounting.ingest.loader import Loader
from accounting.sessions.settle import settle
from accounting.usage.rollup import rollup
from tests.support.books import Books
from tests.support.coturn_messages import OTHER_SERVER_ADDRESS, FakeAllocation
from tests.support.crash_injection import (
    BACKEND_IS_ALIVE,
    CrashInjector,
    crashing_engine,
    run_through_crashes,
)
from tests.support.scenario_player import all_rows, restarted_loader
from tests.support.servers import wait_until
from tests.support.truncate import empty_database

NOTHING: Final = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)


def receive_settled_events(books: Books) -> None:
    """Settled beforehand: active sessions, an expired one, and unauthenticated traffic."""
    FakeAllocation(books, user="expired").new(0)
    FakeAllocation(books, user="expired").interim(10, *HALF)
    for user in ("closing", "shared"):
        FakeAllocation(books, user=user).new(20, 7200)
        FakeAllocation(books, user=user).interim(30, *HALF)
    FakeAllocation(books, user="unauthenticated").interim(40, *HALF)
    books.advance_clock(700)
    books.run_jobs()
    FakeAllocation(books, user="expired").interim(710, *HALF)
    books.advance_clock(720)
    books.run_jobs()


def receive_unsettled_events(books: Books) -> None:
    """Settled by the killed jobs: ends, a reopened session, another server, a reused id."""
    FakeAllocation(books, user="shared", server_address=OTHER_SERVER_ADDRESS).new(730, 600)
    FakeAllocation(books, user="expired").close(740, WHOLE, NOTHING)
    FakeAllocation(books, user="closing").close(4000, WHOLE, HALF)
    FakeAllocation(books, user="closing").new(4010)
    FakeAllocation(books, user="unauthenticated").new(4020)
    FakeAllocation(books, user="brandnew", realm="").new(100_000)
    FakeAllocation(books, user="brandnew").publish(100_001, "status", b"nonsense")
    gap = books.spool().open_gap(books.micros_at(100_002), "connection_lost")
    books.spool().close_gap(gap, books.micros_at(100_003))
    books.advance_clock(200_000)


def test_a_loader_whose_connection_is_cut_at_any_statement_goes_on_with_its_memory(
    books: Books, tmp_path: Path
) -> None:
    """It drops what it remembers of a transaction that failed, or whose COMMIT was not answered."""
    receive_settled_events(books)
    receive_unsettled_events(books)
    books.run_jobs()
    undisturbed = all_rows(books)
    empty_database(books.server, books.name)
    again = Books(books.server, books.name, tmp_path / "again")
    receive_settled_events(again)
    cut = CrashInjector(survives=True)
    with crashing_engine(again, cut) as engine:
        loader = Loader(engine, again.spool(), again.rule)
        while loader.load():
            pass
        receive_unsettled_events(again)
        again.follow_capture()
        cuts = 0
        # The first moment is the pool's, which opens another connection then.
        for moment in itertools.count(2):
            cut.arm(moment)
            try:
                loader.load(1000)
            except ConnectionLost:
                cuts += 1
                wait_until(lambda: not again.query(BACKEND_IS_ALIVE, [cut.backend_pids]))
            if cut.commits:
                break
        assert cuts == moment - 1  # the last one after the COMMIT
        cut.arm(0)
        while loader.load():
            pass
    again.run_jobs()
    assert all_rows(again) == undisturbed
    assert list(verify(again.engine)) == []
    again.close()


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
def test_jobs_killed_at_any_statement_and_run_again_give_the_same_books(
    books: Books, tmp_path: Path, step: int
) -> None:
    receive_settled_events(books)
    receive_unsettled_events(books)
    books.run_jobs()
    undisturbed = all_rows(books)
    empty_database(books.server, books.name)
    again = Books(books.server, books.name, tmp_path / "again")
    receive_settled_events(again)
    receive_unsettled_events(again)
    death = CrashInjector()
    with crashing_engine(again, death) as engine:
        jobs: list[Callable[[], object]] = [
            lambda: restarted_loader(again, engine=engine).load(1000),
            lambda: settle(engine, limit=8),
            lambda: rollup(engine, limit=1000),
        ]
        deaths = [run_through_crashes(again, death, job, step=step) for job in jobs]
    assert min(deaths) > 10 // step
    again.run_jobs()
    assert all_rows(again) == undisturbed
    again.close()
