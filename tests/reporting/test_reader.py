"""Connections that read: several at once, and again after one broke."""

import pytest

from accounting.errors import ConnectionLost
from accounting.reporting import view_queries
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.view_query import ViewQuery
from tests.support.books import READER, Books

BACKEND = ViewQuery(relation="pg_backend_pid() AS pid")


def end_idle_connections(books: Books) -> None:
    books.query(
        "SELECT pg_terminate_backend(pid, 5000) AS ended FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_a_connection_that_broke_while_idle_is_replaced(books: Books) -> None:
    reader = DatabaseReader(books.url(READER))
    [before] = reader.read_rows(BACKEND)
    end_idle_connections(books)
    [after] = reader.read_rows(BACKEND)
    assert before["pid"] != after["pid"]
    reader.close()


def test_transactions_at_once_have_connections_of_their_own(books: Books) -> None:
    reader = DatabaseReader(books.url(READER))
    with reader.transaction() as first, reader.transaction() as second:
        assert first.info.backend_pid != second.info.backend_pid
    [kept] = reader.read_rows(BACKEND)
    assert kept["pid"] == second.info.backend_pid
    assert first.closed
    reader.close()


def test_a_statement_that_takes_too_long_is_ended(books: Books) -> None:
    reader = DatabaseReader(books.url(READER), statement_seconds=1)
    with pytest.raises(ConnectionLost, match="statement timeout"):
        reader.read_rows(ViewQuery(relation="pg_sleep(60)"))
    assert reader.read_rows(view_queries.database_now())
    reader.close()
