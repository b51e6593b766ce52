"""What was billed of each cell is known, so that the others' fate does not matter."""

from collections.abc import Iterator
from datetime import date
from typing import Any, Final

import psycopg
import pytest

from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_periods, refresh_periods
from accounting.errors import AccountingError, NotYet, UsageError
from accounting.front import join
from accounting.front.billing.close_over_cells import close_installation_period
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.verify import verify_installation
from tests.support.books import Books, channel, cloned_database, status_payload, traffic_payload
from tests.support.fronts import HOUR, Front, FrontTemplate, call, front_template
from tests.support.servers import PostgresServer

MONTH: Final = HOUR * 24 * 31
NOVEMBER: Final = date(2026, 11, 1)
DECEMBER: Final = date(2026, 12, 1)


def fill(front: Front) -> None:
    """Alice roams over north and south; zoe's realm is in north and west. November is over."""
    call(front, "north", "alice", HOUR, 1)
    call(front, "south", "alice", HOUR * 2, 2)
    call(front, "north", "zoe", HOUR, 3, realm="example.net")
    call(front, "west", "zoe", HOUR, 4, realm="example.net")
    front.advance_clocks(MONTH * 1.1)
    front.run_jobs()


@pytest.fixture(scope="module")
def template(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FrontTemplate]:
    with front_template(postgres_server, tmp_path_factory.mktemp("template"), fill) as template:
        yield template


def billed(books: Books) -> list[dict[str, Any]]:
    return books.query("""
        SELECT realm, user_id, sum(received_bytes) AS bytes, sum(session_seconds) AS seconds
        FROM (
            SELECT realm, user_id, received_bytes, session_seconds FROM reporting.statements
            UNION ALL
            SELECT realm, user_id, received_bytes, session_seconds FROM reporting.adjustments
        ) b GROUP BY realm, user_id ORDER BY realm, user_id
    """)


def statements(front: Front, *columns: str) -> list[dict[str, Any]]:
    return front.rows("statements", *columns, order="realm, user_id")


def change(books: Books, *statements: str) -> None:
    """Change what nobody may change, as the superuser, without triggers."""
    with psycopg.connect(books.url()) as connection:
        for table in ("statements", "adjustments", "periods"):
            connection.execute(f"ALTER TABLE accounting.{table} DISABLE TRIGGER USER")
        for statement in statements:
            connection.execute(statement)
        for table in ("statements", "adjustments", "periods"):
            connection.execute(f"ALTER TABLE accounting.{table} ENABLE TRIGGER USER")


def late_source(front: Front, cell: str, realm: str = "example.org") -> None:
    """Another source of a cell has a session of November."""
    for books in (front.cells[cell], front.whole):
        for seconds, suffix, payload in (
            (0, "status", status_payload("new", 600, local="192.0.2.9:3478")),
            (1, "traffic", traffic_payload(1, 2_000, 3, 4)),
            (2, "status", b"deleted"),
        ):
            name = channel(suffix, user="carl", realm=realm, allocation=99)
            books.receive(HOUR * 5 + seconds, name, payload, source="second")
        books.advance_clock(MONTH * 1.1, source="second")
        books.run_jobs()
        adjust(books.engine)
        close_periods(books.engine)


def test_a_cell_is_billed_although_another_one_has_left(
    front: Front, postgres_server: PostgresServer
) -> None:
    front.close_periods()
    before = statements(front)
    join.leave(front.engine, "south")
    late_source(front, "west")
    front.bill()
    [row] = front.rows("adjustments", "reason", "user_id")
    assert row == {"reason": "late usage (difference to cell west)", "user_id": "carl"}
    assert statements(front) == before
    assert billed(front.books) == billed(front.whole)
    assert list(verify_installation(front.books.engine)) == []
    with cloned_database(postgres_server) as name:
        url = postgres_server.url(database=name)
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE accounting.installation SET database_id = gen_random_uuid()")
        front.follow_clock(url)
        join.join_cell(front.engine, "south", url, None, bill_from=date(2026, 12, 1))
        assert front.bill() == 0
        assert list(verify_installation(front.books.engine)) == []
        join.leave(front.engine, "south")
    more = "UPDATE accounting.statements SET sent_packets = sent_packets + 1"
    change(front.books, more)
    found = {(d.what, d.realm, d.column) for d in verify_installation(front.books.engine)}
    assert found == {
        ("statements", realm, "sent_packets") for realm in ("example.net", "example.org")
    }


def test_late_usage_of_a_cell_that_leaves_is_billed_with_the_next_period(front: Front) -> None:
    front.close_periods()
    for cell in ("west", "north"):
        assert join.leave(front.engine, cell) is None
    front.bill()
    with pytest.raises(NotYet, match=r"no cell has a period of realm 'example\.net' that is open"):
        post_manual_adjustment(
            front.books.engine, "example.net", NOVEMBER, "zoe", {"received_bytes": -1},
            reason="credit", author="ann",
        )  # fmt: skip
    join.join_cell(front.engine, "west", front.cells["west"].url(), None)
    late_source(front, "west", "example.net")
    message = (
        r"cell 'west' has late usage .* realm 'example.net' in period 2026-11-01 .* not copied"
    )
    with pytest.raises(UsageError, match=message):
        join.leave(front.engine, "west")
    assert front.bill() == 1
    assert join.leave(front.engine, "west") is None
    front.bill()
    assert billed(front.books) == billed(front.whole)
    # No cell has the realm any more, but what is posted in December is billed with December.
    [december] = front.rows(
        "periods WHERE realm = 'example.net' AND period > '2026-11-01'", "state"
    )
    assert december == {"state": "open"}


def test_a_period_that_late_usage_is_posted_in_stays_until_it_is_billed(front: Front) -> None:
    """The first usage of the realm in another cell is of a later period."""
    front.close_periods()
    assert join.leave(front.engine, "north") is None
    late_source(front, "west", "example.net")
    assert front.bill() == 1
    assert join.leave(front.engine, "west") is None
    call(front, "south", "zoe", MONTH * 2, 5, realm="example.net")
    front.advance_clocks(MONTH * 2.01)
    front.run_jobs()
    refresh_periods(front.cells["south"].engine)
    front.bill()
    front.advance_clocks(MONTH * 2.2)
    front.run_jobs()
    front.bill()
    [december, january] = front.rows(
        "periods WHERE realm = 'example.net' AND period > '2026-11-01'", "period", "state"
    )
    assert december == {"period": DECEMBER, "state": "closed"}
    assert january == {"period": date(2027, 1, 1), "state": "open"}
    [late] = front.rows("adjustments", "posted_in")
    assert late == {"posted_in": DECEMBER}


def test_a_cell_whose_late_usage_is_not_rolled_up_yet_can_t_leave(front: Front) -> None:
    front.close_periods()
    west = front.cells["west"]
    for suffix, payload in (
        ("status", status_payload("new", 600)),
        ("traffic", traffic_payload(1, 2_000, 3, 4)),
        ("status", b"deleted"),
    ):
        name = channel(suffix, user="zoe", realm="example.net", allocation=99)
        west.receive(HOUR * 5, name, payload, source="second")
    west.load(source="second")
    west.settle()
    assert west.query("SELECT FROM accounting.periods_to_adjust") == []
    with pytest.raises(UsageError, match=r"late usage .* period 2026-11-01 .* not copied"):
        join.leave(front.engine, "west")


def test_a_clock_that_was_ahead_hides_no_adjustment(front: Front) -> None:
    front.close_periods()
    north = front.cells["north"]

    def credit(bytes_: int) -> None:
        post_manual_adjustment(
            north.engine, "example.org", NOVEMBER, "alice", {"received_bytes": bytes_},
            reason="credit", author="ann",
        )  # fmt: skip

    credit(-1)
    change(north, "UPDATE accounting.adjustments SET posted_at = now() + interval '10 days'")
    assert front.bill() == 1
    credit(-2)
    assert front.bill() == 1
    assert front.bill() == 0
    assert [row["received_bytes"] for row in front.rows("adjustments", "received_bytes")] == [
        -2,
        -1,
    ]


def test_a_row_that_the_front_can_t_take_keeps_back_only_its_realm(front: Front) -> None:
    north = front.cells["north"]
    for books in front.cells.values():
        close_periods(books.engine)
    most = "UPDATE accounting.statements SET received_bytes = 9223372036854775807"
    change(
        north,
        f"{most} FROM accounting.realms r WHERE r.realm_id = statements.realm_id"
        " AND r.realm = 'example.org'",
    )
    message = r"not billed: period 2026-11-01 of realm 'example.org': bigint out of range"
    with pytest.raises(AccountingError, match=message):
        front.bill()
    assert statements(front, "realm") == [{"realm": "example.net"}]

    # A period whose end is before its start, of another realm.
    change(
        north,
        "ALTER TABLE accounting.periods DROP CONSTRAINT period_is_not_empty",
        "INSERT INTO accounting.periods SELECT realm_id, '2000-01-01', '2000-01-02',"
        " '2000-01-01', '2000-01-01', 'UTC' FROM accounting.realms WHERE realm = 'example.net'",
        "UPDATE accounting.statements SET received_bytes = 1",
    )
    message = r"not billed: cell 'north', realm 'example.net': .*period_is_not_empty"
    with pytest.raises(AccountingError, match=message):
        copy_billing(front.books.engine)
    assert statements(front, "realm") == [{"realm": "example.net"}, {"realm": "example.org"}]

    change(north, "UPDATE accounting.realm_usage_monthly SET sent_bytes = 9223372036854775807")
    with pytest.raises(psycopg.errors.NumericValueOutOfRange, match=r"sent_bytes.*\n.*'north'"):
        front.rows("realm_usage_monthly")


def test_a_period_that_never_closes_in_a_cell_can_be_closed_without_it(front: Front) -> None:
    north = front.cells["north"]
    for books in front.cells.values():
        close_periods(books.engine)
    change(
        north,
        "INSERT INTO accounting.periods SELECT realm_id, '2000-01-01', '2000-01-01',"
        " '2000-02-01', '2000-02-01', 'UTC' FROM accounting.realms WHERE realm = 'example.org'",
    )
    front.bill()
    assert statements(front, "realm") == [{"realm": "example.net"}]
    [bogus] = front.rows("periods WHERE period = '2000-01-01'", "waits_for")
    assert bogus == {"waits_for": "cell 'north': its close"}
    closed = close_installation_period(
        front.books.engine, "example.org", date(2000, 1, 1), excluded=["north"]
    )
    assert (closed.line_count, closed.excluded_sources) == (0, ("cell north",))
    front.bill()
    assert statements(front, "realm") == [{"realm": "example.net"}, {"realm": "example.org"}]
