"""Books with a closed period and an adjustment by hand, for tests that only read them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.billing.adjust import post_manual_adjustment
from accounting.billing.close_period import close_periods
from tests.support.billing_scenarios import NOVEMBER, NOVEMBER_END_SECONDS, receive_november
from tests.support.books import Books, cloned_database
from tests.support.servers import PostgresServer


@pytest.fixture(scope="module")
def adjusted(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Books]:
    directory: Path = tmp_path_factory.mktemp("adjusted")
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, directory)
        receive_november(books)
        books.advance_clock(NOVEMBER_END_SECONDS + 61)
        books.run_jobs()
        close_periods(books.engine)
        post_manual_adjustment(
            books.engine,
            "example.org",
            NOVEMBER,
            "alice",
            {"received_bytes": -100},
            reason="agreed on the telephone",
            author="carol",
        )
        yield books
        books.close()
