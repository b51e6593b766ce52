"""Rebuild replaces wrong rows from the reports, and adjusts closed periods."""

from collections.abc import Sequence
from datetime import date

import psycopg
import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.errors import UsageError
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.corruptions import BESIDE_USAGE, CORRUPTIONS, corrupt, difference_key, fill_books
from tests.support.scenario_player import all_rows

REBUILDABLE = [
    name
    for name, (statement, _) in CORRUPTIONS.items()
    if "accounting.reports" not in statement and "realm_rules" not in statement
]


@pytest.mark.parametrize(
    "names",
    [REBUILDABLE[::3], pytest.param(REBUILDABLE, marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_rebuild_repairs_every_corruption_of_a_derived_table(
    right_books: Books, names: Sequence[str]
) -> None:
    before = all_rows(right_books)
    for name in names:
        statement, expected = CORRUPTIONS[name]
        corrupt(right_books, statement)
        assert expected in {
            difference_key(difference) for difference in rebuild(right_books.engine, "a test")
        }
        assert all_rows(right_books) == before, name
    assert list(verify(right_books.engine)) == []
    rebuilds = right_books.query("SELECT reason, rows_replaced FROM accounting.rebuilds")
    assert len(rebuilds) >= len(names)


def test_rebuild_repairs_what_is_kept_besides_usage(right_books: Books) -> None:
    """Rates, peaks to come, names, and ends in the feed; then verify finds nothing."""
    load = "SELECT * FROM accounting.server_load ORDER BY server, realm_id"
    names = "SELECT * FROM accounting.users NATURAL JOIN accounting.usernames ORDER BY username_key"
    before = [right_books.query(query) for query in (load, names)]
    for corruptions in BESIDE_USAGE:
        for statement, _ in corruptions.values():
            corrupt(right_books, statement)
        assert list(rebuild(right_books.engine, "a test"))
        assert [right_books.query(query) for query in (load, names)] == before
    assert list(verify(right_books.engine)) == []


def test_a_dry_run_yields_the_differences_and_repairs_none(right_books: Books) -> None:
    corrupt(right_books, CORRUPTIONS[REBUILDABLE[0]][0])
    differences = list(rebuild(right_books.engine, "a test", dry_run=True))
    assert differences
    assert list(verify(right_books.engine)) == differences
    assert right_books.query("SELECT FROM accounting.rebuilds") == []


def test_rebuilding_right_books_changes_nothing(right_books: Books) -> None:
    assert list(rebuild(right_books.engine, "to be sure")) == []
    assert right_books.query("SELECT FROM accounting.rebuilds") == []


def test_rebuild_adjusts_closed_periods_and_keeps_their_statements(adjusted_books: Books) -> None:
    """A report is changed here after its period was closed."""
    statements = adjusted_books.rows("statements", order="user_key")
    before = len(adjusted_books.rows("adjustments"))
    with psycopg.connect(adjusted_books.url()) as connection:
        connection.execute("UPDATE accounting.reports SET sent_bytes = 502 WHERE sent_bytes = 501")
    assert list(rebuild(adjusted_books.engine, "the report was wrong"))
    assert adjusted_books.rows("statements", order="user_key") == statements
    adjustments = adjusted_books.rows("adjustments", order="posted_at")
    assert len(adjustments) == before + 1
    assert (adjustments[-1]["period"], adjustments[-1]["sent_bytes"]) == (date(2026, 11, 1), 1)
    # The statement does not match its own reports any more; a rebuild never repairs that.
    assert {difference.what for difference in verify(adjusted_books.engine)} == {"statements"}


def test_rebuild_needs_a_reason(books: Books) -> None:
    with pytest.raises(UsageError):
        list(rebuild(books.engine, " "))
    url = books.url(WRITER)
    assert turn_accounting("rebuild", database_url=url).code == 2
    fill_books(books)
    corrupt(books, CORRUPTIONS["a changed byte count of a session"][0])
    result = turn_accounting("rebuild", "--reason", "x", "--dry-run", "--json", database_url=url)
    assert (result.code, [row["column"] for row in result.rows]) == (0, ["received_bytes"] * 2)
    assert turn_accounting("rebuild", "--reason", "x", database_url=url).code == 0
    assert turn_accounting("verify", database_url=url).code == 0
