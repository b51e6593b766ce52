"""Rates of what is reported between frames, and the number of live sessions."""

from collections.abc import Iterator

import pytest

from accounting.reporting.live import LiveReader, LiveState
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.traffic_rates import Rate
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation


@pytest.fixture
def views(shared_books: Books) -> Iterator[DatabaseReader]:
    reader = DatabaseReader(shared_books.url(READER))
    yield reader
    reader.close()


def long_rates(state: LiveState) -> dict[str, float]:
    """Bytes that were received per second in the last two minutes, by user."""
    return {user.row["user_id"]: user.long.received for user in state.users}


def active_sessions(state: LiveState) -> dict[str, int]:
    return {user.row["user_id"]: user.row["active"] for user in state.users}


def test_each_frame_adds_what_was_reported_since_the_last_one(
    shared_books: Books, views: DatabaseReader
) -> None:
    books, reader = shared_books, LiveReader(views)
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, 1, 1_000, 1, 500)
    books.advance_clock(12)
    books.run_jobs()
    state = reader.read()
    assert state.everything.short == Rate(100, 50)
    alice.interim(15, 1, 3_000, 1, 0)
    alice.interim(100, 1, 6_000, 1, 0)
    books.advance_clock(105)
    books.run_jobs()
    state = reader.read()
    assert state.everything.short == Rate(600, 0)
    assert state.everything.long == Rate(10_000 / 120, 500 / 120)
    again = reader.read()
    assert (again.everything, again.users) == (state.everything, state.users)
    books.advance_clock(140)
    books.run_jobs()
    state = reader.read()
    assert state.everything.short == Rate()
    assert long_rates(state) == {"alice": 6_000 / 120}
    assert LiveReader(views).read().users == state.users
    assert active_sessions(state) == {"alice": 1}
    books.advance_clock(221)
    books.run_jobs()
    for state in (reader.read(), LiveReader(views).read()):
        assert active_sessions(state) == {"alice": 0}, "live, but silent for more than two minutes"
    alice.refreshed(230)
    books.advance_clock(231)
    books.run_jobs()
    assert active_sessions(reader.read()) == {"alice": 1}
    alice.interim(232, 1, 1_000, 1, 0)
    books.advance_clock(233)
    books.run_jobs()
    assert active_sessions(reader.read()) == {"alice": 1}
    alice.close(234, (5, 11_000, 2, 500), (0, 0, 0, 0))
    books.advance_clock(235)
    books.run_jobs()
    assert active_sessions(reader.read()) == {"alice": 0}


def test_traffic_counts_once_coturn_confirmed_it(
    shared_books: Books, views: DatabaseReader
) -> None:
    """Also that of a session which is over; never that of somebody who failed to log in."""
    books = shared_books
    forged = FakeAllocation(books, user="victim", allocation=1)
    forged.interim(1, 1, 1_000_000, 1, 0)
    short = FakeAllocation(books, user="short", allocation=2)
    short.new(2)
    short.interim(3, 1, 2_400, 1, 0)
    short.close(3, (1, 2_400, 1, 0), (0, 0, 0, 0))
    late = FakeAllocation(books, user="late", allocation=3)
    late.interim(4, 1, 1_200, 1, 0)
    late.refreshed(5)
    books.advance_clock(6)
    books.run_jobs()
    state = LiveReader(views).read()
    assert long_rates(state) == {"short": 20, "late": 10}
    assert [session.row["user_id"] for session in state.sessions] == ["late"]
    assert {user.row["user_id"]: user.row["active"] for user in state.users} == {
        "short": 0,
        "late": 1,
    }


def test_rates_of_more_reports_than_are_read_are_those_of_the_newest(
    shared_books: Books, views: DatabaseReader
) -> None:
    books = shared_books
    alice = FakeAllocation(books)
    alice.new(0)
    for second in range(1, 101):
        alice.interim(second, 1, 1_000, 1, 0)
    books.advance_clock(100)
    books.run_jobs()
    reader = LiveReader(views, most_reports=5)
    state = reader.read()
    assert state.everything.short.received == state.everything.long.received == 5_000 / 4
    for second in range(101, 105):
        alice.interim(second, 1, 1_000, 1, 0)
    books.advance_clock(104)
    books.run_jobs()
    assert reader.read().everything.long.received == 9_000 / 8


def test_sources_add_up_and_a_retired_one_is_left_out(
    shared_books: Books, views: DatabaseReader
) -> None:
    books = shared_books
    for number, source in enumerate(("default", "berlin"), start=1):
        allocation = FakeAllocation(books, allocation=number, source=source)
        allocation.new(0)
        allocation.interim(1, 1, 1_000, 1, 0)
        books.advance_clock(2, source=source)
    books.run_jobs()
    reader = LiveReader(views)
    assert reader.read().everything.short == Rate(200, 0)
    books.query(
        "UPDATE accounting.sources SET retired_at = now() WHERE source = 'berlin' RETURNING 1"
    )
    state = reader.read()
    assert state.everything.short == Rate(100, 0)
    assert [source["source"] for source in state.sources] == ["default"]


def test_live_sessions_are_those_of_the_view(shared_books: Books, views: DatabaseReader) -> None:
    """Also after sessions expired, were superseded and reopened."""
    books = shared_books
    for number in range(9):
        allocation = FakeAllocation(books, realm=f"r{number % 2}", allocation=number)
        if number != 4:
            allocation.new(number)
        allocation.refreshed(10 + number, 600 if number < 6 else 7_200)
        if number == 2:
            allocation.new(30)
        if number in {3, 8}:
            allocation.close(40, (0, 0, 0, 0), (0, 0, 0, 0))
    FakeAllocation(books, realm="r2", allocation=20).interim(50, 1, 1, 1, 1)
    for until in (60, 5_000):
        books.advance_clock(until)
        books.run_jobs()
        check_live_sessions(books, views)
    FakeAllocation(books, realm="r0", allocation=0).refreshed(5_010)
    books.advance_clock(5_020)
    books.run_jobs()
    check_live_sessions(books, views)


def check_live_sessions(books: Books, views: DatabaseReader) -> None:
    counted = books.query(
        "SELECT realm, count(*) AS live FROM reporting.sessions WHERE ended_at IS NULL"
        " GROUP BY realm ORDER BY realm"
    )
    assert counted
    state = LiveReader(views).read()
    assert [
        {"realm": realm.row["realm"], "live": realm.row["live"]}
        for realm in state.realms
        if realm.row["live"]
    ] == counted
    assert len(state.sessions) == sum(row["live"] for row in counted)
