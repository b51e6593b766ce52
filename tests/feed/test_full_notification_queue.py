"""A server whose queue of notifications a stranger has filled numbers the feed all the same."""

from pathlib import Path

import psycopg
from structlog.testing import capture_logs

from accounting.feed.client import Feed
from tests.support.books import READER, Books, cloned_database, make_template
from tests.support.feed_events import post_and_number
from tests.support.servers import PostgresServer


def fill_queue(books: Books) -> None:
    """As the reader, until the server refuses more."""
    with psycopg.connect(books.url(READER), autocommit=True) as connection:
        try:
            while True:
                connection.execute(
                    "SELECT pg_notify('anything', repeat('x', 7000) || n)"
                    " FROM generate_series(1, 50) n"
                )
        except psycopg.errors.ProgramLimitExceeded:
            return


def test_the_feed_is_numbered_while_the_queue_of_notifications_is_full(tmp_path: Path) -> None:
    with PostgresServer(settings={"max_notify_queue_pages": "64"}) as server:
        make_template(server)
        with (
            cloned_database(server) as name,
            psycopg.connect(server.url(READER, name)) as listener,
        ):
            books = Books(server, name, tmp_path)
            listener.execute("LISTEN anything")
            listener.commit()
            listener.execute("SELECT 1")  # in this transaction it takes no notification
            fill_queue(books)
            with capture_logs() as logs, Feed(books.url(READER), poll_seconds=0.1) as feed:
                post_and_number(books, "a")
                assert [entry["log_level"] for entry in logs] == ["warning"]
                assert next(feed.consume("invoicer")).seq == 1
            books.close()
