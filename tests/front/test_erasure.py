"""A user is erased in the front and in all cells, also where a cell is lost on the way."""

from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from accounting.billing.close_period import close_periods
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.realm_rules import RealmRule
from accounting.errors import AccountingError, UsageError
from accounting.front.shared.erasure import erase, reduce_addresses
from accounting.front.shared.rules import set_rules
from accounting.front.shared.share import share
from accounting.front.status import cell_problems
from tests.support.books import WRITER, Books
from tests.support.cells_away import away, lost_at_commit
from tests.support.command import turn_accounting
from tests.support.fronts import HOUR, Front, call
from tests.support.table_search import tables_containing

MONTH = 31 * 24 * HOUR


def fill(front: Front) -> None:
    """Alice roams in November and December, of which November is closed."""
    for month in range(2):
        for number, cell in enumerate(front.cells):
            at = month * MONTH + HOUR * number
            call(front, cell, "alice", at, 2 * month + number + 1)
        call(front, "north", "bob", month * MONTH + HOUR, 7 + month)
        front.advance_clocks((month + 1) * MONTH)
        front.run_jobs()
        if not month:
            front.close_periods()


def assert_erased(front: Front) -> None:
    for books in (front.books, *front.cells.values()):
        assert tables_containing(books, b"alice") == set()
    assert cell_problems(front.books.engine) == []


def names(front: Front, view: str) -> set[str]:
    return {row["user_id"] for row in front.rows(view)}


def test_a_user_is_erased_everywhere_and_no_figure_changes(front: Front) -> None:
    def figures(view: str, order: str) -> list[dict[str, Any]]:
        rows = front.rows(view, order=order)
        return [{**row, "user_id": "", "username": "", "client_address": ""} for row in rows]

    views = (("statements", "user_key, period"), ("sessions", "session_id"))
    before = [figures(*view) for view in views]
    dry = erase(front.books.engine, "example.org", "alice", dry_run=True)
    assert (dry.user_ids, dry.usernames, dry.sessions) == (3, 2, 4)
    with away(front.cells["south"]), pytest.raises(AccountingError, match="cell 'south'"):
        erase(front.books.engine, "example.org", "alice")
    assert names(front, "statements") == names(front, "sessions") == {"alice", "bob"}
    url = front.books.url(WRITER)
    done = turn_accounting("erase", "example.org", "alice", database_url=url)
    assert done.code == 0, done.err
    assert "erased 3 user_ids, 2 usernames, the client address of 4 sessions" in done.err
    assert_erased(front)
    front.close_periods()
    assert_erased(front)
    assert names(front, "statements") == {"", "bob"}
    before[0] = [row for row in figures(*views[0]) if str(row["period"]) == "2026-11-01"]
    assert len(before[0]) == 2
    assert [figures(*view) for view in views][1] == before[1]
    assert share(front.books.engine) == 0
    with pytest.raises(UsageError, match="no user 'nobody' is known"):
        erase(front.books.engine, "example.org", "nobody")


@pytest.mark.parametrize("repeated", [True, False])
def test_an_interrupted_erasure_is_completed(front: Front, repeated: bool) -> None:
    """By its repetition, or by the job. Meanwhile no copy of a statement brings the name back."""
    with (
        lost_at_commit(front.cells["south"], "erasures"),
        pytest.raises(AccountingError, match=r"cell 'south'.*repeat this"),
    ):
        erase(front.books.engine, "example.org", "alice")
    assert cell_problems(front.books.engine) == [
        "cell 'south': 1 erasure of the front is not carried out"
    ]
    assert tables_containing(front.cells["north"], b"alice") == set()
    for books in front.cells.values():
        assert tables_containing(books, b"alice") <= {"users", "usernames"}
    with (
        lost_at_commit(front.cells["south"], "erasures"),
        pytest.raises(AccountingError, match="cell 'south'"),
    ):
        share(front.books.engine)
    for books in front.cells.values():
        close_periods(books.engine)
    assert front.bill() == 1  # the lines and events of south have the name
    assert tables_containing(front.books, b"alice") == set()
    if repeated:
        erase(front.books.engine, "example.org", "alice")
    else:
        assert share(front.books.engine) == 1
    assert_erased(front)


def test_a_cell_that_is_restored_from_a_backup_erases_again(front: Front) -> None:
    south = front.cells["south"]
    tables = ("users", "usernames", "erasures")
    with psycopg.connect(south.url()) as connection:
        for table in tables:
            backup = SQL("CREATE TABLE public.{0} AS TABLE accounting.{0}")
            connection.execute(backup.format(Identifier(table)))
    erase(front.books.engine, "example.org", "alice")
    with psycopg.connect(south.url()) as connection:
        for table in tables:
            name = Identifier(table)
            connection.execute(SQL("TRUNCATE accounting.{}").format(name))
            connection.execute(SQL("INSERT INTO accounting.{0} TABLE public.{0}").format(name))
            connection.execute(SQL("DROP TABLE public.{}").format(name))
    assert names(front, "sessions") == {"", "alice", "bob"}
    assert share(front.books.engine) == 1
    assert_erased(front)


def test_a_user_who_returns_is_named_again(front: Front) -> None:
    """So that later statements can be sent to somebody."""
    erase(front.books.engine, "example.org", "alice")
    call(front, "south", "alice", 2 * MONTH + HOUR, 9)
    front.advance_clocks(3 * MONTH)
    front.run_jobs()
    front.close_periods()
    assert share(front.books.engine) == 0
    assert names(front, "statements WHERE period = '2027-01-01'") == {"alice"}
    assert cell_problems(front.books.engine) == []


def test_stored_addresses_are_reduced_in_all_cells_and_by_no_cell_alone(front: Front) -> None:
    def addresses(books: Books) -> set[str | None]:
        return {row["client_address"] for row in books.rows("sessions")}

    # In a cell alone, the others and the front's statements would go on to name the user.
    message = "this database is the cell 'north' of a front: erase on the front, for all cells"
    with pytest.raises(UsageError, match=message):
        erase(front.cells["north"].engine, "example.org", "alice")
    with pytest.raises(UsageError, match=message):
        reduce_addresses(front.cells["north"].engine, "example.org", ClientAddresses.DROP)
    engine = front.books.engine
    with pytest.raises(UsageError, match="keeps the addresses of clients"):
        reduce_addresses(engine, "example.org", ClientAddresses.KEEP)
    set_rules(engine, "example.org", {}, default=RealmRule(), client_addresses=ClientAddresses.DROP)
    assert addresses(front.books) != {None}
    dry = reduce_addresses(engine, "example.org", ClientAddresses.KEEP, dry_run=True)
    with away(front.cells["south"]), pytest.raises(AccountingError, match="cell 'south'"):
        reduce_addresses(engine, "example.org", ClientAddresses.KEEP)
    assert addresses(front.cells["north"]) != {None}
    done = reduce_addresses(engine, "example.org", ClientAddresses.KEEP)
    assert done == dry
    assert done.sessions == 6
    assert addresses(front.books) == {None}
