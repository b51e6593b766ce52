"""Days and months of users contain the hours that are over; the views add the current one."""

import psycopg

from accounting.identities import realm_queries
from accounting.usage.fold_hours import fold_all
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation, run_jobs_at

HOUR = 3600
STORED = "SELECT coalesce(sum(received_bytes), 0)::bigint AS bytes FROM accounting.user_usage_{}"


def bytes_in_views(books: Books) -> dict[str, int]:
    """The sum of received bytes in each view."""
    return {
        level: int(sum(row["received_bytes"] for row in books.rows(f"user_usage_{level}")))
        for level in ("hourly", "daily", "monthly")
    }


def bytes_in_tables(books: Books) -> list[int]:
    """The sums of received bytes in the tables of days and months."""
    return [int(books.query(STORED.format(of))[0]["bytes"]) for of in ("daily", "monthly")]


def same_at_all_levels(count: int) -> dict[str, int]:
    return dict.fromkeys(("hourly", "daily", "monthly"), count)


def test_an_hour_is_shown_at_once_and_folded_when_the_next_begins(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0, 3 * HOUR)
    alice.interim(10, 1, 100, 0, 0)
    run_jobs_at(books, 20)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(100), [0, 0])
    alice.interim(30, 1, 100, 0, 0)
    run_jobs_at(books, 40)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(200), [0, 0])
    alice.interim(HOUR + 5, 1, 1000, 0, 0)
    run_jobs_at(books, HOUR + 66)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(1200), [200, 200])


def test_late_usage_of_a_folded_hour_is_added_to_its_day_and_month(books: Books) -> None:
    fast, slow = (
        FakeAllocation(books),
        FakeAllocation(books, source="slow", user="bob", allocation=2),
    )
    fast.new(HOUR)
    fast.interim(HOUR + 1, 1, 1, 0, 0)
    run_jobs_at(books, HOUR + 62)
    slow.new(5, 3 * HOUR)
    slow.interim(10, 1, 100, 0, 0)
    run_jobs_at(books, 20, "slow")
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(101), [100, 100])
    slow.interim(HOUR + 10, 1, 10, 0, 0)
    run_jobs_at(books, HOUR + 20, "slow")
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(111), [100, 100])


def test_a_current_hour_that_was_folded_still_counts_new_usage(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0, 3 * HOUR)
    alice.interim(10, 1, 100, 0, 0)
    run_jobs_at(books, 20)
    for _ in range(2):
        with books.engine.begin() as connection:
            rules = realm_queries.all_rules(connection)
            for realm_id in rules:
                fold_all(connection, rules, realm_id)
        assert (bytes_in_views(books), bytes_in_tables(books)) == (
            same_at_all_levels(100),
            [100, 100],
        )
    alice.interim(30, 1, 10, 0, 0)
    run_jobs_at(books, 40)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(110), [110, 110])
    alice.interim(HOUR + 5, 1, 1, 0, 0)
    run_jobs_at(books, HOUR + 66)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(111), [110, 110])


def test_realms_folded_in_one_transaction_are_each_folded_once(books: Books) -> None:
    for allocation, realm in ((1, "example.org"), (2, "example.net"), (3, "example.com")):
        teller = FakeAllocation(books, realm=realm, allocation=allocation)
        teller.new(0)
        teller.interim(10, 1, 100, 0, 0)
    run_jobs_at(books, 20)
    with books.engine.begin() as connection:
        rules = realm_queries.all_rules(connection)
        for realm_id in rules:
            fold_all(connection, rules, realm_id)
    assert (bytes_in_views(books), bytes_in_tables(books)) == (same_at_all_levels(300), [300, 300])


def test_a_user_with_usage_only_in_the_current_hour_has_a_day_and_month(books: Books) -> None:
    FakeAllocation(books, user="unauthenticated").interim(5, 1, 100, 0, 0)
    bob = FakeAllocation(books, user="bob", allocation=2)
    bob.new(10, 3 * HOUR)
    run_jobs_at(books, 20)
    for level in ("daily", "monthly"):
        (row,) = books.rows(f"user_usage_{level}")
        assert (row["user_id"], row["sessions_started"], row["received_bytes"]) == ("bob", 1, 0)
    with psycopg.connect(books.url()) as connection:
        connection.execute("DELETE FROM accounting.user_usage_daily")
    bob.interim(HOUR + 1, 1, 7, 0, 0)
    run_jobs_at(books, HOUR + 2)
    # Folding creates even a day that was deleted by hand.
    assert bytes_in_views(books) == same_at_all_levels(7)
