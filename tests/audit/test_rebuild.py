"""Whatever is wrong in the books is made right from the reports, and what is closed is adjusted."""

from datetime import date

import psycopg
import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.errors import UsageError
from tests.support.billing_scenarios import close_and_adjust_november
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.corruptions import CORRUPTIONS, corrupt, difference_key, fill_books
from tests.support.scenario_player import all_rows

MENDABLE = [
    name
    for name, (statement, _) in CORRUPTIONS.items()
    if "accounting.reports" not in statement and "realm_rules" not in statement
]


def test_every_corruption_of_what_follows_from_the_reports_is_mended(right_books: Books) -> None:
    undisturbed = all_rows(right_books)
    for name in MENDABLE:
        statement, expected = CORRUPTIONS[name]
        corrupt(right_books, statement)
        assert expected in {difference_key(one) for one in rebuild(right_books.engine, "a test")}
        assert list(verify(right_books.engine)) == [], name
        assert all_rows(right_books) == undisturbed, name
    kept = right_books.query("SELECT reason, rows_replaced FROM accounting.rebuilds")
    assert len(kept) >= len(MENDABLE)


def test_a_dry_run_names_the_differences_and_mends_none(right_books: Books) -> None:
    corrupt(right_books, CORRUPTIONS[MENDABLE[0]][0])
    found = list(rebuild(right_books.engine, "a test", dry_run=True))
    assert found
    assert list(verify(right_books.engine)) == found
    assert right_books.query("SELECT FROM accounting.rebuilds") == []


def test_a_rebuild_of_right_books_changes_nothing(right_books: Books) -> None:
    assert list(rebuild(right_books.engine, "to be sure")) == []
    assert right_books.query("SELECT FROM accounting.rebuilds") == []


def test_closed_periods_are_adjusted_and_their_statements_kept(books: Books) -> None:
    """The reports are the truth: here one is changed after its period was closed."""
    close_and_adjust_november(books)
    statements = books.rows("statements", order="user_key")
    before = len(books.rows("adjustments"))
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.reports SET sent_bytes = 502 WHERE sent_bytes = 501")
    assert list(rebuild(books.engine, "the report was wrong"))
    assert books.rows("statements", order="user_key") == statements
    adjustments = books.rows("adjustments", order="posted_at")
    assert len(adjustments) == before + 1
    assert (adjustments[-1]["period"], adjustments[-1]["sent_bytes"]) == (date(2026, 11, 1), 1)
    # The statement's own reports are others now: that is never mended, only named.
    assert {one.what for one in verify(books.engine)} == {"statements"}


def test_a_rebuild_needs_a_reason(books: Books) -> None:
    with pytest.raises(UsageError):
        list(rebuild(books.engine, " "))
    url = books.url(WRITER)
    assert turn_accounting("rebuild", database_url=url).code == 2
    fill_books(books)
    corrupt(books, CORRUPTIONS["a changed byte count of a session"][0])
    ran = turn_accounting("rebuild", "--reason", "x", "--dry-run", "--json", database_url=url)
    assert (ran.code, [row["column"] for row in ran.rows]) == (0, ["received_bytes"] * 2)
    assert turn_accounting("rebuild", "--reason", "x", database_url=url).code == 0
    assert turn_accounting("verify", database_url=url).code == 0
