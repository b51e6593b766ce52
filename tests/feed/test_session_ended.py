"""``session.ended``: an event for each end of a session; the last one has the session's numbers.

That holds for any batches of settling.
"""

from datetime import datetime
from hashlib import sha256
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
SHARED_COLUMNS: Final = (
    "source", "database", "user_key", "allocation_id", "started_at", "start_known", "ended_at",
    "end_cause", "total_reported", "estimated", "disputed", *COUNTERS,
)  # fmt: skip


def session_ended_payloads(books: Books) -> list[dict[str, Any]]:
    number_feed(books.engine)
    rows = books.rows("feed")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["payload"] for row in rows if row["type"] == "session.ended"]


def assert_last_events_match_sessions(books: Books) -> None:
    """The last event of each ended session equals its row of ``reporting.sessions``."""
    last = {payload["session_id"]: payload for payload in session_ended_payloads(books)}
    rows = [row for row in books.rows("sessions") if row["ended_at"] is not None]
    assert rows
    for row in rows:
        shown = {
            name: value if isinstance(value, int | str) else _json_value(value)
            for name, value in row.items()
        }
        payload = last.pop(str(row["session_id"]))
        assert {name: payload[name] for name in SHARED_COLUMNS} == {
            name: shown[name] for name in SHARED_COLUMNS
        }
    open_sessions = {
        str(row["session_id"]) for row in books.rows("sessions") if row["ended_at"] is None
    }
    assert set(last) <= open_sessions


def _json_value(value: Any) -> Any:
    return value.isoformat(timespec="microseconds") if hasattr(value, "isoformat") else str(value)


def test_an_end_with_its_totals_is_one_event(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(10, *WHOLE)
    alice.close(20, WHOLE, NOTHING)
    books.advance_clock(30)
    books.run_jobs()
    (payload,) = session_ended_payloads(books)
    assert (payload["number"], payload["ended_at"], payload["received_bytes"]) == (
        4,
        "2026-11-02T12:00:20.000000+00:00",
        1000,
    )
    books.run_jobs()
    assert len(session_ended_payloads(books)) == 1
    assert_last_events_match_sessions(books)


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
    assert [
        (payload["number"], payload["end_cause"]) for payload in session_ended_payloads(books)
    ] == [
        (1, "expired"),
        (2, "deleted"),
    ]
    assert_last_events_match_sessions(books)


def test_a_total_after_the_event_is_an_event_with_the_next_number(
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
    assert [
        (payload["number"], payload["received_bytes"]) for payload in session_ended_payloads(books)
    ] == [
        (2, 0),
        (3, 1000),
    ]
    assert_last_events_match_sessions(books)


def test_unauthenticated_and_open_sessions_have_no_event(books: Books) -> None:
    FakeAllocation(books, user="open").new(0, 7200)
    FakeAllocation(books, user="unauthenticated").interim(5, *HALF)
    books.advance_clock(5000)
    books.run_jobs()
    assert session_ended_payloads(books) == []


def test_the_event_id_is_derived_from_what_the_event_says(books: Books) -> None:
    alice = FakeAllocation(books)
    alice.new(0)
    alice.deleted(10)
    books.advance_clock(11)
    books.run_jobs()
    number_feed(books.engine)
    (row,) = books.rows("feed")
    payload = row["payload"]
    words = [
        payload["session_id"],
        payload["user_key"],
        f"{datetime.fromisoformat(payload['ended_at']).timestamp():.6f}",
        *(payload[name] for name in ("end_cause", "number", *COUNTERS)),
        *("ft"[payload[name]] for name in ("total_reported", "estimated", "disputed")),
    ]
    key = "session.ended\n" + " ".join(map(str, words))
    assert row["event_id"].bytes == sha256(key.encode()).digest()[:16]


def test_an_event_with_a_json_payload_keeps_it(books: Books) -> None:
    """The form of ``session.ended`` before the feed had columns for it."""
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
    assert session_ended_payloads(books) == [row["payload"], row["payload"]]


def test_an_event_without_all_its_columns_is_refused(books: Books) -> None:
    with (
        psycopg.connect(books.url(WRITER)) as connection,
        pytest.raises(psycopg.errors.CheckViolation, match="waits_with_payload_or_columns"),
    ):
        connection.execute(
            "INSERT INTO accounting.feed_outbox (event_id, type, realm_id, session_id)"
            " VALUES (gen_random_uuid(), 'session.ended', 1, gen_random_uuid())"
        )


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_the_last_event_matches_the_session_for_any_batches(books: Books, limit: int) -> None:
    FakeAllocation(books, user="expired").new(0)
    FakeAllocation(books, user="expired").interim(10, *HALF)
    FakeAllocation(books, user="shared").new(20, 7200)
    FakeAllocation(books, user="unauthenticated").interim(40, *HALF)
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
    assert_last_events_match_sessions(books)
