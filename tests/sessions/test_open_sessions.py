"""How many open sessions a loader remembers changes nothing in the books."""

import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.ingest.loader import Loader
from accounting.simulator import VERSIONS, play
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.simulated_fleet import (
    expected_figures,
    hard_case_scenarios,
    receive_commands,
    stored_figures,
)


@pytest.mark.parametrize(
    ("memory_limit", "sessions"),
    [(3, 20), *(pytest.param(limit, 60, marks=pytest.mark.long) for limit in (0, 3, 10**6))],
)
def test_any_memory_limit_gives_the_same_books(
    books: Books, memory_limit: int, sessions: int
) -> None:
    expected = {}
    for name, scenario in hard_case_scenarios(list(VERSIONS)[-1], sessions):
        commands, expected[name] = play(scenario)
        receive_commands(books, name, commands)
        loader = Loader(books.engine, books.spool(name), books.rule, memory_limit=memory_limit)
        books.follow_capture(name)
        while loader.load_ahead(limit=97):
            pass
    books.rollup()
    stored = stored_figures(books)
    for name, totals in expected.items():
        assert stored[name] == expected_figures(totals), name
    assert books.settle() == 0
    assert list(verify(books.engine)) == []


def test_a_loader_forgets_what_a_rebuild_replaced(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    books.run_jobs()
    books.query("UPDATE accounting.sessions SET received_bytes = 7 RETURNING 1")
    alice.interim(10, 1, 100, 1, 100)
    books.load()  # a narrow update, by what the loader remembers
    books.query("UPDATE accounting.sessions SET received_bytes = 7 RETURNING 1")
    assert list(rebuild(books.engine, "a test"))
    alice.interim(20, 1, 100, 1, 100)
    books.run_jobs()
    assert books.rows("sessions", "received_bytes") == [{"received_bytes": 200}]
    assert list(verify(books.engine)) == []
