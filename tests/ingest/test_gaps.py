"""What the books say of a gap: its bounds, its cause, and what became of who lived through it."""

from accounting.capture.spool.records import RawKeySighting
from accounting.sessions.describe_gaps import describe_gaps
from tests.support.books import Books, channel, status_payload, traffic_payload


def lose(books: Books, since: float, until: float) -> None:
    """A gap of that length, after what was heard until now."""
    gap = books.spool().open_gap(books.micros_at(since), "disconnected")
    books.spool().close_gap(gap, books.micros_at(until))


def close(books: Books, at: float, allocation: int, received_bytes: int) -> None:
    """The end of an allocation, with its client total."""
    books.receive(at, channel("status", allocation=allocation), b"deleted")
    counts = traffic_payload(9, received_bytes, 9, 900)
    books.receive(at, channel("total_traffic", allocation=allocation), counts)


def test_a_gap_says_what_became_of_the_sessions_that_lived_through_it(books: Books) -> None:
    for allocation in (1, 2, 3, 4):
        books.receive(0, channel("status", allocation=allocation), status_payload("new", 600))
    books.advance_clock(10)
    lose(books, 10, 900)
    books.receive(901, channel("status", allocation=5), status_payload("new", 600))
    close(books, 902, 1, 5_000)
    # The third was refreshed within the gap: its key was set 30 seconds ago.
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(903),
                seen_at=books.micros_at(904),
                database=0,
                key=channel("status", allocation=3),
                idle_seconds=30,
            )
        ]
    )
    books.advance_clock(1_000)
    books.run_jobs()
    describe_gaps(books.engine)
    (gap,) = books.rows("capture_gaps")
    assert gap["cause"] == "disconnected"
    assert gap["detail"] == (
        "of 4 sessions that lived through it 1 made exact by their totals, 1 kept by their keys, "
        "2 expired, 1 still live"
    )
    ends = {row["allocation_id"][-1]: row["end_cause"] for row in books.rows("sessions")}
    assert ends == {"1": "deleted", "2": "expired", "3": None, "4": "expired", "5": None}
    assert describe_gaps(books.engine) == 0


def test_a_gap_that_nobody_lived_through_says_so(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    close(books, 5, 1, 100)
    books.advance_clock(10)
    lose(books, 10, 20)
    books.advance_clock(30)
    books.run_jobs()
    describe_gaps(books.engine)
    (gap,) = books.rows("capture_gaps")
    assert gap["detail"] == "no session lived through it"


def test_a_key_opens_nothing(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(1),
                seen_at=books.micros_at(2),
                database=0,
                key=channel("status", user="stranger", allocation=9),
                idle_seconds=0,
            )
        ]
    )
    books.advance_clock(10)
    books.run_jobs()
    assert [row["username"] for row in books.rows("sessions")] == ["alice"]


def test_a_key_says_nothing_when_the_life_was_heard_of_since_the_scan_began(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new", 100))
    books.receive(50, channel("status"), status_payload("refreshed", 100))
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(40),
                seen_at=books.micros_at(60),
                database=0,
                key=channel("status"),
                idle_seconds=1,
            )
        ]
    )
    books.advance_clock(500)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert (session["ended_at"] - session["started_at"]).total_seconds() == 50


def test_a_key_that_a_crashed_server_left_keeps_nothing_alive(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new", 100))
    books.advance_clock(5_000)
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(5_001),
                seen_at=books.micros_at(5_002),
                database=0,
                key=channel("status"),
                idle_seconds=5_002,
            )
        ]
    )
    books.advance_clock(5_010)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert session["end_cause"] == "expired"


def test_a_key_vouches_for_a_life_of_which_only_traffic_was_heard(books: Books) -> None:
    books.receive(0, channel("traffic"), traffic_payload(9, 900, 9, 900))
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(1),
                seen_at=books.micros_at(2),
                database=0,
                key=channel("status"),
                idle_seconds=30,
            )
        ]
    )
    books.advance_clock(10)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert (session["start_known"], session["received_bytes"]) == (False, 900)
    assert books.rows("unattributed_usage") == []
    books.assert_conserved()
