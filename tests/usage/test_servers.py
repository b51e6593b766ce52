"""Usage and peaks by server and by transport, hour by hour and day by day."""

from typing import Any, Final

import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.identities.realm_queries import all_rules
from accounting.usage.fold_hours import fold_all
from tests.support.books import Books
from tests.support.coturn_messages import (
    OTHER_SERVER_ADDRESS,
    FakeAllocation,
    datetime_at,
    run_jobs_at,
)

HOUR: Final = 3600
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)
NOTHING: Final = (0, 0, 0, 0)
IPV6_ADDRESS: Final = "[2001:db8::1]:5349"
FIRST, SECOND = "192.0.2.1", "192.0.2.2"


def shown(books: Books, view: str) -> list[tuple[Any, ...]]:
    """Name, hour, received bytes, starts, ends, seconds and peak of each row."""
    name = "server_address" if view.startswith("server") else "transport"
    return [
        (
            row[name],
            int((row["starts_at"] - books.start).total_seconds()) // HOUR,
            row["received_bytes"],
            row["sessions_started"],
            row["sessions_ended"],
            int(row["session_seconds"]),
            row["peak_sessions"],
        )
        for row in books.rows(view, order=f"starts_at, {name}")
    ]


def assert_verified(books: Books) -> None:
    assert list(verify(books.engine)) == []


def receive_three(books: Books) -> None:
    """At two servers over UDP and one over TLS; two of them at once at the first server."""
    fakes = [
        FakeAllocation(books, allocation=number, server_address=address, transport=transport)
        for number, address, transport in (
            (1, "192.0.2.1:3478", "UDP"),
            (2, "192.0.2.1:5349", "TLS/TCP"),
            (3, IPV6_ADDRESS, "UDP"),
        )
    ]
    for fake in fakes:
        fake.new(fake.allocation, 7200)
    for fake in fakes:
        fake.interim(100 + fake.allocation, *HALF)
    for number in (1, 2):
        FakeAllocation(books, allocation=number).close(200, HALF, NOTHING)


def test_usage_is_summed_by_server_without_the_port_and_by_transport(books: Books) -> None:
    receive_three(books)
    run_jobs_at(books, 300)
    assert shown(books, "server_usage_hourly") == [
        (FIRST, 0, 1000, 2, 2, 397, 2),
        ("2001:db8::1", 0, 500, 1, 0, 100, 1),
    ]
    assert shown(books, "transport_usage_hourly") == [
        ("TLS/TCP", 0, 500, 1, 1, 198, 1),
        ("UDP", 0, 1000, 2, 1, 299, 2),
    ]
    FakeAllocation(books, allocation=3, server_address=IPV6_ADDRESS).close(HOUR + 5, WHOLE, NOTHING)
    run_jobs_at(books, HOUR + 10)
    assert shown(books, "server_usage_hourly")[1:] == [
        ("2001:db8::1", 0, 500, 1, 0, HOUR - 3, 1),
        ("2001:db8::1", 1, 500, 0, 1, 5, 1),
    ]
    midnight = -12
    assert shown(books, "server_usage_daily") == [
        (FIRST, midnight, 1000, 2, 2, 397, 2),
        ("2001:db8::1", midnight, 1000, 1, 1, HOUR + 2, 1),
    ]
    assert shown(books, "transport_usage_daily") == [
        ("TLS/TCP", midnight, 500, 1, 1, 198, 1),
        ("UDP", midnight, 1500, 2, 2, HOUR + 201, 2),
    ]
    assert_verified(books)


@pytest.mark.parametrize("known_at", [300, HOUR + 300], ids=["same hour", "next hour"])
def test_what_was_counted_moves_when_the_server_becomes_known(books: Books, known_at: int) -> None:
    """Coturn was upgraded during a session: statuses have had addresses only since then."""
    old = FakeAllocation(books, server_address=None)
    old.new(0, 7200)
    old.interim(100, *HALF)
    other = FakeAllocation(books, allocation=2, server_address=None)
    other.new(50, 7200)
    run_jobs_at(books, 200)
    assert shown(books, "server_usage_hourly") == [("", 0, 500, 2, 0, 100, 2)]
    new = FakeAllocation(books)
    new.interim(known_at - 1, *HALF)
    run_jobs_at(books, known_at)
    new.refreshed(known_at, 7200)
    run_jobs_at(books, known_at + 1)
    of_first = [row for row in shown(books, "server_usage_hourly") if row[0] == FIRST]
    assert sum(row[2] for row in of_first) == 1000
    assert sum(row[3] for row in of_first) == 1
    assert {row[-1] for row in of_first} == {1}
    unknown = [row for row in shown(books, "transport_usage_hourly") if row[0] == ""]
    assert unknown == [("", 0, 0, 1, 0, 0, 1)]
    assert_verified(books)
    other.close(known_at + 10, NOTHING, NOTHING)
    new.close(known_at + 10, WHOLE, NOTHING)
    run_jobs_at(books, known_at + 20)
    assert_verified(books)


def test_all_of_a_session_may_move_and_leaves_no_row(books: Books) -> None:
    FakeAllocation(books, server_address=None).new(0, 7200)
    run_jobs_at(books, 10)
    FakeAllocation(books).refreshed(20, 7200)
    run_jobs_at(books, 30)
    assert shown(books, "server_usage_hourly") == [(FIRST, 0, 0, 1, 0, 20, 1)]
    assert shown(books, "transport_usage_hourly") == [("UDP", 0, 0, 1, 0, 20, 1)]
    assert_verified(books)


def test_a_session_that_two_servers_share_counts_at_the_first(books: Books) -> None:
    FakeAllocation(books).new(0)
    FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS).new(10)
    FakeAllocation(books).interim(20, *HALF)
    run_jobs_at(books, 30)
    [session] = books.rows("sessions")
    assert session["disputed"]
    assert shown(books, "server_usage_hourly") == [(FIRST, 0, 500, 1, 0, 20, 1)]
    assert_verified(books)


def test_pending_interims_move_with_the_session_that_they_join(books: Books) -> None:
    """The session expired without a server; its interims of two hours were pending meanwhile."""
    old = FakeAllocation(books, server_address=None)
    old.new(0)
    old.interim(10, *HALF)
    run_jobs_at(books, 700)
    old.interim(HOUR - 10, *HALF)
    old.interim(HOUR + 10, *HALF)
    run_jobs_at(books, HOUR + 20)
    FakeAllocation(books).refreshed(HOUR + 30)
    run_jobs_at(books, HOUR + 40)
    assert shown(books, "server_usage_hourly") == [
        (FIRST, 0, 1000, 1, 0, HOUR, 1),
        (FIRST, 1, 500, 0, 0, 30, 1),
    ]
    assert_verified(books)


def test_a_rebuild_replaces_usage_and_peaks_of_servers(books: Books) -> None:
    receive_three(books)
    run_jobs_at(books, 300)
    with books.engine.begin() as connection:
        rules = all_rules(connection)
        for realm_id in rules:
            fold_all(connection, rules, realm_id)
    views = (
        "server_usage_hourly",
        "server_usage_daily",
        "transport_usage_hourly",
        "transport_usage_daily",
    )
    before = {view: shown(books, view) for view in views}
    books.query(
        "WITH wrong AS (UPDATE accounting.server_usage_hourly SET sent_bytes = 7 RETURNING 1),"
        " peaks AS (DELETE FROM accounting.dimension_peaks_hourly RETURNING 1)"
        " SELECT count(*) FROM wrong, peaks"
    )
    assert len(list(rebuild(books.engine, "a test"))) > 2
    assert {view: shown(books, view) for view in views} == before
    assert_verified(books)
    FakeAllocation(books, allocation=3, server_address=IPV6_ADDRESS).close(310, HALF, NOTHING)
    run_jobs_at(books, 320)
    assert_verified(books)


def rates(books: Books) -> list[tuple[Any, ...]]:
    """Server, open and started sessions, and bytes received per second: of one minute, and five."""
    return [
        (
            row["server_address"],
            row["live_sessions"],
            row["sessions_started_1m"],
            row["received_bytes_per_second_1m"],
            row["sessions_started_5m"],
            row["received_bytes_per_second_5m"],
        )
        for row in books.rows("rates", order="server_address")
    ]


def test_rates_are_of_the_last_minute_and_the_last_five(books: Books) -> None:
    first = FakeAllocation(books)
    first.new(0, 7200)
    first.interim(5, 1, 30_000, 0, 0)
    run_jobs_at(books, 10)
    run_jobs_at(books, 200)
    second = FakeAllocation(books, allocation=2, server_address=OTHER_SERVER_ADDRESS)
    second.new(200, 7200)
    first.interim(205, 1, 6_000, 0, 0)
    run_jobs_at(books, 210)
    books.set_database_clock(datetime_at(books, 241))
    assert rates(books) == [(FIRST, 1, 0, 100, 1, 120), (SECOND, 1, 1, 0, 1, 0)]
    books.set_database_clock(datetime_at(books, 272))
    assert rates(books) == [(FIRST, 1, 0, 0, 1, 120), (SECOND, 1, 0, 0, 1, 0)]
    books.set_database_clock()
    second.close(300, NOTHING, NOTHING)
    run_jobs_at(books, 301)
    books.set_database_clock(datetime_at(books, 1000))
    assert rates(books) == [(FIRST, 1, 0, 0, 0, 0)]


def test_traffic_that_is_loaded_late_is_spread_over_the_time_of_its_batch(books: Books) -> None:
    """The loader catches up with ten minutes: a tenth of their traffic is of the last one."""
    run_jobs_at(books, 0)
    FakeAllocation(books).new(10, 7200)
    FakeAllocation(books).interim(590, 1, 60_000, 0, 0)
    run_jobs_at(books, 600)
    books.set_database_clock(datetime_at(books, 601))
    assert rates(books) == [(FIRST, 1, 0, 100, 0, 100)]


def test_no_session_is_lost_where_a_batch_is_spread(books: Books) -> None:
    """Each of four slots has a quarter of the only session that started, and of three bytes."""
    run_jobs_at(books, 0)
    FakeAllocation(books).new(39, 7200)
    FakeAllocation(books).interim(40, 1, 3, 0, 0)
    run_jobs_at(books, 40)
    [row] = books.query(
        "SELECT sum(sessions_started) AS sessions, sum(received_bytes) AS bytes"
        " FROM accounting.server_traffic"
    )
    assert row == {"sessions": 1, "bytes": 3}


def test_what_moves_to_a_server_that_becomes_known_is_in_no_rate(books: Books) -> None:
    """It was reported before, in its own time; a rate is never negative."""
    old = FakeAllocation(books, server_address=None)
    old.new(0, 7200)
    old.interim(100, 1, 60_000, 0, 0)
    for at in (110, 700):
        run_jobs_at(books, at)
    new = FakeAllocation(books)
    new.interim(701, 1, 6_000, 0, 0)
    new.refreshed(702, 7200)
    run_jobs_at(books, 705)
    books.set_database_clock(datetime_at(books, 711))
    assert rates(books) == [(FIRST, 1, 0, 100, 0, 20)]
    assert_verified(books)


@pytest.mark.parametrize("hours", [1, 2])
def test_what_a_session_had_before_it_was_confirmed_is_in_no_rate(books: Books, hours: int) -> None:
    """A collector that starts on a running server sees the first status after minutes."""
    at = (HOUR - 10) * (hours - 1)
    fake = FakeAllocation(books)
    fake.interim(at, 1, 60_000, 0, 0)
    for until in (at + 1, at + 299):
        run_jobs_at(books, until)
    fake.interim(at + 300, 1, 6_000, 0, 0)
    fake.refreshed(at + 301, 7200)
    run_jobs_at(books, at + 302)
    books.set_database_clock(datetime_at(books, at + 311))
    assert rates(books) == [(FIRST, 1, 0, 100, 0, 20)]
    assert sum(row[2] for row in shown(books, "server_usage_hourly")) == 66_000
    assert_verified(books)


def test_the_peak_of_a_user_is_counted_from_its_sessions(books: Books) -> None:
    for at, allocation, is_start in (
        (0, 1, True),
        (50, 2, True),
        (100, 1, False),
        (100, 3, True),
        (120, 3, False),
        (150, 2, False),
        (500, 4, True),
    ):
        fake = FakeAllocation(books, allocation=allocation)
        if is_start:
            fake.new(at, 7200)
        else:
            fake.deleted(at)
    run_jobs_at(books, 600)
    [user] = books.query("SELECT user_key FROM accounting.users")

    def peak(since: float | None, until: float | None) -> int:
        bounds = [None if at is None else datetime_at(books, at) for at in (since, until)]
        [row] = books.query(
            "SELECT reporting.user_peak_sessions(%s, %s, %s) AS peak", [user["user_key"], *bounds]
        )
        return int(row["peak"])

    assert (peak(None, None), peak(160, 400), peak(120, 160), peak(150, None)) == (2, 0, 1, 1)
