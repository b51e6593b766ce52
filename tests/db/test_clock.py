"""The database's clock: where commands and jobs take now from."""

from datetime import UTC, datetime, timedelta

from accounting.db.clock import database_now
from tests.support.books import START, Books


def test_now_is_the_time_of_the_databases_clock(books: Books) -> None:
    with books.engine.connect() as connection:
        before = datetime.now(UTC)
        assert before <= database_now(connection) <= datetime.now(UTC)
        books.set_database_clock(START)
        assert database_now(connection) == START
        books.set_database_clock(ahead=timedelta(days=400))
        assert database_now(connection) > before + timedelta(days=400)
