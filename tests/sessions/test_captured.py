"""Settling messages by their day, by the gaps around them, and with hostile values."""

import random
import string

import pytest
from sqlalchemy import Connection

from accounting.domain.realm_rules import RealmRules
from accounting.identities import realm_queries
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.coturn_messages import FakeAllocation, run_jobs_at, session_row, session_rows

NOTHING = (0, 0, 0, 0)
HALF, WHOLE = (5, 500, 4, 400), (10, 1000, 8, 800)


def test_reports_are_loaded_on_a_day_that_began_with_a_rejected_message(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.publish(0, "status", b"nonsense")
    run_jobs_at(books, 1)
    alice.new(2)
    run_jobs_at(books, 3)
    assert session_rows(books) == [session_row(books, 2, 2, None, None)]


def test_a_gap_found_after_settling_does_not_change_earlier_reports(books: Books) -> None:
    """The gap of a collector that died begins at its last checkpoint, and is found later.

    Messages stored after that checkpoint were received without a gap, whenever they are settled.
    """
    outcomes = []
    for user, settled_first in (("early", True), ("late", False)):
        allocation = FakeAllocation(books, user=user, source=user)
        allocation.new(0)
        books.advance_clock(1, source=user)
        allocation.interim(2, *HALF)
        allocation.peer_interim(2, *HALF)
        allocation.close(3, HALF, WHOLE)
        if settled_first:
            books.run_jobs()
        gap = books.spool(user).open_gap(books.micros_at(1), "collector_restarted")
        books.spool(user).close_gap(gap, books.micros_at(10))
        run_jobs_at(books, 11, user)
        (row,) = (row for row in session_rows(books) if row["username"] == user)
        outcomes.append((row["peer_received_bytes"], row["estimated"], row["disputed"]))
    assert outcomes[0] == outcomes[1]


def test_huge_counters_do_not_stop_other_realms(books: Books) -> None:
    """No allocation reaches them, but any publisher can write them."""
    for user in ("absurd", "impossible"):
        FakeAllocation(books, user=user).new(0)
        for counts in ((0, 2**63 - 1, 0, 0), (0, 2**53 - 1, 0, 0)):
            FakeAllocation(books, user=user).interim(1, *counts)
    FakeAllocation(books, realm="other").new(2)
    run_jobs_at(books, 3)
    rejected = books.rows("rejected_messages", "reason")
    assert rejected == [{"reason": "a traffic counter is beyond 53 bits"}] * 2
    assert sorted(row["received_bytes"] for row in session_rows(books)) == [0, 2**53 - 1, 2**53 - 1]
    books.assert_conserved()


def test_a_huge_sum_of_large_reports_does_not_stop_other_realms(books: Books) -> None:
    """Of one session or of many, they would sum to more than 63 bits."""
    heavy = traffic_payload(*[2**53 - 1] * 4)
    messages = [
        (channel("total_traffic", realm="new"), heavy),
        (channel("status"), status_payload("new")),
    ]
    messages += [(channel("traffic"), heavy)] * 1100
    for number in range(2, 1102):
        messages.append((channel("status", allocation=number), status_payload("new")))
        messages.append((channel("total_traffic", allocation=number), heavy))
    books.receive_all([(books.micros_at(0), 0, name, payload) for name, payload in messages])
    FakeAllocation(books, realm="other").new(3)
    FakeAllocation(books, realm="other").interim(4, 1, 100_000_000, 1, 100_000_000)
    FakeAllocation(books, realm="other").interim(90_000, 1, 2**50, 1, 1)
    run_jobs_at(books, 90_000)
    reasons = {row["reason"] for row in books.rows("rejected_messages", "reason")}
    assert reasons == {"more traffic is reported than a source can have"}
    absurd = sum(row["received_bytes"] for row in session_rows(books) if row["realm"] != "other")
    assert absurd == 4 * (2**53 - 1), "the first four, whether or not their realm is new"
    (other,) = (
        row for row in session_rows(books) if row["realm"] == "other" and row["start_known"]
    )
    assert other["received_bytes"] == 100_000_000
    books.assert_conserved()


def test_huge_addresses_do_not_stop_other_realms(books: Books) -> None:
    """Keys of tables contain them, and Postgres limits those to some thousand bytes."""
    noise = random.Random(1).choices(string.ascii_letters, k=20_000)
    FakeAllocation(books, server_address="".join(noise) + ":1").new(0)
    FakeAllocation(books, realm="other").new(1)
    run_jobs_at(books, 2)
    assert books.rows("rejected_messages", "reason") == [{"reason": "an address is too long"}]
    assert [row["realm"] for row in session_rows(books)] == ["other"]


def test_a_new_realm_does_not_read_the_rules_of_all_realms(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with two thousand new realms once took two minutes to load."""
    reads = 0
    all_rules = realm_queries.all_rules

    def counting_all_rules(connection: Connection) -> dict[int, RealmRules]:
        nonlocal reads
        reads += 1
        return all_rules(connection)

    monkeypatch.setattr(realm_queries, "all_rules", counting_all_rules)
    for number in range(50):
        FakeAllocation(books, realm=f"realm {number}").new(0)
    run_jobs_at(books, 1)
    assert len(session_rows(books)) == 50
    assert reads < 5
