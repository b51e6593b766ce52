"""Roles and their rights: the owner migrates, the writer runs the service, the reader reads."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.db.revisions import head_revision
from accounting.errors import AccountingError, NotAllowed
from accounting.ops.registry import JOBS
from accounting.reporting.reader import DatabaseReader
from tests.support.books import READER, WRITER, Books, channel, status_payload, traffic_payload
from tests.support.servers import PostgresServer

OWNER: Final = "turn_accounting_owner"
FRESH: Final = "fresh_books"
OPERATOR: Final = "limited_operator"
SERVICE: Final = "limited_service"


def execute(books: Books, role: str, statement: str) -> None:
    with psycopg.connect(books.url(role)) as connection:
        connection.execute(statement.encode())
        connection.rollback()


def schema_relations(books: Books, schema: str) -> list[str]:
    """The tables and views of a schema, which must have some."""
    relations = [
        row["name"]
        for row in books.query(
            "SELECT relname AS name FROM pg_class"
            " WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'v') ORDER BY 1",
            [schema],
        )
    ]
    assert relations, f"the schema {schema} has no relations"
    return relations


def test_reader_reads_every_view(sample_books: Books) -> None:
    for view in schema_relations(sample_books, "reporting"):
        execute(sample_books, READER, f"TABLE reporting.{view}")


def test_reader_reads_no_table(sample_books: Books) -> None:
    tables = schema_relations(sample_books, "accounting")
    assert "installation" in tables
    for table in tables:
        with pytest.raises(InsufficientPrivilege):
            execute(sample_books, READER, f"TABLE accounting.{table}")


def test_reader_reads_and_writes_no_token(sample_books: Books) -> None:
    for table in schema_relations(sample_books, "access"):
        for statement in ("TABLE {}", "DELETE FROM {}", "UPDATE {} SET digest = sha256('')"):
            with pytest.raises(InsufficientPrivilege):
                execute(sample_books, READER, statement.format(f"access.{table}"))


@pytest.mark.parametrize("role", [READER, WRITER, OWNER, None])
def test_a_transaction_of_the_web_server_has_the_rights_of_the_reader(
    sample_books: Books, role: str | None
) -> None:
    """Whatever the login: the superuser's is None."""
    with closing(DatabaseReader(sample_books.url(role), takes_role=True)) as reader:
        for _ in range(2):  # the second time the connection was idle
            with reader.transaction() as connection:
                assert connection.execute("SELECT current_user").fetchone() == (READER,)
                connection.execute("TABLE reporting.sessions")
        with (
            pytest.raises(NotAllowed, match="permission denied"),
            reader.transaction() as connection,
        ):
            connection.execute("TABLE accounting.usernames")


def test_a_login_that_may_not_be_the_reader_is_refused(
    postgres_server: PostgresServer, fresh_database: psycopg.Connection
) -> None:
    assert fresh_database.info.dbname
    url = postgres_server.url(SERVICE, FRESH)
    with (
        closing(DatabaseReader(url, takes_role=True)) as reader,
        pytest.raises(NotAllowed, match=READER),
        reader.transaction(),
    ):
        pass


@pytest.mark.parametrize("role", [READER, WRITER])
@pytest.mark.parametrize(
    "statement", ["INSERT INTO {} DEFAULT VALUES", "UPDATE {} SET realm = ''", "DELETE FROM {}"]
)
def test_nobody_writes_a_view(sample_books: Books, role: str, statement: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        execute(sample_books, role, statement.format("reporting.sessions"))
    # A view of joins can't be written at all; for other views Postgres checks the rights first.
    assert raised.value.sqlstate in {"42501", "55000"}


@pytest.mark.parametrize("role", [READER, WRITER])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE reporting.mine (one int)",
        "CREATE TABLE accounting.mine (one int)",
        "DROP VIEW reporting.sessions",
        "ALTER TABLE accounting.sessions ADD COLUMN mine int",
        f"SET ROLE {OWNER}",
    ],
)
def test_only_the_owner_changes_the_schema(sample_books: Books, role: str, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        execute(sample_books, role, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounting.reports SET sent_bytes = 0",
        "DELETE FROM accounting.reports",
        "TRUNCATE accounting.reports",
        "UPDATE accounting.reports_20261101 SET sent_bytes = 0",
        "DELETE FROM accounting.reports_20261101",
        "TRUNCATE accounting.reports_20261101",
        "DELETE FROM accounting.rejected_messages",
        "UPDATE accounting.rejected_messages SET reason = ''",
        "UPDATE accounting.epochs SET token = ''",
        "UPDATE accounting.installation SET identity_key = sha256('')",
        "DELETE FROM accounting.installation",
        "INSERT INTO accounting.installation (identity_key) VALUES (sha256(''))",
        "UPDATE accounting.alembic_version SET version_num = ''",
    ],
)
def test_the_service_can_not_change_what_was_reported(sample_books: Books, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        execute(sample_books, WRITER, statement)


def test_partitions_are_made_for_the_writer_alone(sample_books: Books) -> None:
    execute(sample_books, WRITER, "SELECT accounting.ensure_report_partition('2027-01-01')")
    with pytest.raises(InsufficientPrivilege):
        execute(sample_books, READER, "SELECT accounting.ensure_report_partition('2027-01-01')")


def test_everything_belongs_to_the_owner(sample_books: Books) -> None:
    owned_by_others = sample_books.query(
        """
        SELECT c.relname AS name, pg_get_userbyid(c.relowner) AS owner FROM pg_class c
        WHERE c.relnamespace IN ('accounting'::regnamespace,
                'reporting'::regnamespace, 'access'::regnamespace)
            AND pg_get_userbyid(c.relowner) <> %s
        UNION ALL
        SELECT p.proname, pg_get_userbyid(p.proowner) FROM pg_proc p
        WHERE p.pronamespace IN ('accounting'::regnamespace, 'access'::regnamespace)
            AND pg_get_userbyid(p.proowner) <> %s
        UNION ALL
        SELECT nspname, pg_get_userbyid(nspowner) FROM pg_namespace
        WHERE nspname IN ('accounting', 'reporting', 'access') AND pg_get_userbyid(nspowner) <> %s
        """,
        [OWNER, OWNER, OWNER],
    )
    assert owned_by_others == []


def test_tables_and_migrations_agree(sample_books: Books) -> None:
    engine = open_engine(sample_books.url())
    try:
        with engine.begin() as connection:
            migrations.check_metadata(connection)
    finally:
        engine.dispose()


def test_a_job_without_the_right_to_write_says_which_role_has_it(sample_books: Books) -> None:
    engine = open_engine(sample_books.url(READER))
    try:
        with pytest.raises(NotAllowed, match="turn_accounting_writer"):
            JOBS["settle"].run(engine)
    finally:
        engine.dispose()


@pytest.fixture
def fresh_database(postgres_server: PostgresServer) -> Iterator[psycopg.Connection]:
    """The superuser's connection to an empty database; two logins without any right exist."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {FRESH}")
        connection.execute(f"CREATE ROLE {OPERATOR} LOGIN")
        connection.execute(f"CREATE ROLE {SERVICE} LOGIN")
        yield connection
        connection.execute(f"DROP DATABASE {FRESH} WITH (FORCE)")
        connection.execute(f"DROP ROLE {OPERATOR}, {SERVICE}")


def upgrade(server: PostgresServer, user: str) -> None:
    engine = open_engine(server.url(user, FRESH))
    try:
        assert migrations.upgrade(engine) == head_revision()
    finally:
        engine.dispose()


def test_a_limited_member_of_the_owner_role_migrates_from_zero(
    postgres_server: PostgresServer, fresh_database: psycopg.Connection
) -> None:
    fresh_database.execute(f"GRANT {OWNER} TO {OPERATOR}")
    fresh_database.execute(f"GRANT CREATE ON DATABASE {FRESH} TO {OWNER}")
    upgrade(postgres_server, OPERATOR)
    upgrade(postgres_server, OPERATOR)  # repeating it changes nothing, and is not an error
    fresh_database.execute(f"GRANT {WRITER} TO {SERVICE}")
    books = postgres_server.url(SERVICE, FRESH)
    with psycopg.connect(books) as connection:
        connection.execute("SELECT * FROM reporting.sessions")
        connection.execute(
            "INSERT INTO accounting.sources (source, mode) VALUES ('s', 'subscribe')"
        )
        owners = connection.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class"
            " WHERE relnamespace = 'accounting'::regnamespace"
        ).fetchall()
    assert owners == [(OWNER,)]


def test_a_member_of_the_owner_migrates_where_others_made_the_roles(
    postgres_server: PostgresServer, fresh_database: psycopg.Connection
) -> None:
    """An operator who may not grant the reader to the writer needs it for the page only."""
    fresh_database.execute(f"GRANT {OWNER} TO {OPERATOR}")
    fresh_database.execute(f"GRANT CREATE ON DATABASE {FRESH} TO {OWNER}")
    fresh_database.execute(f"REVOKE {READER} FROM {WRITER}")
    try:
        upgrade(postgres_server, OPERATOR)
        url = postgres_server.url(WRITER, FRESH)
        with (
            closing(DatabaseReader(url, takes_role=True)) as reader,
            pytest.raises(NotAllowed, match=f'set role "{READER}"'),
            reader.transaction(),
        ):
            pass
    finally:
        fresh_database.execute(f"GRANT {READER} TO {WRITER}")


def test_a_role_that_may_not_migrate_gets_the_remedy(
    postgres_server: PostgresServer, fresh_database: psycopg.Connection
) -> None:
    assert fresh_database.info.dbname
    with pytest.raises(AccountingError) as raised:
        upgrade(postgres_server, OPERATOR)
    assert "let a superuser run `turn-accounting db upgrade` once" in str(raised.value)
    with psycopg.connect(postgres_server.url(database=FRESH)) as connection:
        created = connection.execute(
            "SELECT count(*) FROM pg_namespace WHERE nspname IN ('accounting', 'reporting')"
        ).fetchone()
    assert created == (0,)


def test_a_login_keeps_its_rights_on_later_tables_of_the_contract(
    postgres_server: PostgresServer, fresh_database: psycopg.Connection
) -> None:
    """A view that a later migration adds is readable at once."""
    fresh_database.execute(f"GRANT {OWNER} TO {OPERATOR}")
    fresh_database.execute(f"GRANT CREATE ON DATABASE {FRESH} TO {OWNER}")
    upgrade(postgres_server, OPERATOR)
    fresh_database.execute(f"GRANT {READER} TO {SERVICE}")
    with psycopg.connect(postgres_server.url(OPERATOR, FRESH)) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
        connection.execute("CREATE VIEW reporting.later AS SELECT 1 AS one")
    with psycopg.connect(postgres_server.url(SERVICE, FRESH)) as connection:
        assert connection.execute("SELECT * FROM reporting.later").fetchall() == [(1,)]


def test_the_whole_path_needs_no_more_than_the_writer(books: Books) -> None:
    """``Books`` works as the writer; creating partitions needs no other role either."""
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(1, channel("traffic"), traffic_payload(1, 2, 3, 4))
    books.advance_clock(5_000)
    books.run_jobs()
    assert JOBS["partitions"].run(books.engine) > 0
    assert books.rows("user_usage_monthly", "received_bytes") == [{"received_bytes": 2}]
