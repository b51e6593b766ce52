"""session.ended: told whenever a session ends, numbered, and never with other figures than it has.

However settling's batches fall, the last telling of a session says what the session says.
"""

from typing import Any, Final

import psycopg
import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.realm_rules import RealmRule
from accounting.feed import outbox
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import add_realm
from tests.support.books import WRITER, Books
from tests.support.coturn_messages import OTHER_SERVER_ADDRESS, FakeAllocation

HALF, WHOLE, NOTHING = (5, 500, 4, 400), (10, 1000, 8, 800), (0, 0, 0, 0)
SAME: Final = (
    "source", "database", "user_key", "allocation_id", "started_at", "start_known", "ended_at",
    "end_cause", "total_reported", "estimated", "disputed", *COUNTERS,
)  # fmt: skip


def told(books: Books) -> list[dict[str, Any]]:
    number_feed(books.engine)
    rows = books.rows("feed")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["type"] == "session.ended" for row in rows)
    return [row["payload"] for row in rows]


def assert_last_is_true(books: Books) -> None:
    """For each ended session, the last telling is the row of reporting.sessions."""
    last = {payload["session_id"]: payload for payload in told(books)}
    rows = [row for row in books.rows("sessions") if row["ended_at"] is not None]
    assert rows
    for row in rows:
        shown = {
            name: value if isinstance(value, int | str) else _spelled(value)
            for name, value in row.items()
        }
        payload = last.pop(str(row["session_id"]))
        assert {name: payload[name] for name in SAME} == {name: shown[name] for name in SAME}
    alive = {str(row["session_id"]) for row in books.rows("sessions") if row["ended_at"] is None}
    assert set(last) <= alive


def _spelled(value: Any) -> Any:
    return value.isoformat(timespec="microseconds") if hasattr(value, "isoformat") else str(value)


def test_an_end_with_its_totals_is_told_once(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *WHOLE)
    alice.close(20, WHOLE, NOTHING)
    books.advance_clock(30)
    books.run_jobs()
    (payload,) = told(books)
    assert (payload["number"], payload["ended_at"], payload["received_bytes"]) == (
        1,
        "2026-11-02T12:00:20.000000+00:00",
        1000,
    )
    books.run_jobs()
    assert len(told(books)) == 1
    assert_last_is_true(books)


def test_a_reopened_session_ends_again_with_the_next_number(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    books.advance_clock(661)
    books.run_jobs()
    alice.refreshed(700)
    books.advance_clock(701)
    books.run_jobs()
    alice.deleted(800)
    books.advance_clock(801)
    books.run_jobs()
    assert [(one["number"], one["end_cause"]) for one in told(books)] == [
        (1, "expired"),
        (2, "deleted"),
    ]
    assert_last_is_true(books)


def test_a_total_that_comes_after_the_end_was_told_is_told_with_the_next_number(
    books: Books,
) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.deleted(10)
    books.advance_clock(11)
    books.run_jobs()
    alice.total(12, *WHOLE)
    books.advance_clock(13)
    books.run_jobs()
    assert [(one["number"], one["received_bytes"]) for one in told(books)] == [(1, 0), (2, 1000)]
    assert_last_is_true(books)


def test_strangers_and_those_who_live_are_not_told(books: Books) -> None:
    FakeAllocation(books, user="live").new(0, 7200)
    FakeAllocation(books, user="stranger").interim(5, *HALF)
    books.advance_clock(5000)
    books.run_jobs()
    assert told(books) == []


def test_an_event_keeps_its_id(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.deleted(10)
    books.advance_clock(11)
    books.run_jobs()
    number_feed(books.engine)
    (row,) = books.rows("feed")
    (expected,) = books.query(
        "SELECT encode(substring(sha256(convert_to(%s, 'UTF8')) FOR 16), 'hex')::uuid AS id",
        [f"session.ended\n{row['payload']['session_id']} 1"],
    )
    assert row["event_id"] == expected["id"]


def test_an_end_that_was_told_as_json_stands_as_it_was_told(books: Books) -> None:
    """Ends that were told, or waited, before the feed had columns for them."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.close(20, WHOLE, NOTHING)
    books.advance_clock(30)
    books.run_jobs()
    number_feed(books.engine)
    (row,) = books.rows("feed")
    with books.engine.begin() as connection:
        realm_id = add_realm(connection, b"example.org", RealmRule())
        outbox.enqueue_event(connection, "session.ended", realm_id, row["payload"], "of old")
    assert told(books) == [row["payload"], row["payload"]]


def test_an_end_without_all_its_figures_is_refused(books: Books) -> None:
    with (
        psycopg.connect(books.url(WRITER)) as connection,
        pytest.raises(psycopg.errors.CheckViolation, match="waits_with_payload_or_end"),
    ):
        connection.execute(
            "INSERT INTO accounting.feed_outbox (event_id, type, realm_id, session_id)"
            " VALUES (gen_random_uuid(), 'session.ended', 1, gen_random_uuid())"
        )


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_however_batches_fall_the_last_telling_is_true(books: Books, limit: int) -> None:
    FakeAllocation(books, user="expired").new(0)
    FakeAllocation(books, user="expired").interim(10, *HALF)
    FakeAllocation(books, user="shared").new(20, 7200)
    FakeAllocation(books, user="stranger").interim(40, *HALF)
    books.advance_clock(700)
    books.load()
    books.settle(limit)
    FakeAllocation(books, user="expired").interim(710, *HALF)
    FakeAllocation(books, user="shared", server_address=OTHER_SERVER_ADDRESS).new(730, 600)
    FakeAllocation(books, user="expired").close(740, WHOLE, HALF)
    FakeAllocation(books, user="shared").close(800, WHOLE, HALF)
    FakeAllocation(books, user="shared", server_address=OTHER_SERVER_ADDRESS).close(801, HALF, HALF)
    FakeAllocation(books, user="again").new(900)
    FakeAllocation(books, user="again").new(950)
    books.advance_clock(10_000)
    books.load()
    books.settle(limit)
    books.rollup()
    assert_last_is_true(books)
