"""Two collectors of one source: the second takes over when the first dies or hangs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.books import Books, cloned_database
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import Service, descendants, send_signal
from tests.support.turn_traffic import NumberPublisher, assert_losses_have_gaps, loaded_numbers

LEASE_SECONDS: Final = "2"


class CollectorPair:
    """Two collectors, each with its own spool; the first has the lease."""

    def __init__(self, books: Books, valkey: ValkeyServer, directory: Path, capture: str) -> None:
        self.books = books
        self.valkey = valkey
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": valkey.url,
            "ACCOUNTING_CAPTURE": capture,
            "ACCOUNTING_LEASE_SECONDS": LEASE_SECONDS,
        }
        self.first = Service("collect", directory / "first", settings)
        self.first.wait_until_capturing()
        self.second = Service("collect", directory / "second", settings)
        self.second.wait_for(lambda: self.second.events("standing by"))

    def signal_first(self, step: signal.Signals) -> None:
        """Signal the first collector and its loader."""
        for pid in [self.first.pid, *descendants(self.first.pid)]:
            send_signal(pid, step)  # the children of a killed one may have ended

    def wait_until_loaded(self, user: str, number: int) -> None:
        """Return once a number is loaded."""
        wait_until(lambda: number in loaded_numbers(self.books, user), 60)


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[CollectorPair]:
    with cloned_database(postgres_server) as name, ValkeyServer() as valkey:
        books = Books(postgres_server, name, tmp_path)
        made = CollectorPair(books, valkey, tmp_path, request.param)
        with made.first, made.second:
            yield made
        books.close()


@pytest.mark.parametrize("pair", ["replication"], indirect=True)
def test_a_standby_continues_at_the_position_of_the_books_when_the_first_dies(
    pair: CollectorPair,
) -> None:
    """The backlog holds everything: nothing is lost or doubled, and there is no gap."""
    with NumberPublisher(pair.valkey, "dies") as numbers:
        pair.wait_until_loaded("dies", 1)  # the books have a position from which to continue
        numbers.wait_for_more(200)
        pair.signal_first(signal.SIGKILL)
        numbers.wait_for_more(200)
        pair.wait_until_loaded("dies", len(numbers.sent))
        sent = numbers.stop()
    pair.wait_until_loaded("dies", max(sent))
    assert loaded_numbers(pair.books, "dies") == sorted(sent)
    assert pair.books.rows("capture_gaps") == []


@pytest.mark.long
@pytest.mark.parametrize("pair", ["replication"], indirect=True)
def test_the_spool_of_a_hung_collector_is_discarded_when_it_returns(pair: CollectorPair) -> None:
    """For a moment both act as holders of the lease; positions decide what is loaded."""
    with NumberPublisher(pair.valkey, "hangs") as numbers:
        pair.wait_until_loaded("hangs", 1)  # the books have a position from which to continue
        numbers.wait_for_more(200)
        pair.signal_first(signal.SIGSTOP)
        numbers.wait_for_more(200)
        pair.wait_until_loaded("hangs", len(numbers.sent))
        pair.signal_first(signal.SIGCONT)
        numbers.wait_for_more(200)
        pair.first.wait_for(lambda: pair.first.events("standing by"))
        # Then the first takes over again at the position of the books.
        os.kill(pair.second.pid, signal.SIGTERM)
        assert pair.second.process.wait(60) == 0
        numbers.wait_for_more(200)
        sent = numbers.stop()
    pair.wait_until_loaded("hangs", max(sent))
    assert loaded_numbers(pair.books, "hangs") == sorted(sent)
    assert pair.books.rows("capture_gaps") == []


@pytest.mark.long
@pytest.mark.parametrize("pair", ["subscribe"], indirect=True)
def test_a_takeover_of_a_subscription_is_a_gap_that_holds_all_losses(pair: CollectorPair) -> None:
    with NumberPublisher(pair.valkey, "subscriber") as numbers:
        numbers.wait_for_more(200)
        pair.signal_first(signal.SIGKILL)
        pair.second.wait_until_capturing()
        numbers.wait_for_more(200)
        sent = numbers.stop()
    pair.wait_until_loaded("subscriber", max(sent))
    assert assert_losses_have_gaps(pair.books, "subscriber", sent)
    assert all(gap["to_at"] is not None for gap in pair.books.rows("capture_gaps"))
