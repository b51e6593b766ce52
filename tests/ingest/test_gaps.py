"""Gaps and key sightings: what became of the sessions that were open during a gap."""

import pytest

from accounting.audit.verify import verify
from accounting.capture.spool.records import RawKeySighting
from accounting.domain.calendar import from_micros
from accounting.sessions.describe_gaps import describe_gaps
from tests.support.books import Books, channel, status_payload, traffic_payload


def record_gap(books: Books, from_at: float, to_at: float) -> None:
    number = books.spool().open_gap(books.micros_at(from_at), "disconnected")
    books.spool().close_gap(number, books.micros_at(to_at))


def delete_allocation(books: Books, at: float, allocation: int, received_bytes: int) -> None:
    """The deleted event of an allocation, and its client total."""
    books.receive(at, channel("status", allocation=allocation), b"deleted")
    counts = traffic_payload(9, received_bytes, 9, 900)
    books.receive(at, channel("total_traffic", allocation=allocation), counts)


def see_key(
    books: Books, scan_started_at: float, seen_at: float, key: bytes, idle_seconds: int
) -> None:
    """A scan finds a status key."""
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(scan_started_at),
                seen_at=books.micros_at(seen_at),
                database=0,
                key=key,
                idle_seconds=idle_seconds,
            )
        ]
    )


def test_a_gap_describes_what_became_of_the_sessions_open_during_it(books: Books) -> None:
    for allocation in (1, 2, 3, 4):
        books.receive(0, channel("status", allocation=allocation), status_payload("new", 600))
    books.advance_clock(10)
    record_gap(books, 10, 900)
    books.receive(901, channel("status", allocation=5), status_payload("new", 600))
    delete_allocation(books, 902, 1, 5_000)
    # The third was refreshed during the gap: its key was set 30 seconds ago.
    see_key(books, 903, 904, channel("status", allocation=3), 30)
    books.advance_clock(1_000)
    books.run_jobs()
    describe_gaps(books.engine)
    (gap,) = books.rows("capture_gaps")
    assert gap["cause"] == "disconnected"
    assert gap["detail"] == (
        "of 4 sessions that were open during it 1 made exact by their totals, "
        "1 kept by their keys, 2 expired, 1 still live"
    )
    ends = {row["allocation_id"][-1]: row["end_cause"] for row in books.rows("sessions")}
    assert ends == {"1": "deleted", "2": "expired", "3": None, "4": "expired", "5": None}
    assert describe_gaps(books.engine) == 0


def test_damaged_messages_of_the_spool_are_a_gap_and_the_others_are_loaded(books: Books) -> None:
    for number in (1, 2, 3):
        books.receive(10 * number, channel("status", allocation=number), status_payload("new"))
    spool = books.spool()
    with spool.transaction():
        spool.execute("UPDATE chunks SET content = zeroblob(length(content)) WHERE number = 2")
    books.advance_clock(40)
    assert books.load() == 2
    books.run_jobs()
    (gap,) = books.rows("capture_gaps")
    assert gap["cause"] == "spool_damaged"
    assert gap["detail"].startswith("no session lived") or "1 message " in gap["detail"]
    assert gap["from_at"] == from_micros(books.micros_at(10))
    assert gap["to_at"] == from_micros(books.micros_at(30) + 1)
    assert [row["allocation_id"][-1] for row in books.rows("sessions")] == ["1", "3"]
    assert books.load() == 0
    assert list(verify(books.engine)) == []


def test_a_gap_without_open_sessions_is_described_as_such(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    delete_allocation(books, 5, 1, 100)
    books.advance_clock(10)
    record_gap(books, 10, 20)
    books.advance_clock(30)
    books.run_jobs()
    describe_gaps(books.engine)
    (gap,) = books.rows("capture_gaps")
    assert gap["detail"] == "no session was open during it"


def test_a_sighting_starts_no_session(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    see_key(books, 1, 2, channel("status", user="bob", allocation=9), 0)
    books.advance_clock(10)
    books.run_jobs()
    assert [row["username"] for row in books.rows("sessions")] == ["alice"]


def test_a_sighting_is_ignored_if_a_report_came_after_the_scan_started(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new", 100))
    books.receive(50, channel("status"), status_payload("refreshed", 100))
    see_key(books, 40, 60, channel("status"), 1)
    books.advance_clock(500)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert (session["ended_at"] - session["started_at"]).total_seconds() == 50


def test_a_key_left_by_a_crashed_server_does_not_keep_its_session_open(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new", 100))
    books.advance_clock(5_000)
    see_key(books, 5_001, 5_002, channel("status"), 5_002)
    books.advance_clock(5_010)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert session["end_cause"] == "expired"


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_a_sighting_counts_between_the_reports_before_and_after_the_scan(
    books: Books, limit: int
) -> None:
    """Without it, or with it later, the session would be expired when the interim comes."""
    books.receive(0, channel("status"), status_payload("new", 100))
    see_key(books, 80, 90, channel("status"), 5)
    see_key(books, 80, 90, channel("status", allocation=2), 5)
    books.receive(3_000, channel("traffic"), traffic_payload(9, 900, 9, 900))
    books.receive(3_001, channel("status", allocation=2), status_payload("new", 100))
    books.load(limit=limit)
    first, second = books.rows("sessions", "end_cause", "received_bytes", "last_seen_at")
    assert first == {
        "end_cause": None,
        "received_bytes": 900,
        "last_seen_at": from_micros(books.micros_at(3_000)),
    }
    assert second["last_seen_at"] == from_micros(books.micros_at(3_001))
    assert len(books.query("SELECT FROM accounting.key_sightings")) == 2
    assert list(verify(books.engine)) == []


def test_an_old_key_does_not_keep_a_session_from_expiring(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new", 100))
    books.receive(50, channel("status"), status_payload("refreshed", 100))
    assert books.load() == 2
    see_key(books, 400, 401, channel("status"), 380)
    books.advance_clock(500)
    books.load()
    (session,) = books.rows("sessions")
    assert session["end_cause"] == "expired"
    assert list(verify(books.engine)) == []


def test_a_sighting_confirms_a_session_known_only_by_its_traffic(books: Books) -> None:
    books.receive(0, channel("traffic"), traffic_payload(9, 900, 9, 900))
    see_key(books, 1, 2, channel("status"), 30)
    books.advance_clock(10)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert (session["start_known"], session["received_bytes"]) == (False, 900)
    assert books.rows("unattributed_usage") == []
    books.assert_conserved()


def test_the_description_follows_what_is_settled_also_long_after_the_gap(books: Books) -> None:
    """As after hours without Postgres: the spool's past is loaded then."""
    books.receive(0, channel("status"), status_payload("new", 600))
    books.advance_clock(10)
    record_gap(books, 10, 20)
    for minutes, outcome in ((1, "0 made exact"), (170, "1 made exact"), (190, "1 made exact")):
        if minutes == 170:
            delete_allocation(books, 120, 1, 5_000)
        books.advance_clock(minutes * 60)
        books.run_jobs()
        describe_gaps(books.engine)
        (gap,) = books.rows("capture_gaps")
        assert gap["detail"].startswith(f"of 1 session that was open during it {outcome}")
