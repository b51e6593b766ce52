"""A cell away: what reads it fails with its name, or leaves it out and says so."""

import csv
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import text

from accounting.db.engine import Engine, lost_connections
from accounting.domain.realm_rules import RealmRule
from accounting.errors import CellAway, ConnectionLost, UsageError
from accounting.front import cell_engine, join
from accounting.front.billing.check_billing import check_billing
from accounting.front.billing.copy_billing import copy_billing
from accounting.front.cells import open_cell, read_cells, reading_cells, refuse_front
from accounting.front.feed.forward_feed import forward_feed
from accounting.front.limits.check_limits import check_front_limits
from accounting.front.limits.evaluate_limits import USAGE_OF_CELLS, evaluate_limits
from accounting.front.peaks.count_peaks import count_peaks
from accounting.front.shared.erasure import erase
from accounting.front.shared.rules import set_rules
from accounting.front.shared.share import share
from accounting.front.status import cell_states
from accounting.front.verify import verify_installation
from accounting.ops.registry import FRONT_JOBS
from accounting.ops.scheduler import run_job
from accounting.reporting import cell_watch, cells, view_queries
from accounting.reporting.reader import DatabaseReader
from accounting.usage.limits.limit_rules import set_limit
from accounting.web.app import create_app
from tests.support.api_site import Site, running
from tests.support.books import READER
from tests.support.cell_link import CellLink, cell_link
from tests.support.command import CommandResult, turn_accounting
from tests.support.fronts import HOUR, Front, call, open_front
from tests.support.pgbouncer import run_pgbouncer
from tests.support.servers import PostgresServer
from tests.support.service import all_paused

pytestmark = pytest.mark.usefixtures("_restored")

READS = """
    SELECT user_id, received_bytes FROM reporting.user_usage_monthly ORDER BY 1;
    SELECT * FROM reporting.users_of_month('example.org', '2026-11-01Z');
    SELECT * FROM reporting.unattributed_hours('example.org', '2026-11-01Z', '2026-12-01Z');
    SELECT * FROM reporting.top_unattributed_names('example.org', '2026-11-01Z', 5);
    SELECT * FROM reporting.unattributed_names('example.org', '{2026-11-01Z, 2026-12-01Z}');
    SELECT * FROM reporting.top_users('month', '{example.org}', '{2026-11-01Z}', 5) ORDER BY 1;
    SELECT page_user_key FROM reporting.session_page(
        'example.org', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 9) ORDER BY 1
"""
INCOMPLETE = "incomplete: without cell 'north', which does not answer"


@pytest.fixture(scope="module")
def front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Two cells with a session each, and a closed period."""
    with open_front(postgres_server, tmp_path_factory.mktemp("away"), ("north", "south")) as front:
        for number, cell in enumerate(front.cells):
            call(front, cell, f"{cell} only", HOUR, 1 + number)
        front.advance_clocks(HOUR * 24 * 31)
        front.run_jobs()
        front.close_periods()
        yield front


@pytest.fixture(scope="module")
def link(front: Front) -> Iterator[CellLink]:
    with cell_link(front, "north") as link:
        yield link


@pytest.fixture
def _restored(link: CellLink, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cells, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(cell_watch, "WATCH_SECONDS", 0.2)
    yield
    link.restore()


@pytest.fixture
def reader(front: Front) -> Iterator[DatabaseReader]:
    reader = DatabaseReader(front.books.url(READER), leaves_out_cells=True)
    yield reader
    reader.close()


@pytest.fixture
def site(front: Front, reader: DatabaseReader) -> Iterator[Site]:
    with running(create_app(reader, hosts=["127.0.0.1"])) as port:
        yield Site(port, front.books)


def run(front: Front, *arguments: str, **settings: str) -> CommandResult:
    return turn_accounting(*arguments, database_url=front.books.url(READER), **settings)


def test_a_setting_from_outside_leaves_no_cell_out(front: Front) -> None:
    setting = "turn_accounting.without_cells"
    commands = ("usage --since 2026-11 --json", "export usage --since 2026-11", "source list")
    url = front.books.url(READER)
    whole = [run(front, *command.split()) for command in commands]
    assert [result.code for result in whole] == [0, 0, 0]
    assert {row["user_id"] for row in whole[0].rows} == {"north only", "south only"}
    with psycopg.connect(front.books.server.url(), autocommit=True) as connection:
        alter = f"ALTER DATABASE {front.books.name}"
        connection.execute(f"{alter} SET {setting} = 'north'".encode())
        try:
            with psycopg.connect(url) as session:
                rows = session.execute("SELECT source FROM reporting.sources").fetchall()
            assert rows == [("south",)]
            assert [run(front, *command.split()) for command in commands] == whole
        finally:
            connection.execute(f"{alter} RESET {setting}".encode())
    url += ("&" if "?" in url else "?") + f"options=-c%20{setting}%3Dnorth"
    assert [turn_accounting(*command.split(), database_url=url) for command in commands] == whole


# An error that names the cell.


@pytest.mark.parametrize(
    "command",
    [
        "usage --json",
        "sessions",
        "top --once",
        "source list",
        "gaps",
        "period list example.org",
        "statement example.org 2026-12-01 --preview",
        "export usage --since 2026-11",
        "rates",
    ],
)
def test_a_read_of_a_cell_that_is_down_names_it(front: Front, link: CellLink, command: str) -> None:
    link.cut()
    result = run(front, *command.split())
    assert result.code == 1
    assert result.error_line.startswith("cell 'north' does not answer: connection to server ")


def test_a_cell_whose_password_a_dump_lacks_is_named(front: Front) -> None:
    mapping = (
        "ALTER USER MAPPING FOR turn_accounting_owner SERVER cell_north"
        " OPTIONS (SET password_required '{}')"
    )
    with psycopg.connect(front.books.url(), autocommit=True) as superuser:
        superuser.execute(mapping.format("true").encode())
        try:
            result = run(front, "usage", "--json")
        finally:
            superuser.execute(mapping.format("false").encode())
    assert result.code == 1
    assert result.error_line.startswith("cell 'north' does not answer: the front has no password")
    assert result.error_line.endswith("let it join again")


def test_sql_has_the_name_of_the_server_and_the_state(front: Front, link: CellLink) -> None:
    link.cut()
    with (
        psycopg.connect(front.books.url(READER)) as connection,
        pytest.raises(
            psycopg.errors.SqlclientUnableToEstablishSqlconnection,
            match='could not connect to server "cell_north"',
        ),
    ):
        connection.execute("SELECT * FROM reporting.sources")


def test_what_the_front_has_itself_is_read_while_a_cell_is_away(
    front: Front, link: CellLink
) -> None:
    link.cut()
    assert run(front, "limit", "list").code == 0
    assert run(front, "feed", "--json").code == 0
    lines = run(front, "export", "statements", "--period", "2026-11-01", "--format", "jsonl")
    assert [row["user_id"] for row in lines.rows] == ["north only", "south only"]


@pytest.mark.parametrize("fault", ["cut", "hold"])
def test_a_connection_that_fails_in_the_middle_names_the_cell(
    link: CellLink, reader: DatabaseReader, fault: str
) -> None:
    def read(connection: psycopg.Connection) -> None:
        connection.execute("SELECT * FROM reporting.sources")
        getattr(link, fault)()
        connection.execute("SELECT * FROM reporting.sources")

    with (
        pytest.raises(CellAway, match="cell 'north' does not answer") as raised,
        reader.transaction() as connection,
    ):
        read(connection)
    assert raised.value.cell == "north"


def test_a_cell_that_hangs_from_the_start_is_named(link: CellLink, reader: DatabaseReader) -> None:
    link.hold()
    with pytest.raises(CellAway, match=r"cell 'north' does not answer: nothing came within 0\.5 s"):
        reader.read_rows(view_queries.sources())


def test_a_database_that_is_not_the_cell_is_not_read_as_it(
    front: Front, reader: DatabaseReader
) -> None:
    swap = "UPDATE accounting.membership SET cell = %s"
    with psycopg.connect(front.cells["north"].url()) as connection:
        connection.execute(swap, ["another"])
    try:
        [status] = [s for s in cells.ask_cells(lambda: psycopg.connect(front.books.url(READER)))
                    if s.away]  # fmt: skip
        assert (status.cell, status.away) == (
            "north", "its database is now the cell 'another' of a front: see its URL"
        )  # fmt: skip
        assert reader.leaving_out().without_cells == ("north",)
        with pytest.raises(CellAway, match="its database is now the cell 'another'"):
            copy_billing(front.books.engine)
    finally:
        with psycopg.connect(front.cells["north"].url()) as connection:
            connection.execute(swap, ["north"])


def test_an_empty_database_in_the_place_of_a_cell_closes_no_period(front: Front) -> None:
    """It has no closings to wait for, so the front would bill the period without the cell."""
    forget = "DELETE FROM accounting.membership RETURNING front, cell"
    with psycopg.connect(front.cells["north"].url()) as connection:
        row = connection.execute(forget).fetchone()
        connection.commit()
        try:
            with pytest.raises(CellAway, match="its database belongs to no front any more"):
                copy_billing(front.books.engine)
        finally:
            connection.execute("INSERT INTO accounting.membership VALUES (true, %s, %s)", row)
    copy_billing(front.books.engine)


def test_a_database_that_left_is_not_read_for_the_one_that_took_its_name(front: Front) -> None:
    """It left while it was down, so that it has the name and the key, and is back at the URL."""
    change = "UPDATE accounting.installation SET database_id = {} RETURNING database_id"
    with psycopg.connect(front.cells["north"].url(), autocommit=True) as connection:
        own = connection.execute("SELECT database_id FROM accounting.installation").fetchone()
        connection.execute(change.format("gen_random_uuid()").encode())
        try:
            with pytest.raises(CellAway, match="its database is another than the one that joined"):
                run_job(FRONT_JOBS["bill"], front.books.engine)
        finally:
            connection.execute(change.format("%s").encode(), own)
    [run] = front.books.query("SELECT last_error FROM accounting.job_runs WHERE job = 'bill'")
    assert run == {"last_error": "CellAway"}
    run_job(FRONT_JOBS["bill"], front.books.engine)


def test_a_cell_that_is_being_restored_is_away(front: Front) -> None:
    """Found by `make chaos`: its tables are missing for a while, which the jobs logged as a bug."""
    rename = "ALTER SCHEMA {} RENAME TO {}"
    with psycopg.connect(front.cells["north"].url(), autocommit=True) as connection:
        connection.execute(rename.format("reporting", "hidden"))
        try:
            with (
                pytest.raises(CellAway, match=r"sources.* the database is being restored"),
                lost_connections(),
                psycopg.connect(front.books.url(READER)) as front_connection,
            ):
                front_connection.execute("SELECT * FROM reporting.sources")
        finally:
            connection.execute(rename.format("hidden", "reporting"))


@pytest.mark.parametrize("job", ["bill", "peaks", "share"])
def test_jobs_wait_for_a_cell_that_is_being_restored(front: Front, job: str) -> None:
    """`forward` does not fail: it goes on with the other cells."""
    schemas = ("accounting", "reporting", "cell")
    rename = "ALTER SCHEMA {0}{1} RENAME TO {2}{1}"
    with psycopg.connect(front.cells["north"].url(), autocommit=True) as connection:
        for schema in schemas:
            connection.execute(rename.format("", schema, "hidden_"))
        try:
            with pytest.raises(ConnectionLost, match="the database is being restored"):
                FRONT_JOBS[job].run(front.books.engine)
        finally:
            for schema in schemas:
                connection.execute(rename.format("hidden_", schema, ""))


# Left out, and said.


def test_commands_leave_out_a_cell_and_exit_3(front: Front, link: CellLink) -> None:
    link.cut()
    leave_out = {"cells_away": "leave_out"}
    sessions = run(front, "sessions", "--json", **leave_out)
    assert (sessions.code, sessions.err) == (3, f"turn-accounting: {INCOMPLETE}\n")
    assert [row["user_id"] for row in sessions.rows] == ["south only"]
    assert run(front, "source", "list", **leave_out).err.count(INCOMPLETE) == 1
    top = run(front, "top", "--once", "--json", **leave_out)
    assert (top.code, top.rows[0]["without_cells"]) == (3, ["north"])
    link.restore()
    whole = run(front, "sessions", "--json", **leave_out)
    assert (whole.code, whole.err, len(whole.rows)) == (0, "", 2)


def test_bills_and_exports_leave_no_cell_out(front: Front, link: CellLink) -> None:
    link.cut()
    for command in (
        "statement example.org 2026-12-01 --preview",
        "export usage --since 2026-11",
    ):
        result = run(front, *command.split(), cells_away="leave_out")
        assert result.code == 1
        assert result.error_line.startswith("cell 'north' does not answer: ")


def test_a_session_that_leaves_a_cell_out_says_what_a_period_waits_for(
    link: CellLink, reader: DatabaseReader
) -> None:
    link.cut()
    rest = reader.leaving_out()
    assert rest.without_cells == ("north",)
    with rest.transaction() as connection:
        rows = connection.execute(
            "SELECT waits_for FROM reporting.periods WHERE state = 'closing'"
        ).fetchall()
    assert all("cell 'north', which does not answer" in str(row) for row in rows)
    assert reader.leaving_out() is rest


def test_pages_have_a_banner(site: Site, link: CellLink) -> None:
    assert "Incomplete" not in site.raw("/").text
    link.cut()
    banner = "Incomplete: without cell &#39;north&#39;, which does not answer."
    answers = {path: site.raw(path) for path in ("/", "/realms", "/sessions", "/gaps", "/periods")}
    first, *others = answers.values()
    assert first.status == 503  # all cells answered a moment ago
    assert "cell &#39;north&#39; does not answer" in first.text
    for answer in others:
        assert answer.status == 200
        assert banner in answer.text
        assert answer.headers["x-without-cells"] == "north"


def test_the_api_has_a_field_and_a_header(site: Site, link: CellLink) -> None:
    link.cut()
    listed = site.get("sessions")
    assert listed.json["without_cells"] == ["north"]
    assert [row["user_id"] for row in listed.json["items"]] == ["south only"]
    lines = site.get("sessions", format="jsonl")
    table = site.get("sessions", format="csv")
    live = site.get("live")
    assert {answer.headers["x-without-cells"] for answer in (listed, lines, table, live)} == {
        "north"
    }
    assert [row["user_id"] for row in csv.DictReader(table.text.splitlines())] == ["south only"]
    assert live.json["without_cells"] == ["north"]
    status, detail = site.problem("statements", realm="example.org", period="2026-12-01",
                                  preview="true")  # fmt: skip
    assert (status, detail) == (503, "cell 'north' does not answer: the server's log says why")
    statements = site.get("statements", realm="example.org", period="2026-11-01")
    assert len(statements.json["items"]) == 2
    assert "without_cells" not in statements.json
    assert "x-without-cells" not in statements.headers


@pytest.mark.needs_pgbouncer
def test_a_session_that_left_a_cell_out_leaves_nothing_to_the_next_one_of_a_pooler(
    front: Front,
) -> None:
    """Neither the setting nor the plans that Postgres keeps, which contain it."""

    def read(url: str) -> list[list[tuple[object, ...]]]:
        reader = DatabaseReader(url)
        with reader.transaction() as connection:
            rows = [connection.execute(each.encode()).fetchall() for each in READS.split(";")]
        reader.close()
        return rows

    whole = read(front.books.url(READER))
    assert len(whole[0]) == 2
    with run_pgbouncer(front.books.server, pool_size=1) as pooler:
        url = pooler.url(READER, front.books.name)
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as other:
            other.execute("SET turn_accounting.without_cells = 'north'")
            for _ in range(7):  # so often that Postgres keeps plans for any parameters
                rows = [other.execute(each.encode()).fetchall() for each in READS.split(";")]
            assert len(rows[0]) == 1
            assert read(url) == whole


# Jobs and commands of the front that wait for a cell that hangs.


def set_a_limit(engine: Engine) -> None:
    set_limit(engine, "example.org", measure="bytes", per="day", amount=7, usage=USAGE_OF_CELLS)


WORK: Final[Mapping[str, Callable[[Engine], object]]] = {
    "bill": copy_billing,
    "limits": evaluate_limits,
    "peaks": count_peaks,
    "share": share,
    "check billing": lambda engine: list(check_billing(engine, None, None)),
    "check limits": lambda engine: list(check_front_limits(engine)),
    "verify": lambda engine: list(verify_installation(engine)),
    "realm set": lambda engine: set_rules(
        engine, "example.org", {"anchor_day": 2}, default=RealmRule()
    ),
    "erase": lambda engine: erase(engine, "example.org", "north only"),
    "limit set": set_a_limit,
    "source of a cell": lambda engine: refuse_front(engine, "north"),
}


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_engine, "CONNECT_SECONDS", 2)


@pytest.mark.usefixtures("short_waits")
def test_a_cell_that_hangs_ends_what_works_on_the_front(front: Front, link: CellLink) -> None:
    """It names the cell, changes nothing and leaves nothing locked."""
    engine = front.books.engine
    copy_billing(engine)  # its session has a connection to the cell
    limits = front.books.query("SELECT * FROM accounting.limits")
    link.hold()

    def error_of(name: str) -> str:
        try:
            WORK[name](engine)
        except ConnectionLost as error:
            return str(error)
        return "no error"

    with ThreadPoolExecutor(len(WORK)) as threads:
        errors = dict(zip(WORK, threads.map(error_of, WORK), strict=True))
    assert {name: text for name, text in errors.items() if "cell 'north'" not in text} == {}
    with psycopg.connect(front.books.url()) as other:
        other.execute("SELECT FROM accounting.locks FOR UPDATE NOWAIT")
    assert front.books.query("SELECT * FROM accounting.limits") == limits
    link.restore()
    assert {name for name in ("limits", "share", "peaks") if error_of(name) != "no error"} == set()


@pytest.mark.usefixtures("short_waits")
def test_a_cell_that_hangs_can_leave_without_its_usage(front: Front, link: CellLink) -> None:
    [north, _] = cell_states(front.engine)
    link.hold()
    with pytest.raises(ConnectionLost, match="cell 'north'"):
        join.join_cell(front.engine, "north", north["url"], None)
    with pytest.raises(UsageError, match=r"cell 'north'.*nobody can tell"):
        join.leave(front.engine, "north")
    reason = join.leave(front.engine, "north", without_its_usage=True)
    assert reason is not None
    assert reason.startswith("cell 'north': ")
    link.restore()
    join.join_cell(front.engine, "north", north["url"], None)


def test_a_statement_in_a_cell_that_stops_to_answer_is_a_lost_connection(
    front: Front, link: CellLink
) -> None:
    with front.engine.connect() as connection:
        [north, _] = read_cells(connection)

    def read() -> None:
        with (
            open_cell(front.engine, north) as cell,
            lost_connections(),
            cell.connect() as connection,
        ):
            connection.execute(text("SELECT 1"))
            link.hold()
            connection.execute(text("SELECT 1"))

    with pytest.raises(ConnectionLost, match="cell 'north': does not answer: nothing came"):
        read()


@pytest.mark.parametrize("fault", ["cut", "hold"])
def test_a_transaction_on_the_front_names_the_cell_that_it_loses(
    front: Front, link: CellLink, fault: str
) -> None:

    def read() -> None:
        with reading_cells(front.books.engine) as connection:
            getattr(link, fault)()
            connection.execute(text("SELECT * FROM cells.sources"))

    with pytest.raises(CellAway, match="cell 'north' does not answer") as raised:
        read()
    assert raised.value.cell == "north"


@pytest.mark.long
def test_a_server_that_is_stopped_ends_what_works_on_the_front(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that hangs as a whole, with the times of the service."""
    monkeypatch.undo()
    with PostgresServer() as server, open_front(postgres_server, tmp_path, ("south",)) as front:
        engine = front.books.engine
        join.join_cell(front.engine, "far", server.url(), None)
        copy_billing(engine)
        forward_feed(engine)
        with all_paused(server.pid):
            for name in ("bill", "limits", "share", "verify", "bill"):
                with pytest.raises(ConnectionLost, match="cell 'far'"):
                    WORK[name](engine)
                forward_feed(engine)
                with psycopg.connect(front.books.url()) as other:
                    other.execute("SELECT FROM accounting.locks FOR UPDATE NOWAIT")
            assert join.leave(front.engine, "far", without_its_usage=True) is not None
            copy_billing(engine)
