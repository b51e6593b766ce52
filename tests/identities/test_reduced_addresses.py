"""Reducing the addresses that a realm's books have kept changes nothing else."""

import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import retain
from accounting.audit.verify import verify
from accounting.domain.client_addresses import ClientAddresses
from accounting.errors import UsageError
from accounting.sessions.stored_addresses import reduce_stored_addresses
from tests.support.books import Books, channel
from tests.support.client_addresses import (
    ADDRESS,
    UNKNOWN_FORM,
    addresses,
    figures,
    set_addresses,
    tables_with_addresses,
)
from tests.support.coturn_messages import FakeAllocation
from tests.support.retention_scenario import (
    DAYS_TO_DROP_ONE,
    MIDNIGHT_SECONDS,
    run_jobs_and_close,
)

KEEP, NETWORK, DROP = ClientAddresses


def test_stored_addresses_are_reduced_and_the_books_stay_proved(books: Books) -> None:
    """Of open, closed and carried-over sessions, of reports, and in rejected messages."""
    for seconds in (0.0, MIDNIGHT_SECONDS - 10):
        alice = FakeAllocation(books, allocation=1 + int(seconds))
        alice.new(seconds)
        alice.interim(seconds + 5, 1, 100, 2, 200)
        if not seconds:
            alice.close(seconds + 20, (1, 100, 2, 200), (0, 0, 0, 0))
    alice.refreshed(MIDNIGHT_SECONDS + 100)
    FakeAllocation(books, user="bob", allocation=5, realm="example.net").new(20)
    alice.publish(MIDNIGHT_SECONDS + 101, "status", UNKNOWN_FORM)
    run_jobs_and_close(books)
    assert retain(books.engine, DAYS_TO_DROP_ONE) == 1
    before = figures(books)
    with pytest.raises(UsageError, match="keeps the addresses of clients"):
        reduce_stored_addresses(books.engine, "example.org", KEEP)
    set_addresses(books, NETWORK)
    would = reduce_stored_addresses(books.engine, "example.org", KEEP, dry_run=True)
    assert addresses(books) == {ADDRESS}
    reduced = reduce_stored_addresses(books.engine, "example.org", KEEP)
    assert reduced == would
    assert (reduced.sessions, reduced.rejected_messages) == (2, 1)
    assert addresses(books) == {ADDRESS, "198.51.100.0/24"}
    # The setting is stricter than the rule, and holds.
    assert reduce_stored_addresses(books.engine, "example.org", DROP).sessions == 2
    assert addresses(books) == {ADDRESS, None}
    reduce_stored_addresses(books.engine, "example.net", DROP)
    assert tables_with_addresses(books) == set()
    assert figures(books) == before
    assert list(verify(books.engine)) == []
    assert list(rebuild(books.engine, "to be sure")) == []
    again = reduce_stored_addresses(books.engine, "example.org", DROP)
    assert (again.sessions, again.reports, again.rejected_messages) == (0, 0, 0)


def test_rejected_messages_of_no_known_realm_are_reached_too(books: Books) -> None:
    """A realm of which nothing was ever parsed is not in the books, and can't be named."""
    FakeAllocation(books).new(0)
    FakeAllocation(books, realm="example.net", allocation=2).new(1)
    for number, name in enumerate(
        (
            channel("status", realm="unknown.example"),
            channel("status", realm=""),
            b"turn/realm/x/allocation/1",
            b"turn/realm/example.org",
            channel("status", realm="example.net"),
            channel("status"),
        )
    ):
        books.receive(2 + number, name, UNKNOWN_FORM)
    books.run_jobs()
    set_addresses(books, DROP)
    assert reduce_stored_addresses(books.engine, "example.org", KEEP).rejected_messages == 5
    [left] = books.rows("rejected_messages")
    assert bytes(left["channel"]) == channel("status", realm="example.net")
