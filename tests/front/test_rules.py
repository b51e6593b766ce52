"""The rules of a realm are those of the installation: the same in the front and in all cells."""

from pathlib import Path
from typing import Any

import pytest

from accounting.billing.close_period import close_periods
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.identity import RadacctUsername, UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.errors import AccountingError, UsageError
from accounting.front.join import join_cell
from accounting.front.shared.rules import remove_realm, set_rules
from accounting.front.shared.share import share
from accounting.front.status import cell_problems
from accounting.identities.realm_rules import list_rules, set_rule
from tests.support.books import WRITER, Books
from tests.support.cells_away import away, lost_at_commit
from tests.support.command import turn_accounting
from tests.support.fronts import HOUR, Front, call, change_identity_key, database_time, open_front
from tests.support.servers import PostgresServer

DAY = 24 * HOUR
MONTH = 31 * DAY


def fill(front: Front) -> None:
    """Two cells; alice roams on the 2nd of November."""
    for number, cell in enumerate(front.cells):
        call(front, cell, "alice", HOUR * number, number + 1)
    front.advance_clocks(4 * HOUR)
    front.run_jobs()


def rules(books: Books) -> list[dict[str, Any]]:
    return list(list_rules(books.engine))


def assert_same_rules(front: Front) -> None:
    for books in front.cells.values():
        assert rules(books) == rules(front.books)


def set_on_front(front: Front, realm: str = "example.org", **changes: Any) -> None:
    set_rules(front.books.engine, realm, changes, default=RealmRule())


def test_a_realm_that_one_cell_saw_first_is_in_all_with_its_rules(front: Front) -> None:
    set_rule(
        front.cells["south"].engine, "by hand", {"anchor_day": 9},
        default=RealmRule(), holds_from=None,
    )  # fmt: skip
    call(front, "north", "bob", 6 * HOUR, 7, realm="example.net")
    front.advance_clocks(8 * HOUR)
    front.run_jobs()
    assert [rule["realm"] for rule in rules(front.books)] == [
        "by hand", "example.net", "example.org"
    ]  # fmt: skip
    assert rules(front.books)[0]["anchor_day"] == 9
    assert_same_rules(front)
    assert cell_problems(front.books.engine) == []
    assert share(front.books.engine) == 0


def test_a_change_holds_everywhere_from_the_same_midnight(front: Front) -> None:
    # The whole has what the cells have; with its clock at 22:30 there is an hour until midnight.
    front.advance_clocks(10.5 * HOUR)
    front.run_jobs()
    set_on_front(front, username_rule=UsernameRule.PLAIN, anchor_day=5)
    [_, changed] = rules(front.books)
    assert str(changed["holds_from"]) == "2026-11-03 00:00:00+00:00"
    assert_same_rules(front)
    set_rule(
        front.whole.engine, "example.org",
        {"username_rule": UsernameRule.PLAIN, "anchor_day": 5},
        default=RealmRule(), holds_from=None,
    )  # fmt: skip
    call(front, "south", "1700000000:carol", DAY, 5)
    front.advance_clocks(MONTH)
    front.run_jobs()
    front.close_periods()
    line = ("realm", "period", "user_id", "user_key", "received_bytes", "session_seconds")
    lines = front.rows("statements", *line, order="period, user_key")
    assert len(lines) == 2
    assert lines == front.whole.rows("statements", *line, order="period, user_key")


def test_a_change_leaves_a_lost_cell_an_hour(front: Front) -> None:
    front.advance_clocks(11.5 * HOUR)
    front.run_jobs()
    set_on_front(front, anchor_day=5)
    assert str(rules(front.books)[-1]["holds_from"]) == "2026-11-04 00:00:00+00:00"


def test_with_a_cell_away_nothing_is_set_anywhere(front: Front) -> None:
    before = rules(front.books)
    with away(front.cells["south"]):
        with pytest.raises(AccountingError, match="cell 'south'"):
            set_on_front(front, anchor_day=5)
        with pytest.raises(AccountingError, match="cell 'south'"):
            remove_realm(front.books.engine, "example.org")
        assert "cell 'south'" in cell_problems(front.books.engine)[0]
        with pytest.raises(AccountingError, match="cell 'south'"):
            share(front.books.engine)
    assert rules(front.books) == before
    assert_same_rules(front)


@pytest.mark.parametrize("lost", ["north", "south"])
def test_a_cell_that_is_lost_midway_gets_the_rules_from_the_job(front: Front, lost: str) -> None:
    with (
        lost_at_commit(front.cells[lost], "realm_rules"),
        pytest.raises(AccountingError, match=rf"cell '{lost}'.*the job `share`"),
    ):
        set_on_front(front, time_zone="Europe/Berlin")
    problem = f"cell '{lost}': it has other rules of realm 'example.org'"
    assert [text[: len(problem)] for text in cell_problems(front.books.engine)] == [problem]
    assert share(front.books.engine) == 1
    assert_same_rules(front)
    assert cell_problems(front.books.engine) == []


def test_no_period_closes_by_different_rules(front: Front) -> None:
    """Not even where the cells have closed it: here one cell has another grace, set by hand."""
    set_rule(
        front.cells["south"].engine, "example.org", {"grace_seconds": 5},
        default=RealmRule(), holds_from=None,
    )  # fmt: skip
    front.advance_clocks(MONTH)
    for books in (*front.cells.values(), front.whole):
        books.run_jobs()
    front.follow_clock()
    with pytest.raises(UsageError, match=r"cell 'south': usage of realm 'example.org' is acc"):
        share(front.books.engine)
    for books in front.cells.values():
        close_periods(books.engine)
    assert front.bill() == 0
    [november] = front.rows("periods WHERE period = '2026-11-01'", "state", "waits_for")
    assert november == {"state": "closing", "waits_for": "cell 'south': it has other rules"}
    assert "it has other rules of realm 'example.org'" in cell_problems(front.books.engine)[0]


def test_an_operator_closes_a_period_of_which_the_rules_differed(front: Front) -> None:
    """What the cell has closed is in the statement, by its own rules."""
    set_rule(
        front.cells["south"].engine, "example.org", {"time_zone": "Asia/Tokyo"},
        default=RealmRule(), holds_from=None,
    )  # fmt: skip
    call(front, "south", "bob", HOUR, 2)
    front.advance_clocks(MONTH)
    for books in (*front.cells.values(), front.whole):
        books.run_jobs()
        close_periods(books.engine)
    front.follow_clock()
    front.bill()
    command = ("period", "close", "example.org", "2026-11-01")
    url = front.books.url(WRITER)
    refused = turn_accounting(*command, database_url=url)
    assert refused.code == 3
    assert "it has other rules; --without CELL does not wait for a cell" in refused.err
    unknown = turn_accounting(*command, "--without", "east", database_url=url)
    assert "no cell 'east' is known" in unknown.err
    for dry_run in (("--dry-run",), ()):
        closed = turn_accounting(*command, "--without", "south", *dry_run, database_url=url)
        assert closed.code == 0, closed.err
    again = turn_accounting(*command, database_url=url)
    assert "is closed already" in again.err
    assert front.bill() == 0
    columns = ("user_id", "received_bytes", "sessions_started")
    assert front.rows("statements", *columns) == front.whole.rows("statements", *columns)
    assert front.rows("adjustments") == []


def test_in_a_cell_the_rules_can_t_be_set(front: Front) -> None:
    url = front.cells["north"].url(WRITER)
    for command in (("set", "example.org", "--anchor-day", "3"), ("remove", "example.org")):
        refused = turn_accounting("realm", *command, database_url=url)
        assert refused.code == 2
        assert "the cell 'north' of a front: set the rules of realms on the front" in refused.err
    on_front = turn_accounting(
        "realm", "set", "example.org", "--client-addresses", "drop",
        database_url=front.books.url(WRITER),
    )  # fmt: skip
    assert on_front.code == 0, on_front.err
    assert {rule["client_addresses"] for rule in rules(front.cells["north"])} == {"drop"}


def test_addresses_and_names_in_radacct_are_set_in_all_cells(front: Front) -> None:
    set_rules(
        front.books.engine, "example.org", {}, default=RealmRule(),
        client_addresses=ClientAddresses.NETWORK, radacct_username=RadacctUsername.USER,
    )  # fmt: skip
    assert_same_rules(front)
    assert {row["username"] for row in front.rows("radacct")} == {"alice"}
    call(front, "north", "bob", 5 * HOUR, 9, realm="example.net")
    front.run_jobs()
    engine = front.books.engine
    for realm, form in (
        ("example.org", RadacctUsername.USER_AT_REALM),
        ("example.net", RadacctUsername.USER),
    ):
        set_rules(engine, realm, {}, default=RealmRule(), radacct_username=form)
    assert_same_rules(front)
    assert {row["username"] for row in front.rows("radacct")} == {"alice@example.org", "bob"}


def test_a_realm_without_usage_is_removed_everywhere(front: Front) -> None:
    set_on_front(front, "mistyped", anchor_day=3)
    assert_same_rules(front)
    remove_realm(front.books.engine, "mistyped")
    assert share(front.books.engine) == 0
    assert {rule["realm"] for rule in rules(front.books)} == {"example.org"}
    assert_same_rules(front)
    with pytest.raises(UsageError, match="has sessions or usage, and stays"):
        remove_realm(front.books.engine, "example.org")


def test_a_cell_joins_with_realms_in_both_directions(
    front: Front, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    set_on_front(front, grace_seconds=7)
    with open_front(postgres_server, tmp_path / "other", ("west",)) as other:
        west = other.whole  # books of their own, which never joined
        change_identity_key(west)
        west.set_database_clock(database_time(front.books))
        for realm, changes in (("example.org", {"anchor_day": 4}), ("of west", {"anchor_day": 2})):
            set_rule(
                west.engine, realm, changes, default=RealmRule(), holds_from=None,
                client_addresses=ClientAddresses.DROP,
            )  # fmt: skip
        join_cell(front.engine, "west", west.url(), None)
        kept = {rule["realm"]: rule["client_addresses"] for rule in rules(front.books)}
        assert kept == {"example.org": "drop", "of west": "drop"}
        assert rules(west) == rules(front.books)
        share(front.books.engine)
        assert_same_rules(front)


def test_a_cell_whose_usage_is_accounted_by_other_rules_can_t_join(
    front: Front, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with open_front(postgres_server, tmp_path / "other", ("west",)) as other:
        books = other.books  # of the front, so that nothing below touches a cell that joined
        west = other.cells["west"]
        set_rules(books.engine, "example.org", {"anchor_day": 4}, default=RealmRule())
        call(other, "west", "alice", HOUR, 3)
        other.advance_clocks(4 * HOUR)
        other.run_jobs()
        west.query("DELETE FROM accounting.membership RETURNING 1")
        key = front.books.query("SELECT identity_key FROM accounting.installation")
        west.query("UPDATE accounting.installation SET identity_key = %s,"
            " database_id = gen_random_uuid() RETURNING 1",
            [key[0]["identity_key"]])  # fmt: skip
        before = rules(west)
        with pytest.raises(UsageError, match=r"cell 'west': usage of realm 'example.org' is acc"):
            join_cell(front.engine, "west", west.url(), None)
        assert rules(west) == before
        assert west.query("SELECT FROM accounting.membership") == []
        assert cell_problems(front.books.engine) == []
