"""``source.trouble``: one event for each trouble of a source, however often it is recorded."""

from typing import Any

from accounting.capture.clock import CaptureClock
from accounting.domain.calendar import to_micros
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import SourceConflict
from accounting.ingest.source_lease import acquire_lease
from accounting.sources.identity import record_conflict, resolve_conflicts
from tests.support.books import Books, channel, status_payload

SERVER = ServerIdentity(run_id="1" * 40, replication_id="2" * 40)


def troubles(books: Books) -> list[tuple[str, str, dict[str, Any]]]:
    """(source, trouble, the rest of the payload) of each event, in order; realm null."""
    rows = books.query(
        "SELECT realm_id, payload FROM accounting.feed_outbox"
        " WHERE type = 'source.trouble' ORDER BY outbox_id"
    )
    assert all(row["realm_id"] is None for row in rows)
    return [
        (row["payload"].pop("source"), row["payload"].pop("trouble"), row["payload"])
        for row in rows
    ]


def test_a_gap_is_one_event_when_it_opens(books: Books) -> None:
    spool = books.spool("north")
    books.receive(1, channel("status"), status_payload("new"), source="north")
    gap = spool.open_gap(books.micros_at(5), "disconnected", "connection reset by peer")
    books.advance_clock(4, source="north")
    books.load(source="north")
    expected = (
        "north",
        "disconnected",
        {"detail": "connection reset by peer", "since": "2026-11-02T12:00:05.000000+00:00"},
    )
    assert troubles(books) == [expected]
    spool.close_gap(gap, books.micros_at(9))
    books.receive(10, channel("status"), status_payload("refreshed"), source="north")
    books.load(source="north")
    [row] = books.rows("capture_gaps")
    assert row["to_at"] is not None
    assert troubles(books) == [expected]


def test_a_refused_source_is_one_event_until_it_captures(books: Books) -> None:
    books.advance_clock(0)
    books.load()

    def refuse(*, loses_messages: bool = False, holder: str = "host /spool") -> None:
        conflict = SourceConflict(
            "the Redis of source 'b' has the history of source 'default'",
            source_id=books.source_id(),
            server=SERVER.to_text(),
            loses_messages=loses_messages,
        )
        record_conflict(books.engine, conflict, holder=holder, since_seconds=5)

    for _ in range(3):
        refuse()
    [(source, trouble, payload)] = troubles(books)
    assert (source, trouble) == ("default", "source_conflict")
    assert payload["detail"] == "the Redis of source 'b' has the history of source 'default'"
    with books.engine.begin() as connection:
        resolve_conflicts(connection, books.source_id(), SERVER, "host /spool")
    refuse()
    assert [trouble for _, trouble, _ in troubles(books)] == ["source_conflict"] * 2
    for _ in range(3):
        refuse(loses_messages=True, holder="other /spool")
    assert [trouble for _, trouble, _ in troubles(books)][2:] == ["another_redis"]


def test_a_clock_that_is_off_is_one_event_until_it_is_right(books: Books) -> None:
    books.set_database_clock(books.start)
    error = 0

    def renew() -> None:
        clock = CaptureClock(wall=lambda: to_micros(books.start) + error)
        acquire_lease(books.engine, books.spool(), 60.0, clock)

    renew()
    assert troubles(books) == []
    error = 300_000_000
    renew()
    renew()
    [(source, trouble, payload)] = troubles(books)
    assert (source, trouble) == ("default", "clock_off")
    assert payload["detail"] == (
        "the clock of its collector's machine is 300.0 s ahead of the database's"
    )
    error = 0
    renew()
    error = -30_000_000
    renew()
    assert "behind the database's" in troubles(books)[1][2]["detail"]
    ids = books.query("SELECT DISTINCT event_id FROM accounting.feed_outbox")
    assert len(ids) == 1  # within an hour numbering keeps the first
