"""What is stored of clients' addresses, from the loader to every view, and of earlier ones."""

import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.domain.client_addresses import ClientAddresses
from accounting.ingest.loader import Loader
from accounting.sessions.stored_addresses import reduce_stored_addresses
from tests.support.books import WRITER, Books, channel
from tests.support.client_addresses import (
    ADDRESS,
    NETWORKS,
    UNKNOWN_FORM,
    addresses,
    set_addresses,
    tables_with_addresses,
)
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at

KEEP, NETWORK, DROP = ClientAddresses


@pytest.mark.parametrize(("kept", "address"), [(NETWORK, "198.51.100.0/24"), (DROP, None)])
def test_the_setting_holds_for_what_an_earlier_spool_has(
    books: Books, kept: ClientAddresses, address: str | None
) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(1, 1, 100, 2, 200)
    alice.close(2, (1, 100, 2, 200), (0, 0, 0, 0))
    books.receive(3, channel("status", allocation=2), UNKNOWN_FORM)
    books.follow_capture()
    Loader(books.engine, books.spool(), books.rule, client_addresses=kept).load()
    run_jobs_at(books, 4)
    assert addresses(books) == {address}
    assert addresses(books, "allocation_events") == {address, None}
    [rejected] = books.rows("rejected_messages")
    assert bytes(rejected["payload"]) == UNKNOWN_FORM.replace(ADDRESS.encode(), b"x" * 18)
    assert tables_with_addresses(books) == set()
    assert list(verify(books.engine)) == []
    assert list(rebuild(books.engine, "to be sure")) == []


def test_a_realms_rule_holds_at_once_and_only_there(books: Books) -> None:
    """Also for a session that a loader has in memory; what is stored stays."""
    first, other = FakeAllocation(books), FakeAllocation(books, realm="example.net")
    for allocation in (first, other):
        allocation.new(0)
    run_jobs_at(books, 1)
    set_addresses(books, DROP)
    second = FakeAllocation(books, allocation=2)
    for allocation in (first, other):
        allocation.refreshed(2)
    second.new(2)
    run_jobs_at(books, 3)
    rows = books.rows("allocation_events", order="received_at, realm, allocation_id")
    assert [(row["realm"], row["event"], row["client_address"]) for row in rows] == [
        ("example.net", "new", ADDRESS),
        ("example.org", "new", ADDRESS),
        ("example.net", "refreshed", ADDRESS),
        ("example.org", "refreshed", None),
        ("example.org", "new", None),
    ]
    by_id = {
        (row["realm"], row["allocation_id"][-1]): row["client_address"]
        for row in books.rows("sessions")
    }
    assert by_id == {
        ("example.org", "1"): ADDRESS,
        ("example.org", "2"): None,
        ("example.net", "1"): ADDRESS,
    }
    assert list(verify(books.engine)) == []


def test_a_rejected_message_follows_the_strictest_rule_of_any_realm(books: Books) -> None:
    """It does not parse, so that the realm in its channel is not known for certain."""
    FakeAllocation(books, realm="example.net").new(0)
    run_jobs_at(books, 1)
    set_addresses(books, NETWORK, "example.net")
    books.receive(2, channel("status"), UNKNOWN_FORM)
    run_jobs_at(books, 3)
    [rejected] = books.rows("rejected_messages")
    assert ADDRESS.encode() not in bytes(rejected["payload"])


def test_a_loader_forgets_an_address_that_is_reduced(books: Books) -> None:
    """It has open sessions in memory, and writes them with each report."""
    alice = FakeAllocation(books)
    alice.new(0)
    run_jobs_at(books, 1)
    set_addresses(books, DROP)
    assert reduce_stored_addresses(books.engine, "example.org", KEEP).sessions == 1
    alice.refreshed(2)
    run_jobs_at(books, 3)
    assert addresses(books) == addresses(books, "allocation_events") == {None}
    assert list(verify(books.engine)) == []


def test_the_database_reduces_an_address_as_the_loader_does(books: Books) -> None:
    [row] = books.query(
        "SELECT array_agg(accounting.reduced_address(a, 'network') ORDER BY n) AS networks,"
        " array_agg(accounting.reduced_address(a, 'keep') ORDER BY n) AS kept,"
        " count(accounting.reduced_address(a, 'drop')) AS dropped"
        " FROM unnest(%s::text[]) WITH ORDINALITY t (a, n)",
        [list(NETWORKS)],
    )
    assert row == {"networks": list(NETWORKS.values()), "kept": list(NETWORKS), "dropped": 0}


def test_the_commands_say_what_is_stored_from_now_on(books: Books) -> None:
    FakeAllocation(books).new(0)
    run_jobs_at(books, 1)
    url = books.url(WRITER)
    words = ("realm", "set", "example.org", "--client-addresses")
    ran = turn_accounting(*words, "network", database_url=url)
    assert ran.code == 0
    assert ran.err.splitlines()[-2:] == [
        (
            "turn-accounting: realm 'example.org' stores from now on the networks of clients "
            "(/24, /48), no addresses and no ports"
        ),
        (
            "turn-accounting: addresses that are stored already stay; to reduce them too: "
            "turn-accounting erase example.org --client-addresses"
        ),
    ]
    listed = turn_accounting("realm", "list", "--json", database_url=url).rows
    assert [row["client_addresses"] for row in listed] == ["network"]
    ran = turn_accounting(*words, "keep", database_url=url, client_addresses="drop")
    assert ran.err.splitlines()[-3:-1] == [
        "turn-accounting: realm 'example.org' stores from now on no addresses of clients",
        "turn-accounting: ACCOUNTING_CLIENT_ADDRESSES=drop is stricter than this rule, and holds",
    ]
    erase = ("erase", "example.org", "--client-addresses")
    assert turn_accounting(*erase, database_url=url).code == 2
    ran = turn_accounting(*erase, "--dry-run", database_url=url, client_addresses="network")
    assert ran.err == (
        "turn-accounting: would be reduced to networks: the client address of 1 session and "
        "1 report; would be deleted: 0 rejected messages\n"
    )
    assert turn_accounting(*erase, database_url=url, client_addresses="drop").code == 0
    assert addresses(books) == {None}
