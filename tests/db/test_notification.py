"""Notifications of new reports: they come while the listener says that it listens."""

import threading

import psycopg

from accounting.db.notification import NEW_REPORTS, Listener, notify
from tests.support.books import Books
from tests.support.servers import wait_until

LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
)


def test_a_listener_hears_others_and_not_its_own_trial(books: Books) -> None:
    came = threading.Event()
    listener = Listener(books.engine, NEW_REPORTS, came.set)
    assert not listener.is_listening
    with listener.running():
        wait_until(lambda: listener.is_listening)
        assert not came.is_set()
        notify(books.engine, NEW_REPORTS)
        assert came.wait(60)


def test_a_listener_whose_connection_broke_listens_again(books: Books) -> None:
    came = threading.Event()
    listener = Listener(books.engine, NEW_REPORTS, came.set)
    with listener.running(), psycopg.connect(books.url(), autocommit=True) as connection:
        wait_until(lambda: listener.is_listening)
        [(pid,)] = connection.execute(LISTENERS).fetchall()
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: [row for row in connection.execute(LISTENERS) if row != (pid,)])
        wait_until(lambda: listener.is_listening)
        notify(books.engine, NEW_REPORTS)
        assert came.wait(60)
