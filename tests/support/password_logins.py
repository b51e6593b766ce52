"""A login of a test's Postgres that needs its password, although the server trusts all others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.support.servers import PostgresServer, wait_until


@dataclass(frozen=True, slots=True)
class PasswordLogin:
    """A login with the rights of a role."""

    server: PostgresServer
    name: str

    def url(self, password: str, database: str) -> str:
        trusted = self.server.url(self.name, database)
        return trusted.replace(f"//{self.name}@", f"//{self.name}:{password}@")

    def set_password(self, password: str) -> None:
        statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
        with psycopg.connect(self.server.url(), autocommit=True) as superuser:
            superuser.execute(statement.format(sql.Identifier(self.name), sql.Literal(password)))

    def end_sessions(self) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as superuser:
            superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                [self.name],
            )


@contextmanager
def password_login(server: PostgresServer, role: str, password: str) -> Iterator[PasswordLogin]:
    """Create the login, and drop it at the end."""
    login = PasswordLogin(server, f"{role}_with_password")
    name = sql.Identifier(login.name)
    with psycopg.connect(server.url(), autocommit=True) as superuser:
        row = superuser.execute("SHOW hba_file").fetchone()
        assert row is not None
        path = Path(row[0])
        rules = path.read_text()
        superuser.execute(
            sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(name, sql.Identifier(role))
        )
        login.set_password(password)
        try:
            path.write_text(f"local all {login.name} scram-sha-256\n{rules}")
            superuser.execute("SELECT pg_reload_conf()")
            wait_until(lambda: _is_refused(login.url("wrong", "postgres")))
            yield login
        finally:
            path.write_text(rules)
            superuser.execute("SELECT pg_reload_conf()")
            login.end_sessions()
            superuser.execute(sql.SQL("DROP ROLE {}").format(name))


def _is_refused(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return True
    return False
