"""Cells join and leave a front."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL

from accounting.billing.close_period import close_periods
from accounting.db import locks
from accounting.db.engine import open_engine, psycopg_connection
from accounting.errors import AccountingError, ConfigurationError, LockHeld, UsageError
from accounting.front import cell_url, foreign_server, join
from accounting.front.cell_url import checked_cell_url
from accounting.front.shared.share import share
from accounting.front.status import cell_states
from accounting.ops.monitoring.health import evaluate
from accounting.sources.source_queries import add_source
from tests.support.books import READER, WRITER, cloned_database
from tests.support.command import turn_accounting
from tests.support.fronts import HOUR, Front, call, open_front
from tests.support.monitoring import read_snapshot
from tests.support.password_logins import password_login
from tests.support.servers import PostgresServer, wait_until

MONTH: Final = HOUR * 24 * 30


@pytest.fixture
def front(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path, ("north", "south")) as front:
        yield front


@pytest.fixture(scope="module")
def standing(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Tests leave its cells as they were."""
    directory = tmp_path_factory.mktemp("standing")
    with open_front(postgres_server, directory, ("north", "south")) as front:
        yield front


def test_a_front_and_its_cells_have_one_key(front: Front) -> None:
    query = "SELECT identity_key FROM accounting.installation"
    keys = {bytes(books.query(query)[0]["identity_key"]) for books in front.cells.values()}
    assert keys == {bytes(front.books.query(query)[0]["identity_key"])}


def test_an_empty_database_gets_the_schema_when_it_joins(front: Front) -> None:
    server = front.books.server
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE not_upgraded")
    join.join_cell(front.engine, "west", server.url(database="not_upgraded"), None)
    assert [cell["state"] for cell in cell_states(front.engine)] == ["ok", "ok", "ok"]
    assert join.leave(front.engine, "west") is None
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("DROP DATABASE not_upgraded WITH (FORCE)")


@pytest.mark.parametrize("work", ["join", "leave", "share"])
def test_an_open_reader_is_waited_for_a_moment_and_then_named(
    front: Front, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Others who read would queue behind what waits for it."""
    monkeypatch.setattr(locks, "MAX_READER_SECONDS", 0.3)

    def run() -> None:
        if work == "join":
            join.join_cell(front.engine, "south", front.cells["south"].url(), None)
        elif work == "leave":
            join.leave(front.engine, "south")
        else:
            share(front.books.engine)

    front.books.query("UPDATE accounting.cells SET front_revision = '0000' RETURNING 1")
    query = "SELECT FROM reporting.sources"
    with psycopg.connect(front.books.url(READER), application_name="analyst") as reader:
        reader.execute(query)
        with pytest.raises(
            LockHeld, match=r"a view over the cells is held .*application 'analyst'"
        ):
            run()
        with psycopg.connect(front.books.url(READER)) as other:
            other.execute("SET lock_timeout = '1s'")
            other.execute(query)
    run()


def test_a_running_installation_becomes_the_first_cell_of_a_new_front(
    postgres_server: PostgresServer,
) -> None:
    """Its users keep their keys, which the front and the cells that come later get."""
    key = "SELECT identity_key, reporting.feed_source() AS uri FROM accounting.installation"
    with (
        cloned_database(postgres_server) as front,
        cloned_database(postgres_server) as first,
        cloned_database(postgres_server) as second,
    ):
        for name in (first, second):
            with psycopg.connect(postgres_server.url(database=name)) as connection:
                connection.execute(
                    "UPDATE accounting.installation SET identity_key = sha256(%s)", [name.encode()]
                )
        with psycopg.connect(postgres_server.url(database=first)) as connection:
            connection.execute(
                "INSERT INTO accounting.users (user_key, realm_id, user_id)"
                " VALUES (gen_random_uuid(), 1, 'alice')"
            )
            before = connection.execute(key).fetchone()
        engine = open_engine(postgres_server.url(database=front))
        join.make_front(engine)
        for cell in (first, second):
            join.join_cell(engine, cell, postgres_server.url(database=cell), None)
        assert [row["state"] for row in cell_states(engine)] == ["ok", "ok"]
        engine.dispose()
        for name in (front, first, second):
            with psycopg.connect(postgres_server.url(database=name)) as connection:
                assert connection.execute(key).fetchone() == before


def test_a_cell_with_users_of_another_key_can_t_join(
    front: Front, postgres_server: PostgresServer
) -> None:
    with cloned_database(postgres_server) as name:
        with psycopg.connect(postgres_server.url(database=name)) as connection:
            connection.execute(
                "UPDATE accounting.installation SET identity_key = sha256('another')"
            )
            connection.execute(
                "INSERT INTO accounting.users (user_key, realm_id, user_id)"
                " VALUES (gen_random_uuid(), 1, 'alice')"
            )
        with pytest.raises(UsageError, match=r"cell 'west'.*keys of another installation"):
            join.join_cell(front.engine, "west", postgres_server.url(database=name), None)
        assert [cell["cell"] for cell in cell_states(front.engine)] == ["north", "south"]


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("west", "postgresql://user:secret@host/db", "--password-file"),
        ("west", "postgresql://user@host/db?sslpassword=secret", "a key without one"),
        ("west", "postgresql://user:se cret@host/db?nothing=secret", "no URL of a cell"),
        ("west", "postgresql://host/db", "no URL of a cell"),
        ("west", "nonsense", "no URL of a cell"),
        ("West", "postgresql://user@host/db", "'West' is no name for a cell"),
        ("", "postgresql://user@host/db", "'' is no name for a cell"),
        (
            "west",
            "postgresql://user@host/db?service=secret&fallback_application_name=x",
            "can't have fallback_application_name, service",
        ),
    ],
)
def test_wrong_urls_are_refused(standing: Front, name: str, url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        join.join_cell(standing.engine, name, url, None)
    assert "secret" not in str(raised.value)


def test_the_front_s_postgres_knows_the_options_that_a_url_may_have(standing: Front) -> None:
    """One that it does not know ends a joining before the cell is asked for anything."""
    values = {"port": "5432", "hostaddr": "192.0.2.1", "keepalives": "1", "sslmode": "require"}
    with standing.engine.connect() as connection:
        for name in sorted(cell_url._ALLOWED - {"dbname", "user"}):
            url = make_conninfo("postgresql://user@host/db", **{name: values.get(name, "10")})
            with connection.begin() as transaction:
                foreign_server.create_server(connection, "west", checked_cell_url(url), None)
                transaction.rollback()


def test_an_option_that_only_the_front_s_postgres_refuses_is_named(
    standing: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_url, "_ALLOWED", cell_url._ALLOWED | {"client_encoding"})
    url = "postgresql://user@127.0.0.1:1/db?client_encoding=utf8"
    with pytest.raises(UsageError, match="the URL of cell 'west': invalid option \"client_enc"):
        join.join_cell(standing.engine, "west", url, None)


def test_where_the_front_s_part_fails_the_cell_is_as_it_was(
    standing: Front, postgres_server: PostgresServer
) -> None:
    key = "SELECT identity_key FROM accounting.installation"
    with cloned_database(postgres_server) as name:
        url = postgres_server.url(database=name)
        with psycopg.connect(url, autocommit=True) as cell:
            before = cell.execute(key).fetchall()
            with pytest.raises(UsageError, match="cell 'west' asks for no password"):
                join.join_cell(standing.engine, "west", url, "needless")
            assert cell.execute("SELECT FROM accounting.membership").fetchall() == []
            assert cell.execute(key).fetchall() == before
        join.join_cell(standing.engine, "west", url, None)
        join.leave(standing.engine, "west")


def test_a_cell_that_the_front_does_not_know_any_more_joins_under_any_name(
    standing: Front, postgres_server: PostgresServer
) -> None:
    """It left while it was away, or the front was lost between the two commits of joining."""
    [membership] = standing.cells["south"].query("SELECT front, cell FROM accounting.membership")
    with cloned_database(postgres_server) as name:
        url = postgres_server.url(database=name)
        with psycopg.connect(url) as cell:
            cell.execute(
                "INSERT INTO accounting.membership (front, cell) VALUES (%(front)s, 'east')",
                membership,
            )
            cell.execute("UPDATE accounting.installation SET database_id = gen_random_uuid()")
        join.join_cell(standing.engine, "west", url, None)
        assert [cell["state"] for cell in cell_states(standing.engine)] == ["ok", "ok", "ok"]
        join.leave(standing.engine, "west")


def test_a_database_that_sorts_otherwise_can_t_join(standing: Front) -> None:
    """Also where only the locale differs that Postgres itself has."""
    server = standing.books.server
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE sorts_otherwise TEMPLATE template0 LOCALE 'C'"
            " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C'"
        )
        try:
            message = (
                r"by another collation \(C C b C version 1\) than .*\(C C b C.UTF-8 version 1\)"
            )
            with pytest.raises(UsageError, match=message):
                join.join_cell(
                    standing.engine, "west", server.url(database="sorts_otherwise"), None
                )
        finally:
            connection.execute("DROP DATABASE sorts_otherwise WITH (FORCE)")


def test_a_cell_whose_system_was_upgraded_is_named(standing: Front) -> None:
    """The data by which its system sorts are others then."""
    south = standing.cells["south"]
    [before] = south.query(
        "SELECT cell.database_collation() AS collation,"
        " pg_get_functiondef('cell.database_collation'::regproc) AS definition"
    )
    change = (
        "CREATE OR REPLACE FUNCTION cell.database_collation() RETURNS text LANGUAGE sql"
        " AS $$ SELECT 'C.UTF-8 version 9' $$"
    )
    with psycopg.connect(south.url(), autocommit=True) as connection:
        connection.execute(change)
        try:
            states = [cell["state"].partition(",")[0] for cell in cell_states(standing.engine)]
            assert states == ["ok", "sorts texts by C.UTF-8 version 9"]
            [problem] = evaluate(read_snapshot(standing.books), captures=False).problems
            assert problem.startswith(
                "cell 'south': sorts texts by C.UTF-8 version 9, and the front by "
                f"{before['collation']},"
            )
            join.join_cell(standing.engine, "south", south.url(), None)
        finally:
            connection.execute(before["definition"].encode())


def test_an_open_transaction_on_the_front_does_not_stay_in_cells_for_ever(
    standing: Front,
) -> None:
    """It keeps a snapshot in each cell, and dead rows stay there meanwhile."""
    south = standing.cells["south"]
    [server] = standing.books.query("""
        SELECT option_value AS options FROM pg_foreign_server, pg_options_to_table(srvoptions)
        WHERE srvname = 'cell_south' AND option_name = 'options'
    """)
    shorter = server["options"].replace("session_timeout=3600s", "session_timeout=300ms")
    assert shorter != server["options"]
    assert "-c jit=off" in server["options"]  # as in all sessions of this package
    alter = SQL("ALTER SERVER cell_south OPTIONS (SET options {})")
    open_there = """
        SELECT pid FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'turn-accounting front' AND state = 'idle in transaction'
    """
    with (
        psycopg.connect(standing.books.url(), autocommit=True) as superuser,
        psycopg.connect(standing.books.url(READER)) as reader,
    ):
        superuser.execute(alter.format(shorter))
        reader.execute("SELECT FROM reporting.sources")
        wait_until(lambda: not south.query(open_there))
        with pytest.raises(psycopg.OperationalError, match="idle-in-transaction timeout"):
            reader.execute("SELECT FROM reporting.sources")
        superuser.execute(alter.format(server["options"]))


@pytest.mark.parametrize(
    "command", [("list",), ("join", "a", "postgresql://a@b/c"), ("leave", "a")]
)
def test_a_database_without_a_schema_is_no_front(
    postgres_server: PostgresServer, command: tuple[str, ...]
) -> None:
    settings = {"database_url": postgres_server.url(database="template1")}
    refused = turn_accounting("front", *command, **settings)
    assert refused.code == 1
    assert refused.error_line.endswith("`turn-accounting db upgrade`, or `front init`")


def test_a_front_can_t_be_a_cell_and_a_cell_no_front(standing: Front) -> None:
    with pytest.raises(UsageError, match="is a front itself"):
        join.join_cell(standing.engine, "west", standing.books.url(), None)
    with pytest.raises(UsageError, match="the cell 'north' of this front already"):
        join.join_cell(standing.engine, "west", standing.cells["north"].url(), None)


def test_a_database_that_became_a_front_takes_no_source(standing: Front) -> None:
    """A collector looks when it starts only."""
    engine = standing.books.engine
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="is a front"):
        add_source(connection, "late", "psync")


def test_a_cell_that_left_is_read_no_more_and_keeps_its_books(front: Front) -> None:
    for cell in front.cells:
        front.receive(cell, 1, b"turn/realm/r/user/u/allocation/000000000000000001/status", b"new")
    front.run_jobs()
    assert [row["source"] for row in front.rows("sources", "source")] == ["north", "south"]
    assert join.leave(front.engine, "north", without_its_usage=True) is None
    assert [row["source"] for row in front.rows("sources", "source")] == ["south"]
    assert front.cells["north"].rows("sources")
    with pytest.raises(AccountingError, match="no cell 'north' is known"):
        join.leave(front.engine, "north")
    join.leave(front.engine, "south", without_its_usage=True)
    assert front.rows("sources") == []


def test_a_cell_with_usage_that_the_front_has_not_billed_can_t_leave(front: Front) -> None:
    call(front, "north", "alice", HOUR, 1)
    call(front, "south", "bob", HOUR, 2)
    front.advance_clocks(HOUR * 10)
    front.run_jobs()
    message = r"cell 'north' has usage of realm 'example.org' in .*--without-its-usage"
    with pytest.raises(UsageError, match=message):
        join.leave(front.engine, "north")  # before the period is in the cell's books
    front.close_periods()
    message = r"realm 'example.org' in period 2026-11-01 .*the cell has not closed it"
    with pytest.raises(UsageError, match=message):
        join.leave(front.engine, "north")
    front.advance_clocks(MONTH * 1.5)
    front.run_jobs()
    close_periods(front.cells["north"].engine)
    with pytest.raises(UsageError, match="has closed it, the front has not"):
        join.leave(front.engine, "north")
    assert [cell["state"] for cell in cell_states(front.engine)] == ["ok", "ok"]
    front.close_periods()
    assert len(front.rows("statements")) == 2
    assert join.leave(front.engine, "north") is None


def test_a_cell_that_can_t_be_asked_leaves_only_without_its_usage(front: Front) -> None:
    with psycopg.connect(front.books.url()) as connection:
        connection.execute(
            "UPDATE accounting.cells SET url = 'postgresql://127.0.0.1:1/no' WHERE cell = 'south'"
        )
    with pytest.raises(UsageError, match=r"cell 'south'.*nobody can tell.*--without-its-usage"):
        join.leave(front.engine, "south")
    assert join.leave(front.engine, "south", without_its_usage=True) is not None


def test_another_database_can_t_take_the_name_of_a_cell_that_has_not_left(
    front: Front, postgres_server: PostgresServer
) -> None:
    url = front.cells["south"].url()
    with cloned_database(postgres_server) as name:
        other = postgres_server.url(database=name)
        with psycopg.connect(other) as connection:
            connection.execute("UPDATE accounting.installation SET database_id = gen_random_uuid()")
        with pytest.raises(UsageError, match=r"cell 'south': is another .* front leave south"):
            join.join_cell(front.engine, "south", other, None)
        with psycopg.connect(other) as connection:
            assert connection.execute("SELECT FROM accounting.membership").fetchall() == []
        assert [cell["url"] for cell in cell_states(front.engine)][1] == url
        join.leave(front.engine, "south")
        join.join_cell(front.engine, "south", other, None)
        assert [cell["state"] for cell in cell_states(front.engine)] == ["ok", "ok"]


def test_a_cell_that_joins_again_is_read_again(front: Front) -> None:
    for cell in front.cells:
        front.receive(cell, 1, b"turn/realm/r/user/u/allocation/000000000000000001/status", b"new")
    front.run_jobs()
    join.join_cell(front.engine, "south", front.cells["south"].url(), None)
    assert [row["source"] for row in front.rows("sources", "source")] == ["north", "south"]
    rights = (
        "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'reporting'::regnamespace"
    )
    assert front.books.query(f"{rights} ORDER BY 1") == front.whole.query(f"{rights} ORDER BY 1")


def test_the_commands_with_a_password(postgres_server: PostgresServer, tmp_path: Path) -> None:
    with (
        cloned_database(postgres_server) as front,
        cloned_database(postgres_server) as cell,
        password_login(postgres_server, "turn_accounting_owner", "s3cret") as login,
    ):
        settings = {"database_url": postgres_server.url(database=front)}
        wrong = turn_accounting("front", "list", **settings)
        assert wrong.code == 2
        assert "front init" in wrong.error_line
        assert turn_accounting("front", "init", **settings).code == 0
        password = tmp_path / "password"
        password.write_text("s3cret\n")
        url = postgres_server.url(login.name, cell)
        join_it = ("front", "join", "a", url, "--password-file", str(password))
        without = turn_accounting(*join_it[:4], **settings)
        assert without.code == 1
        assert without.error_line.endswith("no password supplied: give it with --password-file")
        joined = turn_accounting(*join_it, **settings)
        assert joined.code == 0, joined.err
        [row] = turn_accounting("front", "list", "--json", **settings).rows
        assert (row["cell"], row["state"]) == ("a", "ok")
        login.set_password("another")
        [row] = turn_accounting("front", "list", "--json", **settings).rows
        assert "password authentication failed" in row["state"]
        password.write_text("another\n")
        assert turn_accounting(*join_it, **settings).code == 0
        [row] = turn_accounting("front", "list", "--json", **settings).rows
        assert row["state"] == "ok"
        assert turn_accounting("front", "leave", "a", **settings).code == 0


@pytest.mark.parametrize("command", ["join", "leave"])
def test_a_login_of_a_service_may_not_change_the_cells(front: Front, command: str) -> None:
    url = front.cells["south"].url()
    arguments = ("south", url) if command == "join" else ("south", "--without-its-usage")
    refused = turn_accounting("front", command, *arguments, database_url=front.books.url(WRITER))
    assert refused.code == 2
    assert "act as turn_accounting_owner" in refused.error_line


def test_the_password_of_a_cell_is_not_in_the_log_of_the_front(front: Front) -> None:
    logged: list[str] = []
    with front.engine.connect() as connection:
        connection.begin()
        session = psycopg_connection(connection)
        session.add_notice_handler(lambda notice: logged.append(notice.message_primary or ""))
        session.execute("SET LOCAL log_statement = 'ddl'")
        session.execute("SET LOCAL client_min_messages = 'log'")
        url = front.cells["south"].url()
        foreign_server.create_server(connection, "west", url, "s3cret-of-west")
        connection.rollback()
    assert "CREATE SERVER" in "".join(logged)
    assert "s3cret-of-west" not in "".join(logged)


def test_a_cell_that_asks_for_no_password_is_said(front: Front) -> None:
    with pytest.raises(UsageError, match="cell 'south' asks for no password"):
        join.join_cell(front.engine, "south", front.cells["south"].url(), "needless")
