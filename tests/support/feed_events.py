"""Events in the feed's outbox, numbered events, and a consumer's cursor."""

from accounting.domain.realm_rules import RealmRule
from accounting.feed import outbox
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import add_realm
from tests.support.books import Books


def post_events(books: Books, *keys: str) -> None:
    """Enqueue an event for each key in one transaction."""
    with books.engine.begin() as connection:
        realm_id = add_realm(connection, b"example.org", RealmRule())
        for key in keys:
            outbox.enqueue_event(connection, "period.closed", realm_id, {"period": key}, key)


def numbered_events(books: Books) -> list[tuple[int, str]]:
    """Number and key of each event of the feed."""
    return [(row["seq"], row["payload"]["period"]) for row in books.rows("feed")]


def post_and_number(books: Books, *keys: str) -> None:
    post_events(books, *keys)
    number_feed(books.engine)


def consumer_cursor(books: Books, consumer: str = "invoicer") -> int:
    (row,) = books.query(
        "SELECT seq FROM accounting.feed_consumers WHERE consumer = %s", [consumer]
    )
    return int(row["seq"])
