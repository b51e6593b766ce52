"""The statements of a front: one line for each user, whatever happens to the cells afterwards."""

from datetime import date
from pathlib import Path
from typing import Any

from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period, close_periods, refresh_periods
from accounting.feed.number_feed import number_feed
from accounting.front.join import leave
from accounting.front.shared.share import share
from accounting.front.verify import verify_installation
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.fronts import HOUR, Front, call, open_front
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import PostgresServer

MONTH = HOUR * 24 * 31
LINE = ("realm", "period::text", "user_id", "user_key", "received_bytes", "sent_bytes",
    "peer_received_bytes", "sessions_started", "sessions_ended", "session_seconds",
    "estimated_bytes")  # fmt: skip


def fill(front: Front) -> None:
    """Two cells: alice roams, bob is in one of them; November is over."""
    call(front, "north", "alice", HOUR, 1)
    call(front, "south", "alice", HOUR * 2, 2)
    call(front, "south", "bob", HOUR * 3, 3)
    front.advance_clocks(MONTH)
    front.run_jobs()


def lines(front: Front, view: str = "statements") -> list[dict[str, Any]]:
    return front.rows(view, *LINE, order="realm, period, user_key")


def test_a_roaming_user_has_one_line(front: Front) -> None:
    front.close_periods()
    assert [line["user_id"] for line in lines(front)].count("alice") == 1
    assert lines(front) == front.whole.rows("statements", *LINE, order="realm, period, user_key")
    of_front, of_whole = (
        books.rows("periods", "realm", "period", "starts_at", "ends_at", "state", "waits_for")
        for books in (front.books, front.whole)
    )
    assert of_front == of_whole


def test_a_period_closes_when_all_cells_have_closed_it(front: Front) -> None:
    close_periods(front.cells["north"].engine)
    refresh_periods(front.cells["south"].engine)
    front.bill()
    [november] = front.rows("periods WHERE period = '2026-11-01'", "state", "waits_for")
    assert november == {"state": "closing", "waits_for": "cell 'south': its close"}
    previews = lines(front, "statement_previews WHERE period = '2026-11-01'")
    close_periods(front.cells["south"].engine)
    assert lines(front, "statement_previews WHERE period = '2026-11-01'") == previews
    front.bill()
    assert lines(front) == previews
    assert lines(front, "statement_previews WHERE period = '2026-11-01'") == []


def test_a_cell_without_usage_of_the_realm_is_waited_for(front: Front) -> None:
    call(front, "south", "carol", MONTH + HOUR, 9, realm="example.net")
    for cell, seconds in (("north", MONTH + HOUR), ("south", MONTH * 2.2)):
        front.cells[cell].advance_clock(seconds, source=cell)
        front.cells[cell].run_jobs()
    front.whole.advance_clock(MONTH * 2.2, source="south")
    front.whole.run_jobs()
    front.follow_clock()
    share(front.books.engine)
    close_periods(front.cells["south"].engine)
    front.bill()
    [december] = front.rows("periods WHERE realm = 'example.net' AND period = '2026-12-01'")
    assert december["waits_for"].startswith("cell 'north': source 'north' settled until 2026-12-03")
    front.cells["north"].advance_clock(MONTH * 2.2, source="north")
    front.cells["north"].run_jobs()
    front.bill()
    [december] = front.rows("periods WHERE realm = 'example.net' AND period = '2026-12-01'")
    assert december["state"] == "closed"


def test_late_usage_of_a_cell_is_an_adjustment_that_names_it(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with open_front(postgres_server, tmp_path, ("north", "south")) as front:
        for cell in front.cells:
            call(front, cell, "alice", HOUR, 1)
        front.advance_clocks(HOUR * 10)
        front.run_jobs()
        for cell in front.cells:  # received in November, loaded when November is closed
            front.receive(
                cell, HOUR * 11, channel("traffic", allocation=2), traffic_payload(1, 2, 3, 4)
            )
            front.receive(cell, HOUR * 11.1, channel("status", allocation=2), b"deleted")
        for books in (*front.cells.values(), front.whole):
            books.query("UPDATE test_clock.clock SET fixed_at = '2026-12-10' RETURNING 1")
        front.follow_clock()
        for name, books in (*front.cells.items(), ("", front.whole)):
            sources = [name] if name else list(front.cells)
            close_period(books.engine, "example.org", date(2026, 11, 1), excluded_sources=sources)
        assert front.bill() == 1
        front.advance_clocks(MONTH * 1.5)
        for books in (*front.cells.values(), front.whole):
            books.run_jobs()
            adjust(books.engine)
        assert front.bill() == 2
        assert front.bill() == 0
        reasons = [row["reason"] for row in front.rows("adjustments", "reason")]
        assert sorted(reasons) == ["late usage (cell north)", "late usage (cell south)"]
        query = "sum(received_bytes) AS received, sum(session_seconds) AS seconds"
        assert front.rows("adjustments", query) == front.whole.rows("adjustments", query)
        number_feed(front.books.engine)
        query = "SELECT payload FROM reporting.feed WHERE type = 'adjustment.posted' ORDER BY seq"
        posted = [row["payload"] for row in front.books.query(query)]
        statement = lines(front)[0]["received_bytes"]
        assert [payload["before"]["received_bytes"] for payload in posted] == [
            statement,
            statement + posted[0]["received_bytes"],
        ]


def billed(books: Books) -> list[dict[str, Any]]:
    """Statements and late usage by user."""
    return books.query("""
        SELECT user_id, sum(received_bytes) AS bytes, sum(session_seconds) AS seconds
        FROM (
            SELECT user_id, received_bytes, session_seconds FROM reporting.statements
            UNION ALL
            SELECT user_id, received_bytes, session_seconds FROM reporting.adjustments
        ) b GROUP BY user_id ORDER BY user_id
    """)


def late_call(front: Front, cell: str, hours: float = 40) -> None:
    """A session that was received in November, and is loaded when it is closed."""
    for name in (front.cells[cell], front.whole):
        spool = name.spool("late")
        at = name.micros_at(HOUR * hours)
        spool.append(
            [
                (at, 0, channel("status", user="alice", allocation=77), status_payload("new", 600)),
                (at + 1, 0, channel("traffic", user="alice", allocation=77),
                    traffic_payload(1, 2_000, 3, 4)),
                (at + 2, 0, channel("status", user="alice", allocation=77), b"deleted"),
            ]
        )  # fmt: skip
        spool.checkpoint(name.micros_at(HOUR * hours + 10))


def test_a_restored_cell_that_closes_otherwise_adds_an_adjustment(front: Front) -> None:
    """What it counted late before is in its statement now, and on the front it is once."""
    north = front.cells["north"]
    front.books.disconnect()
    front.books.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [north.name]
    )
    back_up(north)
    front.close_periods()
    before = front.rows("statements", order="user_key")
    restore_database(north)
    late_call(front, "north")
    for name in front.cells:
        for books in (front.cells[name], front.whole):
            books.advance_clock(MONTH * 1.1, source=name)
    for books in (north, front.whole):
        books.spool("late").checkpoint(books.micros_at(MONTH * 1.1))
        books._loaders.clear()
        books.run_jobs()
        close_periods(books.engine)
        adjust(books.engine)
    assert billed(north) != []
    front.bill()
    assert front.rows("statements", order="user_key") == before
    assert billed(front.books) == billed(front.whole)
    [row] = front.rows("adjustments", "reason", "received_bytes")
    assert row == {"reason": "late usage (difference to cell north)", "received_bytes": 2_000}
    assert front.bill() == 0
    assert list(verify_installation(front.books.engine)) == []


def test_what_a_restored_cell_posts_again_in_other_portions_is_billed_once(front: Front) -> None:
    north = front.cells["north"]
    front.close_periods()
    front.books.disconnect()
    front.books.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [north.name]
    )
    back_up(north)
    for hours in (40, 50):
        late_call(front, "north", hours)
        for books in (north, front.whole):
            books.run_jobs()
            adjust(books.engine)
        assert front.bill() == 1
    restore_database(north)
    north._loaders.clear()
    north.run_jobs()
    adjust(north.engine)
    assert len(north.rows("adjustments")) == 1
    front.bill()
    assert billed(front.books) == billed(front.whole)
    assert list(verify_installation(front.books.engine)) == []


def test_late_usage_that_a_restored_cell_posts_again_is_billed_after_it_closed_without_it(
    front: Front,
) -> None:
    """Its id is the same. The front took it back when the cell had closed, but not posted it."""
    north = front.cells["north"]
    front.books.disconnect()
    front.books.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [north.name]
    )
    back_up(north)
    front.close_periods()
    late_call(front, "north")
    for books in (north, front.whole):
        books.run_jobs()
        adjust(books.engine)
    assert front.bill() == 1
    restore_database(north)
    north._loaders.clear()
    north.advance_clock(MONTH * 1.1, source="north")
    north.load(source="north")
    north.settle()
    north.rollup()
    close_periods(north.engine)
    assert front.bill() == 1
    assert sum(row["received_bytes"] for row in front.rows("adjustments")) == 0
    north.run_jobs()
    adjust(north.engine)
    assert front.bill() == 1
    assert billed(front.books) == billed(front.whole)
    assert front.bill() == 0
    assert list(verify_installation(front.books.engine)) == []


def test_a_manual_adjustment_is_posted_on_the_front(front: Front) -> None:
    front.close_periods()
    posted = post_manual_adjustment(
        front.books.engine,
        "example.org",
        date(2026, 11, 1),
        "alice",
        {"received_bytes": -5},
        reason="credit",
        author="ann",
    )
    assert posted.is_new
    front.bill()
    [row] = front.rows("adjustments", "reason", "author", "received_bytes", "posted_in::text")
    assert row == {
        "reason": "credit", "author": "ann", "received_bytes": -5, "posted_in": "2026-12-01"
    }  # fmt: skip


def test_a_statement_stays_when_its_cell_leaves(front: Front) -> None:
    front.close_periods()
    before = front.rows("statements", order="user_key")
    leave(front.engine, "south", without_its_usage=True)
    front.bill()
    assert front.rows("statements", order="user_key") == before
