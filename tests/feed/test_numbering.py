"""The order of the feed: given once, without a hole, and never seen with one."""

import psycopg
import pytest
from sqlalchemy import text

from accounting.domain.realm_rules import RealmRule
from accounting.feed import outbox
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import add_realm
from tests.support.books import READER, WRITER, Books
from tests.support.feed_events import numbered_events, post_events


def test_events_are_numbered_in_the_order_in_which_they_were_posted(books: Books) -> None:
    post_events(books, "a", "b")
    post_events(books, "c")
    assert number_feed(books.engine, limit=2) == 3
    post_events(books, "d")
    assert number_feed(books.engine) == 1
    assert number_feed(books.engine) == 0
    assert numbered_events(books) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert books.query("SELECT count(*) FROM accounting.feed_outbox") == [{"count": 0}]


def test_an_event_that_is_posted_again_is_told_once_and_leaves_no_hole(books: Books) -> None:
    post_events(books, "a", "a", "b")
    number_feed(books.engine)
    post_events(books, "b", "c")
    number_feed(books.engine)
    assert numbered_events(books) == [(1, "a"), (2, "b"), (3, "c")]


def test_an_event_that_is_not_committed_gets_a_later_number_not_a_smaller_one(
    books: Books,
) -> None:
    post_events(books, "a")
    with books.engine.begin() as slow:
        realm_id = add_realm(slow, b"example.org", RealmRule())
        outbox.enqueue_event(slow, "period.closed", realm_id, {"period": "slow"}, "slow")
        post_events(books, "quick")
        number_feed(books.engine)
        assert numbered_events(books) == [(1, "a"), (2, "quick")]
    number_feed(books.engine)
    assert numbered_events(books) == [(1, "a"), (2, "quick"), (3, "slow")]


def test_while_one_numbers_another_does_not(books: Books) -> None:
    post_events(books, "a")
    with books.engine.begin() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('accounting.feed', 0))")
        )
        assert number_feed(books.engine) == 0
    assert number_feed(books.engine) == 1


def test_who_waits_is_woken(books: Books) -> None:
    with psycopg.connect(books.url(READER), autocommit=True) as connection:
        connection.execute("LISTEN accounting_feed")
        post_events(books, "a", "b")
        number_feed(books.engine)
        (notice,) = connection.notifies(timeout=10, stop_after=1)
        assert notice.payload == "2"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounting.feed SET seq = 9",
        "DELETE FROM accounting.feed",
        "TRUNCATE accounting.feed",
    ],
)
def test_nobody_takes_back_what_was_told(books: Books, statement: str) -> None:
    post_events(books, "a")
    number_feed(books.engine)
    for role, error in (
        (WRITER, psycopg.errors.InsufficientPrivilege),
        (None, psycopg.errors.IntegrityConstraintViolation),  # the owner, and the superuser
    ):
        with psycopg.connect(books.url(role)) as connection, pytest.raises(error):
            connection.execute(statement.encode())
