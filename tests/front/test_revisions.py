"""A front reads cells at another revision while they are upgraded, and says what it can't read."""

import psycopg
import pytest

from accounting.domain.realm_rules import RealmRule
from accounting.errors import AccountingError, UsageError
from accounting.front.cell_views import upgrade
from accounting.front.join import join_cell
from accounting.front.shared.rules import set_rules
from accounting.front.shared.share import share
from accounting.front.status import cell_problems
from tests.support.books import Books
from tests.support.fronts import HOUR, Front, call

VIEW = "capture_gaps"


def fill(front: Front) -> None:
    """Each cell has a session and a gap."""
    for cell in front.cells:
        call(front, cell, "alice", HOUR, 1)
        for books in (front.cells[cell], front.whole):
            spool = books.spool(cell)
            gap = spool.open_gap(books.micros_at(3 * HOUR), "disconnected")
            spool.close_gap(gap, books.micros_at(4 * HOUR))
    front.advance_clocks(5 * HOUR)
    front.run_jobs()


def execute(books: Books, *statements: str) -> None:
    with psycopg.connect(books.url()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def set_revision(books: Books, revision: str) -> None:
    books.query("UPDATE accounting.alembic_version SET version_num = %s RETURNING 1", [revision])


def definition(books: Books, view: str) -> str:
    [row] = books.query(f"SELECT pg_get_viewdef('reporting.{view}'::regclass) AS text")
    return str(row["text"])


def test_a_column_that_a_cell_lacks_is_null_until_its_upgrade(front: Front) -> None:
    south = front.cells["south"]
    whole = definition(south, VIEW)
    comment_query = f"SELECT obj_description('reporting.{VIEW}'::regclass) AS text"
    comment = front.books.query(comment_query)
    grant = f"GRANT SELECT ON reporting.{VIEW} TO turn_accounting_reader"
    execute(
        south,
        f"DROP VIEW reporting.{VIEW}",
        f"CREATE VIEW reporting.{VIEW} AS"  # noqa: S608
        f" SELECT gap_id, source, from_at, to_at FROM ({whole.rstrip(';')}) v",
        grant,
    )
    set_revision(south, "0000")
    with pytest.raises(AccountingError, match=r"cell 'south': is at revision 0000.*upgrade it"):
        share(front.books.engine)
    with pytest.raises(AccountingError, match="cell 'south': is at revision 0000"):
        set_rules(front.books.engine, "example.org", {"anchor_day": 2}, default=RealmRule())
    assert "cell 'south': is at revision 0000" in cell_problems(front.books.engine)[0]
    columns = ("source", "cause", "from_at::text")
    rows = front.rows(VIEW, *columns)
    assert [(row["source"], row["cause"]) for row in rows] == [
        ("north", "disconnected"), ("south", None)
    ]  # fmt: skip
    execute(south, f"DROP VIEW reporting.{VIEW}", f"CREATE VIEW reporting.{VIEW} AS {whole}", grant)
    set_revision(south, "0001")
    assert share(front.books.engine) == 1
    assert front.rows(VIEW, *columns) == front.whole.rows(VIEW, *columns)
    assert front.books.query(comment_query) == comment
    assert comment[0]["text"]
    assert cell_problems(front.books.engine) == []


def test_a_sum_of_a_column_that_a_cell_lacks_is_null_and_never_smaller(front: Front) -> None:
    """Only where that cell has rows of the sum."""
    call(front, "north", "bob", 6 * HOUR, 2)
    front.advance_clocks(10 * HOUR)
    front.run_jobs()
    columns = ("user_id", "estimated_bytes", "received_bytes")
    whole = front.whole.rows("user_usage_daily", *columns)
    assert [row["user_id"] for row in whole] == ["alice", "bob"]
    assert front.rows("user_usage_daily", *columns) == whole
    south = front.cells["south"]
    rename = "ALTER VIEW reporting.user_usage_daily RENAME COLUMN {} TO {}"
    execute(south, rename.format("estimated_bytes", "not_yet"))
    set_revision(south, "0000")
    with pytest.raises(AccountingError, match="cell 'south': is at revision 0000"):
        share(front.books.engine)
    alice, bob = whole
    assert front.rows("user_usage_daily", *columns) == [{**alice, "estimated_bytes": None}, bob]
    execute(south, rename.format("not_yet", "estimated_bytes"))
    set_revision(south, "0001")
    share(front.books.engine)
    assert front.rows("user_usage_daily", *columns) == whole


def test_a_view_that_a_cell_lacks_is_an_error_that_names_it(front: Front) -> None:
    south = front.cells["south"]
    execute(south, f"ALTER VIEW reporting.{VIEW} RENAME TO not_yet")
    set_revision(south, "0000")
    with pytest.raises(AccountingError, match="cell 'south': is at revision 0000"):
        share(front.books.engine)
    with pytest.raises(psycopg.errors.RaiseException, match=f"cell 'south' has no view \"{VIEW}\""):
        front.rows(VIEW)
    assert len(front.rows("sessions")) == 2  # what it has can be read
    with psycopg.connect(front.books.url()) as connection:
        connection.execute("SET turn_accounting.without_cells = 'south'")
        query = f"SELECT source FROM reporting.{VIEW}"  # noqa: S608
        assert connection.execute(query.encode()).fetchall() == [("north",)]


def test_a_cell_that_is_newer_is_read_as_before_and_can_t_join(front: Front) -> None:
    south = front.cells["south"]
    set_revision(south, "9999")
    with pytest.raises(AccountingError, match=r"cell 'south': .*upgrade the front first"):
        share(front.books.engine)
    assert len(front.rows("sessions")) == 2
    with pytest.raises(UsageError, match="bring the front to its version first"):
        join_cell(front.engine, "south", south.url(), None)


def test_an_upgrade_of_the_front_defines_its_views_over_the_cells(front: Front) -> None:
    """A migration defines views over the database's own tables, which are empty in a front."""
    local = definition(front.whole, "sources")
    [function] = front.whole.query(
        "SELECT pg_get_functiondef(oid) AS text FROM pg_proc WHERE proname = 'usage_page'"
    )
    execute(front.books, f"CREATE OR REPLACE VIEW reporting.sources AS {local}", function["text"])
    assert front.rows("sources") == []
    assert upgrade(front.engine) == "0001"
    assert [row["source"] for row in front.rows("sources")] == ["north", "south"]
    page = "usage_page('hour', 'example.org', '2026-11-02T13:00Z', NULL, NULL, 9)"
    assert front.rows(page) == front.whole.rows(page) != []


def test_a_cell_that_joins_again_leaves_comments_and_rights_as_they_were(front: Front) -> None:
    query = """
        SELECT c.relname, obj_description(c.oid) AS comment, c.relacl::text AS rights
        FROM pg_class c WHERE c.relnamespace = 'reporting'::regnamespace ORDER BY 1
    """
    join_cell(front.engine, "south", front.cells["south"].url(), None)
    assert front.books.query(query) == front.whole.query(query)
    assert len(front.rows("sessions")) == 2
    assert front.books.query("SELECT srvname FROM pg_foreign_server ORDER BY 1") == [
        {"srvname": "cell_north"}, {"srvname": "cell_south"}
    ]  # fmt: skip
