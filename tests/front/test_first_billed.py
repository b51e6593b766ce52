"""A cell that joins with a history, or in the place of another database, is not invoiced twice."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Final

import psycopg
import pytest

from accounting.billing.close_period import close_periods
from accounting.errors import UsageError
from accounting.front import join
from accounting.front.verify import verify_installation
from tests.support.books import WRITER, Books, cloned_database
from tests.support.command import turn_accounting
from tests.support.fronts import HOUR, Front, call, open_front
from tests.support.servers import PostgresServer

MONTH: Final = HOUR * 24 * 31
NOVEMBER: Final = date(2026, 11, 1)
DECEMBER: Final = date(2026, 12, 1)


@pytest.fixture
def front(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Front]:
    """Three cells. West has left, and closed November for itself, as the front with the others."""
    with open_front(postgres_server, tmp_path / "front") as front:
        for number, cell in enumerate(front.cells):
            call(front, cell, "alice", HOUR * number, number + 1)
        front.advance_clocks(MONTH)
        front.run_jobs()
        join.leave(front.engine, "west", without_its_usage=True)
        close_periods(front.cells["west"].engine)
        front.close_periods()
        yield front


def received(books: Books) -> dict[str, int]:
    """The bytes in statements, and in adjustments."""
    sums = "SELECT coalesce(sum(received_bytes), 0)::bigint AS received FROM reporting."
    return {view: books.query(sums + view)[0]["received"] for view in ("statements", "adjustments")}


def test_what_a_cell_closed_before_it_joined_is_billed_from_the_period_that_is_said(
    front: Front,
) -> None:
    west, before = front.cells["west"], received(front.books)
    message = (
        r"cell 'west': has closed 1 period with usage that this front has not billed, "
        r"period 2026-11-01.*begins 2026-12-01.*`--bill-from PERIOD`"
    )
    with pytest.raises(UsageError, match=message):
        join.join_cell(front.engine, "west", west.url(), None)
    assert west.query("SELECT FROM accounting.membership") == []

    join.join_cell(front.engine, "west", west.url(), None, bill_from=DECEMBER)
    join.join_cell(front.engine, "west", west.url(), None)  # it is remembered
    assert front.bill() == 0
    assert received(front.books) == before
    assert list(verify_installation(front.books.engine)) == []
    [*_, of_west] = turn_accounting("front", "list", "--json", database_url=front.books.url()).rows
    assert of_west["bill_from"] == "2026-12-01"
    trace = ("trace", "example.org", "2026-11-01", "--user", "alice")
    traced = turn_accounting(*trace, database_url=front.books.url(WRITER))
    assert (traced.code, "adds up" in traced.err) == (0, True), traced.err

    # A December of all three, and late usage of November in west, which invoiced that itself.
    call(front, "west", "bob", MONTH + HOUR, 4)
    front.advance_clocks(MONTH * 2.1)
    front.run_jobs()
    front.close_periods()
    [december] = front.rows("statements WHERE period = '2026-12-01'", "user_id")
    assert december == {"user_id": "bob"}
    assert list(verify_installation(front.books.engine)) == []

    assert join.leave(front.engine, "west") is None  # November is no usage that would be lost
    join.join_cell(front.engine, "west", west.url(), None, bill_from=NOVEMBER)
    assert front.bill() == 1
    [late] = front.rows("adjustments", "reason", "posted_in::text")
    assert late == {"reason": "late usage (difference to cell west)", "posted_in": "2027-01-01"}
    assert sum(received(front.books).values()) == sum(received(front.whole).values())
    assert list(verify_installation(front.books.engine)) == []


def test_a_day_within_a_period_is_refused_since_nobody_would_bill_that(front: Front) -> None:
    message = (
        r"cell 'west': no period begins 2026-11-05: realm 'example.org' has one from 2026-11-01 "
        r"to 2026-12-01, which the front would not bill"
    )
    with pytest.raises(UsageError, match=message):
        join.join_cell(
            front.engine, "west", front.cells["west"].url(), None, bill_from=date(2026, 11, 5)
        )


def test_the_period_that_is_suggested_leaves_out_none_that_the_cell_has_not_closed(
    front: Front,
) -> None:
    """Found by an audit: with the end of the closed one, a realm of another billing day was not
    billed by anyone from the middle of November on.
    """
    with psycopg.connect(front.cells["west"].url()) as connection:
        connection.execute("""
            WITH added AS (
                INSERT INTO accounting.realms (realm, realm_bytes) VALUES ('other', 'other')
                RETURNING realm_id
            )
            INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
            SELECT realm_id, '2026-11-15', '2026-11-15Z', '2026-12-15Z', '2026-12-17Z', 'UTC'
            FROM added
        """)
    message = r"period 2026-11-01, .* \(the first that it has not closed begins 2026-11-15\)"
    with pytest.raises(UsageError, match=message):
        join.join_cell(front.engine, "west", front.cells["west"].url(), None)


def test_another_database_in_the_place_of_a_cell_that_left_says_from_when_it_is_billed(
    front: Front, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    join.leave(front.engine, "south")
    message = r"takes the place .* left as cell 'south' .* has billed period 2026-11-01: .*--bill"
    with cloned_database(postgres_server) as name:
        rebuilt = Books(postgres_server, name, tmp_path / name)
        rebuilt.directory.mkdir()
        with psycopg.connect(rebuilt.url()) as connection:
            connection.execute("UPDATE accounting.installation SET database_id = gen_random_uuid()")
        front.follow_clock(rebuilt.url())
        with pytest.raises(UsageError, match=rf"cell 'south': {message}"):
            join.join_cell(front.engine, "south", rebuilt.url(), None)
        rebuilt.advance_clock(HOUR, source="south")  # its collector has the spool of the lost one
        rebuilt.run_jobs()
        front.follow_clock(rebuilt.url())
        with pytest.raises(UsageError, match=rf"cell 'east': {message}"):
            join.join_cell(front.engine, "east", rebuilt.url(), None)
        join.join_cell(front.engine, "east", rebuilt.url(), None, bill_from=DECEMBER)
        # The database that left is the one that was billed, by whatever name.
        join.leave(front.engine, "east")
        join.join_cell(front.engine, "middle", front.cells["south"].url(), None)
        assert front.bill() == 0
        assert list(verify_installation(front.books.engine)) == []
        rebuilt.close()
