"""The order of the feed: without holes, also for readers that read while it is numbered."""

import psycopg
import pytest

from accounting.db.locks import try_lock
from accounting.domain.realm_rules import RealmRule
from accounting.errors import LockHeld
from accounting.feed import outbox
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import add_realm
from tests.support.books import READER, WRITER, Books
from tests.support.feed_events import numbered_events, post_events


def test_events_are_numbered_in_the_order_of_the_outbox(books: Books) -> None:
    post_events(books, "a", "b")
    post_events(books, "c")
    assert number_feed(books.engine, limit=2) == 3
    post_events(books, "d")
    assert number_feed(books.engine) == 1
    assert number_feed(books.engine) == 0
    assert numbered_events(books) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert books.query("SELECT count(*) FROM accounting.feed_outbox") == [{"count": 0}]


def test_a_duplicate_event_is_dropped_and_leaves_no_hole(books: Books) -> None:
    post_events(books, "a", "a", "b")
    number_feed(books.engine)
    post_events(books, "b", "c")
    number_feed(books.engine)
    assert numbered_events(books) == [(1, "a"), (2, "b"), (3, "c")]


def test_an_event_that_commits_late_gets_a_later_number(
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


def test_one_scheduler_numbers_at_a_time(books: Books) -> None:
    post_events(books, "a")
    with books.engine.begin() as connection:
        assert try_lock(connection, "feed")
        with pytest.raises(LockHeld, match="'feed'"):
            number_feed(books.engine)
    assert number_feed(books.engine) == 1


def test_numbering_notifies_listeners(books: Books) -> None:
    with psycopg.connect(books.url(READER), autocommit=True) as connection:
        connection.execute("LISTEN accounting_feed")
        post_events(books, "a", "b")
        number_feed(books.engine)
        (notification,) = connection.notifies(timeout=10, stop_after=1)
        assert notification.payload == "2"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounting.feed SET seq = 9",
        "DELETE FROM accounting.feed",
        "TRUNCATE accounting.feed",
    ],
)
def test_no_role_can_change_the_feed(books: Books, statement: str) -> None:
    post_events(books, "a")
    number_feed(books.engine)
    for role, error in (
        (WRITER, psycopg.errors.InsufficientPrivilege),
        (None, psycopg.errors.IntegrityConstraintViolation),  # the owner, and the superuser
    ):
        with psycopg.connect(books.url(role)) as connection, pytest.raises(error):
            connection.execute(statement.encode())
